"""A further signature on a release that somebody else began, on a machine of its own.

Before a key is touched, everything is checked that this machine can know: the metadata releases
exactly the bundle at hand, with the numbers that this machine would have given it; nothing that was
released has changed; and who began it may speak for the publisher. A signature is added to those
that are there, and one that was there already is not counted twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from securesystemslib.signer import Signer as TufSigner
from tuf.api.metadata import Metadata, Targets

from compiler.believe import Trust, check_current, check_own, parse_holding, parse_targets, to_bytes
from compiler.sign import VALID, next_release, release_of, target_file
from skerry.bundle import Bundle
from skerry.errors import TrustError, UsageError
from skerry.holding import Delegation, Holding
from skerry.io.signers import add_signature as append_signature
from skerry.io.signers import key_id_of
from skerry.publishing import check_release
from skerry.release_file import ReleaseFile
from skerry.trust import CatalogTarget

__all__ = ["Review", "add_signature", "review", "signers_of"]

CLOCKS_DIFFER: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Review:
    """What a release file would have its next signer sign."""

    publisher: str
    release: CatalogTarget
    is_new: bool  # False where it is signed anew only
    roles: dict[str, Metadata[Targets]]  # to be signed
    signers: frozenset[str]  # key ids: who signed all of them
    trust: Trust
    moved: int  # releases that move into bins
    renewed: int  # bins signed anew as they are
    version: int

    @property
    def signer_ids(self) -> list[str]:
        """Who signed all of them, by the ids that people compare."""
        keys = _believed(self.trust).keys
        return sorted(key_id_of(keys[keyid]) for keyid in self.signers)

    @property
    def threshold(self) -> int | None:
        """How many signatures it takes, None where nobody knows."""
        return self.trust.delegation.threshold if self.trust.delegation is not None else None


def review(file: ReleaseFile, bundle: Bundle, trust: Trust, now: datetime) -> Review:
    """Check a release that somebody else began, and return what it is.

    Args:
        file: handed over.
        bundle: at hand, every digest checked.
        trust: verified from a root, or keys that the caller vouches for.
        now: aware UTC.

    Raises:
        FormatError: the file holds no whole metadata.
        TrustError: with a `code`: it is about something else, or nobody vouches for it.
        ConflictError: its version is not the one after what it starts from.
        UsageError: neither root nor key is trusted.
    """
    if not trust.is_verified and not trust.keys:
        raise UsageError(
            "expected to know whom to trust: give the catalog's root (--root), or the public key of "
            "who began the release (--trusted)"
        )
    before = parse_holding(file.publisher, file.before)
    check_current(before, trust)
    roles = {name: parse_targets(data) for name, data in file.metadata.items()}
    after = parse_holding(file.publisher, {**file.before, **file.metadata})
    signers = signers_of(roles, _believed(trust))
    if not signers:
        raise TrustError(
            f"expected a release that one of {file.publisher}'s keys began; "
            "it carries no signature by any that you trust"
        )
    delegation = trust.delegation or Delegation({key.keyid: key for key in trust.keys}, 1)
    if not trust.is_verified:
        delegation = _check_same_bins(before, after) or delegation
    release = check_release(after, before, delegation, bundle, now)
    if release.path not in before.targets:
        # what patches there are is the first signer's to say: each can only make the bundle's files
        ours = replace(release_of(bundle, file.publisher), patches=tuple(release.patches))
        expected = next_release(ours, before.releases)
        if after.targets[release.path].to_dict() != target_file(expected).to_dict():
            raise TrustError(
                f"expected {expected} of this bundle after what was released before, got {release}",
                "custom",
            )
    _check_expiry(roles, now)
    bins = [name for name in roles if name != file.publisher]
    return Review(
        publisher=file.publisher,
        release=release,
        is_new=release.path not in before.targets,
        roles=roles,
        signers=frozenset(signers),
        trust=trust,
        moved=len(before.targets) if after.bins and not before.bins else 0,
        renewed=sum(_targets(before, name) == _targets(after, name) for name in bins),
        version=after.version,
    )


def add_signature(reviewed: Review, signer: TufSigner) -> dict[str, bytes]:
    """Return what was reviewed with one more signature on each role.

    Raises:
        TrustError: code ``unknown_key``: it is none of the publisher's keys.
    """
    check_own(reviewed.publisher, signer.public_key, reviewed.trust)
    for metadata in reviewed.roles.values():
        append_signature(metadata, signer, append=True)
    return {name: to_bytes(metadata) for name, metadata in reviewed.roles.items()}


def signers_of(roles: Mapping[str, Metadata[Targets]], delegation: Delegation) -> set[str]:
    """Return which keys signed every one of these roles, by key id."""
    every = [delegation.signed_by(metadata) for metadata in roles.values()]
    return set.intersection(*every) if every else set()


def _believed(trust: Trust) -> Delegation:
    """Return whose signature shows that a release was begun by the publisher."""
    if trust.is_verified:
        assert trust.delegation is not None
        return trust.delegation
    return Delegation({key.keyid: key for key in trust.keys}, 1)


def _check_expiry(roles: Mapping[str, Metadata[Targets]], now: datetime) -> None:
    for name, metadata in roles.items():
        if metadata.signed.expires > now + VALID + CLOCKS_DIFFER:
            raise TrustError(
                f"expected {name}'s metadata to be good for {VALID.days} days, got "
                f"{metadata.signed.expires:%Y-%m-%d}; is this machine's clock right?",
                "expires",
            )


def _check_same_bins(before: Holding, after: Holding) -> Delegation | None:
    """Return the keys of the bins; new ones are not taken by anybody's word.

    Who names a stranger's key for a bin gives the releases in it away.
    """
    was = before.roles[before.publisher].signed.delegations if before.roles else None
    now = after.roles[after.publisher].signed.delegations
    if now != was:
        raise UsageError(
            "this release says anew by whose keys bins are signed, which is to be compared with "
            "the catalog: give its root (--root)"
        )
    if now is None or now.succinct_roles is None:
        return None
    return Delegation(
        {keyid: now.keys[keyid] for keyid in now.succinct_roles.keyids if keyid in now.keys},
        now.succinct_roles.threshold,
    )


def _targets(holding: Holding, role: str) -> object:
    return holding.roles[role].signed.targets if role in holding.roles else None
