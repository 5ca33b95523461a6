"""Reading a publisher's metadata, and by which keys it is believed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.api.serialization.json import JSONSerializer

from skerry.errors import FormatError, TrustError
from skerry.holding import Delegation, Holding, signed_by
from skerry.io.signers import key_id_of

__all__ = [
    "Trust",
    "check_current",
    "check_own",
    "parse_holding",
    "parse_targets",
    "to_bytes",
    "verify_signature",
]

MAX_METADATA_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Trust:
    """By which keys a publisher's metadata is believed.

    Args:
        delegation: the publisher's keys and threshold, None where no catalog was at hand.
        is_verified: the delegation is the catalog's, verified from a trusted root; otherwise it
            is somebody's word, and one's own signature must be on the metadata besides.
        keys: further keys of this publisher, by the caller's word.
    """

    delegation: Delegation | None = None
    is_verified: bool = False
    keys: tuple[Key, ...] = ()

    def for_bins(self, own: Key) -> Delegation | None:
        """Return by whose keys bins may be signed: whoever names a stranger's gives it away."""
        sole = self.delegation is not None and set(self.delegation.keys) == {own.keyid}
        return self.delegation if self.is_verified or sole else None


def check_own(publisher: str, key: Key, trust: Trust) -> None:
    """Check that a key is one of the publisher's, where those are known.

    Raises:
        TrustError: code ``unknown_key``.
    """
    if trust.delegation is not None and key.keyid not in trust.delegation.keys:
        names = ", ".join(map(key_id_of, trust.delegation.keys.values()))
        raise TrustError(
            f"expected one of {publisher}'s keys ({names}), got {key_id_of(key)}", "unknown_key"
        )


def check_current(current: Holding, trust: Trust, own: Key | None = None) -> None:
    """Check that this publisher had signed what a new release is added to.

    Each role must be signed by one of the keys that the caller trusts; or by enough of the
    delegation's, and by the caller's own if the delegation is not verified; or, where there is no
    delegation, by the caller's own.

    Raises:
        TrustError: it had not.
    """
    named = {key.keyid: key for key in trust.keys}
    mine = {} if own is None else {own.keyid: own}
    for name, metadata in current.roles.items():
        if signed_by(metadata, named):
            continue
        if trust.delegation is None:
            verify_signature(metadata, named | mine)
            continue
        signers = trust.delegation.signed_by(metadata)
        if len(signers) < trust.delegation.threshold:
            raise TrustError(
                f"expected the current metadata of {name} to be signed by "
                f"{trust.delegation.threshold} of its keys, got {len(signers)}; if its keys were "
                "replaced since, trust the former one: --trusted FILE"
            )
        if not trust.is_verified and not signers & set(mine):
            raise TrustError(
                f"the current metadata of {name} does not carry your signature, so nothing here "
                "vouches for it; give the catalog's root (--root), or the public key of who "
                "signed it (--trusted)"
            )
    if current.roles and trust.delegation is not None:
        current.bins  # noqa: B018 - refuses other delegations


def parse_targets(data: bytes) -> Metadata[Targets]:
    """Read targets metadata; nothing about it is verified yet.

    Raises:
        FormatError: not such metadata.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise FormatError(f"expected at most {MAX_METADATA_BYTES} bytes of metadata")
    try:
        metadata = Metadata[Targets].from_bytes(data)
        _ = metadata.signed_bytes  # fractions and half characters parse, and cannot be signed
    except (DeserializationError, SerializationError, RecursionError, ValueError) as error:
        raise FormatError(
            f"expected a publisher's signed metadata: {str(error) or error.__cause__}"
        ) from None
    if not isinstance(metadata.signed, Targets):
        raise FormatError(f"expected targets metadata, got {metadata.signed.type}")
    return metadata


def parse_holding(publisher: str, roles: Mapping[str, bytes]) -> Holding:
    """Read all of a publisher's roles; nothing about them is verified yet.

    Raises:
        FormatError: not such metadata, or some of it is missing.
        TrustError: the publisher delegates to others than its bins.
    """
    holding = Holding(publisher, {name: parse_targets(data) for name, data in roles.items()})
    expected = {publisher} if roles else set()
    if publisher in roles and holding.bins is not None:
        expected |= set(holding.bins.get_roles())
    if set(roles) != expected:
        wrong = min(set(roles) ^ expected)
        raise FormatError(
            f"expected all of {publisher}'s metadata and nothing else: {wrong[:80]}; "
            "give --fleet, or as --metadata the release file of the last release"
        )
    return holding


def to_bytes(metadata: Metadata[Targets]) -> bytes:
    """Return metadata as it is kept and served."""
    return metadata.to_bytes(JSONSerializer(compact=True))


def verify_signature(metadata: Metadata[Targets], keys: Mapping[str, Key]) -> None:
    """Check that one of the keys signed the metadata.

    Raises:
        TrustError: none of them did.
    """
    if signed_by(metadata, keys):
        return
    wanted = ", ".join(map(key_id_of, keys.values())) or "nobody knows which"
    raise TrustError(
        f"expected metadata signed by key {wanted}; it carries {len(metadata.signatures)} "
        "signatures, none of them good by that key"
    )
