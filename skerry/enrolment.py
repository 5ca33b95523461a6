"""What device and fleet say to each other once, at enrolment.

    POST {fleet_url}/enrol      EnrolRequest   ->   EnrolAnswer      both JSON, bytes as base64

The device holds the answer against its token before it keeps anything: the authority's
fingerprint, and the digest of the two roots. Its name is the one that the token claims, whatever
the request says.
"""

from typing import Final

import msgspec

from skerry.canonical import sha256
from skerry.profile import Inventory

__all__ = ["ENROL_PATH", "MAX_ENROL_BYTES", "EnrolAnswer", "EnrolRequest", "roots_digest"]

ENROL_PATH: Final = "/enrol"
MAX_ENROL_BYTES: Final = 64 * 1024  # of the request; the answer may be four times as long


class EnrolRequest(msgspec.Struct, frozen=True):
    """What a device sends: the token's secret, and the public halves of its two keys."""

    secret: bytes  # 32 bytes, from the token
    csr: str  # PEM; proof that the device holds the key, its name is ignored
    report_key: bytes  # 32 raw bytes, Ed25519
    inventory: Inventory = Inventory()


class EnrolAnswer(msgspec.Struct, frozen=True):
    """What the fleet answers: who the device is, and everything that it trusts from then on."""

    device_id: str
    client_id: str  # under which the device speaks MQTT
    fleet_id: str
    certificate: str  # PEM: the device's, then the issuing authority's
    ca: str  # PEM: the authority whose fingerprint the token carries
    catalog_root: bytes
    director_root: bytes
    broker_url: str  # mqtt://host:port
    shards: int


def roots_digest(catalog_root: bytes, director_root: bytes) -> str:
    """Return the digest of the two trusted roots, as an enrolment token carries it."""
    return sha256((catalog_root, director_root))
