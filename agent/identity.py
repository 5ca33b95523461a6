"""Who this device is: what enrolment left in ``identity/``.

    identity.json        names and addresses
    report.pem           Ed25519 key that signs everything the device says
    device.pem           key and certificate for connections, in one file: they are renewed together
    ca.crt               the fleet's certificate authorities
    catalog-root.json    trusted roots, from which every verification begins
    director-root.json

Private keys are unencrypted files of mode 0600: a device starts without a person.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.durable import fsync_dir
from skerry.canonical import from_json, to_json
from skerry.custom import message_keys
from skerry.enrolment import EnrolAnswer
from skerry.errors import FormatError, NotFoundError
from skerry.keys import PublicKey, Signer

__all__ = [
    "Identity",
    "Record",
    "load_identity",
    "root_version",
    "save_certificate",
    "save_identity",
    "write_private",
]

RECORD_FILE: Final = "identity.json"
DEVICE_FILE: Final = "device.pem"
CA_FILE: Final = "ca.crt"


class Record(msgspec.Struct, frozen=True):
    """The enrolment record, as the device keeps it."""

    device_id: str
    client_id: str  # under which the device speaks MQTT
    fleet_id: str
    fleet_url: str  # of the device listener
    broker_url: str  # mqtts://host:port
    shards: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is, with its key and the roots it trusts."""

    record: Record
    signer: Signer
    catalog_root: bytes
    director_root: bytes
    folder: Path

    @property
    def ca_file(self) -> Path:
        """PEM of the fleet's authorities."""
        return self.folder / CA_FILE

    @property
    def device_file(self) -> Path:
        """PEM of the key for connections, then its certificate with the chain."""
        return self.folder / DEVICE_FILE

    def message_keys(self) -> dict[str, PublicKey]:
        """Return the keys that speak for the fleet, as the director root of enrolment names them."""
        root = from_json(self.director_root, dict[str, Any])
        signed = root.get("signed")
        return message_keys(signed if isinstance(signed, dict) else {})


def load_identity(folder: Path) -> Identity:
    """Read the identity of an enrolled device.

    Raises:
        NotFoundError: it is not enrolled.
        FormatError: a file is damaged.
    """
    if not (folder / RECORD_FILE).is_file():
        raise NotFoundError(
            f"no identity in {folder}; enrol first: "
            f"skerry-agent enroll --state {folder.parent} --token TOKEN"
        )
    try:
        return Identity(
            record=from_json((folder / RECORD_FILE).read_bytes(), Record),
            signer=Signer.from_pem((folder / "report.pem").read_bytes(), None),
            catalog_root=(folder / "catalog-root.json").read_bytes(),
            director_root=(folder / "director-root.json").read_bytes(),
            folder=folder,
        )
    except OSError as error:
        raise FormatError(f"the identity in {folder} is not whole: {error}; enrol again") from None


def root_version(root: bytes) -> int:
    """Return the version of a root's metadata, 1 if it names none."""
    signed = from_json(root, dict[str, Any]).get("signed")
    version = signed.get("version") if isinstance(signed, dict) else None
    return version if isinstance(version, int) else 1


def save_identity(
    folder: Path, answer: EnrolAnswer, *, fleet_url: str, signer: Signer, device_key: bytes
) -> Record:
    """Keep an identity: complete, or not at all, for `identity.json` is written last.

    Args:
        folder: made if it is missing.
        answer: what the fleet said, verified.
        fleet_url: of the device listener.
        signer: the report key.
        device_key: PEM of the key for connections.
    """
    record = Record(
        device_id=answer.device_id,
        client_id=answer.client_id,
        fleet_id=answer.fleet_id,
        fleet_url=fleet_url,
        broker_url=answer.broker_url,
        shards=answer.shards,
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / "report.pem", signer.to_pem(None))
    save_certificate(folder, device_key, answer.certificate, answer.ca)
    write_private(folder / "catalog-root.json", answer.catalog_root)
    write_private(folder / "director-root.json", answer.director_root)
    write_private(folder / RECORD_FILE, to_json(record))
    return record


def save_certificate(folder: Path, key: bytes, certificate: str, authorities: str) -> None:
    """Keep a certificate with its key, and before it the authorities to trust from now on.

    Args:
        folder: of the identity.
        key: PEM.
        certificate: PEM, with the chain.
        authorities: PEM.
    """
    write_private(folder / CA_FILE, authorities.encode())
    write_private(folder / DEVICE_FILE, key + certificate.encode())


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads: beside its place, synced, then renamed."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    fsync_dir(path.parent)
