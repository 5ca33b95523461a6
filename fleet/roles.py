"""TUF metadata as the fleet writes and reads it: lifetimes, file names, keys, signing.

    timestamp 7 days, signed anew daily; snapshot and director targets 30 days; publishers 90 days;
    roots and the catalog's own targets, signed by offline keys, 365 days

Source: TUF specification 1.0, sections 4 and 6.2 (consistent snapshots).
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.api.serialization.json import JSONSerializer

from skerry.errors import FormatError, NotFoundError, TrustError
from skerry.keys import PublicKey, Signer

__all__ = [
    "MAX_METADATA_BYTES",
    "OFFLINE_VALID",
    "SNAPSHOT_VALID",
    "TARGETS_VALID",
    "TIMESTAMP_VALID",
    "Role",
    "check_signed",
    "latest",
    "load_roots",
    "parse",
    "sign",
    "tuf_key",
    "until",
]

TIMESTAMP_VALID: Final = timedelta(days=7)
SNAPSHOT_VALID: Final = timedelta(days=30)
TARGETS_VALID: Final = timedelta(days=30)
OFFLINE_VALID: Final = timedelta(days=365)
MAX_METADATA_BYTES: Final = 1 << 20
MAX_ROOTS: Final = 1024

Role = TypeVar("Role", Root, Targets, Snapshot, Timestamp)


def tuf_key(key: PublicKey) -> SSlibKey:
    """Return a public key as TUF metadata names it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.raw))


def until(now: datetime, valid: timedelta) -> datetime:
    """Return when metadata signed now expires: aware UTC, whole seconds."""
    return (now + valid).astimezone(UTC).replace(microsecond=0)


def sign(role: Role, signers: Sequence[Signer]) -> bytes:
    """Return the bytes of a role, signed by each of the keys."""
    metadata = Metadata(role)
    for signer in signers:
        metadata.sign(CryptoSigner(signer.private_key, tuf_key(signer.public)), append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def parse(data: bytes, kind: type[Role], what: str) -> Metadata[Role]:
    """Read metadata of one kind; nothing about it is verified yet.

    Args:
        data: at most 1 MiB of JSON.
        kind: Root, Targets, Snapshot or Timestamp.
        what: how an error calls it.

    Raises:
        FormatError: too long, not TUF metadata, or of another kind.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise FormatError(f"expected {what} of at most {MAX_METADATA_BYTES} bytes, got {len(data)}")
    try:
        metadata: Metadata[Role] = Metadata.from_bytes(data)
        _ = metadata.signed_bytes  # fractions and half characters parse, and cannot be signed
    except (DeserializationError, SerializationError, RecursionError, ValueError) as error:
        raise FormatError(
            f"expected signed TUF metadata of {what}: {str(error) or error.__cause__}"
        ) from None
    if not isinstance(metadata.signed, kind):
        raise FormatError(f"expected {what} of type {kind.type}, got {metadata.signed.type}")
    if unheld := _unheld_keys(metadata.signed):
        raise FormatError(
            f"expected {what} to hold each key that it names; it lacks {unheld[0][:80]!r}"
        )
    return metadata


def _unheld_keys(signed: Root | Targets | Snapshot | Timestamp) -> list[str]:
    """Return the key ids that a role names without their keys, which python-tuf reads over."""
    if isinstance(signed, Root):
        named, held = signed.roles.values(), signed.keys
        ids = {keyid for role in named for keyid in role.keyids}
    elif isinstance(signed, Targets) and signed.delegations is not None:
        delegations = signed.delegations
        held = delegations.keys
        names: list[Any] = list(delegations.roles or ())
        if strange := [name for name in names if not isinstance(name, str)]:
            raise FormatError(f"expected delegations to roles by their names, got {strange[0]!r}")
        ids = {keyid for role in (delegations.roles or {}).values() for keyid in role.keyids}
        if delegations.succinct_roles is not None:
            ids |= set(delegations.succinct_roles.keyids)
    else:
        return []
    return sorted(str(keyid) for keyid in ids - set(held))  # some are no text


def check_signed(delegator: Root | Targets, role: str, metadata: Metadata[Role]) -> None:
    """Check that enough of the keys that the delegator names have signed a role.

    Raises:
        TrustError: too few did, or the delegator does not know the role.
    """
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError as error:
        raise TrustError(
            f"expected {role} metadata signed by its own keys: {error}; "
            "sign it with the key that the key ceremony made"
        ) from None
    except ValueError:
        raise TrustError(
            f"nobody has been given the role {role}; name it in the key ceremony",
            "unknown_publisher",
        ) from None


def load_roots(folder: Path) -> dict[int, bytes]:
    """Read a repository's roots, 1 to the latest, each signed by itself and by the one before.

    Raises:
        NotFoundError: there is no root; the key ceremony has not been.
        TrustError: a root does not follow from the one before it.
    """
    roots: dict[int, bytes] = {}
    trusted: Root | None = None
    for version in range(1, MAX_ROOTS):
        path = folder / f"{version}.root.json"
        if not path.is_file():
            break
        roots[version] = path.read_bytes()
        metadata = parse(roots[version], Root, str(path))
        if metadata.signed.version != version:
            raise TrustError(f"expected version {version} in {path}", "root_version")
        for delegator in (trusted or metadata.signed, metadata.signed):
            check_signed(delegator, Root.type, metadata)
        trusted = metadata.signed
    if not roots:
        raise NotFoundError(
            f"expected a root in {folder}; hold the key ceremony first: "
            "skerry keys ceremony --data DATA --out KEYS --publisher NAME"
        )
    return roots


def latest(folder: Path, role: str) -> int:
    """Return the highest version of a role's files in a folder, 0 for none."""
    names = (path.name.removesuffix(f".{role}.json") for path in folder.glob(f"*.{role}.json"))
    return max((int(name) for name in names if name.isdecimal()), default=0)
