"""What device and fleet say to each other about a device's identity.

    GET  {fleet_url}/ca                            PEM, to compare with the token's fingerprint
    POST {fleet_url}/enrol      EnrolRequest   ->  EnrolAnswer     both JSON, bytes as base64
    POST {fleet_url}/renew      RenewRequest   ->  RenewAnswer     over TLS with the certificate

Nothing is trusted on first use. What ``/ca`` says is worth nothing until its fingerprint is the
token's; only then the device speaks TLS with that authority's server, and shows the secret. It
holds the answer against its token before it keeps anything: the authority again, and the digest of
the two roots. Its name is the one that the token claims, whatever the request says.
"""

from typing import Final

import msgspec

from skerry.canonical import sha256
from skerry.profile import Inventory

__all__ = [
    "CA_PATH",
    "ENROL_PATH",
    "MAX_CA_BYTES",
    "MAX_ENROL_BYTES",
    "RENEW_PATH",
    "EnrolAnswer",
    "EnrolRequest",
    "RenewAnswer",
    "RenewRequest",
    "roots_digest",
]

CA_PATH: Final = "/ca"
ENROL_PATH: Final = "/enrol"
RENEW_PATH: Final = "/renew"
MAX_CA_BYTES: Final = 8 * 1024
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
    ca: str  # PEM: the authority whose fingerprint the token carries, then others to trust
    catalog_root: bytes
    director_root: bytes
    broker_url: str  # mqtts://host:port
    shards: int


class RenewRequest(msgspec.Struct, frozen=True):
    """What a device sends to get a new certificate for a new key."""

    csr: str  # PEM; its name is ignored


class RenewAnswer(msgspec.Struct, frozen=True):
    """What the fleet answers: the certificate, and the authorities to trust from then on."""

    certificate: str  # PEM: the device's, then the issuing authority's
    ca: str  # PEM: all authorities to trust


def roots_digest(catalog_root: bytes, director_root: bytes) -> str:
    """Return the digest of the two trusted roots, as an enrolment token carries it."""
    return sha256((catalog_root, director_root))
