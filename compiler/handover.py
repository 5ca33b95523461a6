"""What a signer learns of the catalog: from a fleet, or from the file that another signer handed over.

A delegation that was verified from a trusted root can be relied on; any other is somebody's word.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from compiler.believe import Trust, parse_targets
from skerry.errors import FormatError, TrustError
from skerry.holding import Delegation, Holding
from skerry.release_file import MAX_ROOTS, ReleaseFile

__all__ = [
    "CATALOG",
    "as_current",
    "count_signatures",
    "fetch_release_file",
    "progress",
    "trust_in",
    "verify_delegations",
]

CATALOG: Final = "/tuf/catalog/metadata/"

Fetch = Callable[[str], bytes | None]  # a URL's body, None for 404; raises UnreachableError


def fetch_release_file(publisher: str, base_url: str, fetch: Fetch) -> ReleaseFile:
    """Return what a fleet has of a publisher: its roles as `before`, and the catalog's delegations.

    Args:
        publisher: whose.
        base_url: where the metadata files are.
        fetch: gets a URL.

    Raises:
        FormatError: it is no metadata.
        TrustError: the publisher delegates to others than its bins.
        UnreachableError: no answer.
    """
    before = {}
    own = fetch(f"{base_url}{publisher}.json")
    if own is not None:
        before[publisher] = own
        bins = Holding(publisher, {publisher: parse_targets(own)}).bins
        for name in bins.get_roles() if bins is not None else ():
            data = fetch(f"{base_url}{name}.json")
            if data is not None:
                before[name] = data
    roots: list[bytes] = []
    while len(roots) < MAX_ROOTS and (root := fetch(f"{base_url}{len(roots) + 2}.root.json")):
        roots.append(root)
    return ReleaseFile(publisher, {}, before, roots, fetch(f"{base_url}targets.json"))


def as_current(file: ReleaseFile, publisher: str) -> ReleaseFile:
    """Return a release file as what the next release starts from: what was signed is `before` now.

    Raises:
        FormatError: it is another publisher's.
    """
    if not file.publisher:
        return ReleaseFile(publisher, {}, {publisher: file.metadata[""]})
    if file.publisher != publisher:
        raise FormatError(f"expected metadata of {publisher}, got {file.publisher[:64]}'s")
    return replace(file, metadata={}, before={**file.before, **file.metadata})


def count_signatures(file: ReleaseFile) -> tuple[int, int | None]:
    """Return how many keys signed all of a release, and how many it takes as far as the file says."""
    if file.targets is None:
        roles = [parse_targets(data) for data in file.metadata.values()]
        return len(set.intersection(*(set(role.signatures) for role in roles))), None
    delegation = Delegation.of(parse_targets(file.targets).signed, file.publisher)
    every = [delegation.signed_by(parse_targets(data)) for data in file.metadata.values()]
    return len(set.intersection(*every)), delegation.threshold


def progress(file: ReleaseFile, bundle: Path, out: Path) -> str:
    """Say how many signatures a release has, and what comes next."""
    count, needed = count_signatures(file)
    if needed is None:
        plural = "" if count == 1 else "s"
        return f"{count} signature{plural}; how many it takes, the fleet says: skerry publish"
    if count >= needed:
        return f"{count} of {needed} signatures; next: skerry publish {bundle} {out}"
    return (
        f"{count} of {needed} signatures; next: give {out} and {bundle} to somebody else who signs "
        f"for {file.publisher}: skerry sign {bundle.name} --add {out.name} --key KEY --root ROOT "
        f"--out {out.name}"
    )


def trust_in(file: ReleaseFile, *, root: bytes | None, keys: Iterable[Key], now: datetime) -> Trust:
    """Return by which keys the metadata in a release file is believed.

    Args:
        file: from a fleet or from another signer.
        root: the catalog's root that the caller trusts; without one the delegation in the file
            stays somebody's word.
        keys: of this publisher, by the caller's word.
        now: aware UTC.

    Raises:
        FormatError: the catalog's metadata in it is none.
        TrustError: it does not follow from the root, or names no such publisher.
    """
    trusted = tuple(keys)
    if file.targets is None:
        if root is not None:
            raise TrustError(
                "expected the catalog's delegations, to be verified from the root; whoever begins "
                "the release gives --fleet",
                "no_delegation",
            )
        return Trust(keys=trusted)
    if root is None:
        targets = parse_targets(file.targets).signed
    else:
        targets = verify_delegations(root, file.roots, file.targets, now)
    delegation = Delegation.of(targets, file.publisher)
    return Trust(delegation, is_verified=root is not None, keys=trusted)


def verify_delegations(
    root: bytes, later: Iterable[bytes], targets: bytes, now: datetime
) -> Targets:
    """Return the catalog's targets, once they are verified from a trusted root.

    That nothing newer exists cannot be told without a network: that is for the fleet to refuse.

    Args:
        root: trusted.
        later: further roots in order; those that are not later than `root` are passed over.
        targets: the catalog's targets metadata.
        now: aware UTC.

    Raises:
        FormatError: not such metadata.
        TrustError: not signed as the root demands, or expired.
    """
    trusted = _root(root)
    try:
        for data in later:
            metadata = _root_metadata(data)
            if metadata.signed.version <= trusted.version:
                continue
            if metadata.signed.version != trusted.version + 1:
                raise TrustError(f"expected root {trusted.version + 1}", "root_version")
            for delegator in (trusted, metadata.signed):
                delegator.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
            trusted = metadata.signed
        top = parse_targets(targets)
        trusted.verify_delegate(Targets.type, top.signed_bytes, top.signatures)
    except (RepositoryError, ValueError) as error:
        raise TrustError(
            f"the catalog's delegations do not follow from the root that you trust: {error}"
        ) from None
    for role in (trusted, top.signed):
        if role.is_expired(now):
            raise TrustError(
                f"the catalog's {role.type} expired on {role.expires:%Y-%m-%d}; the holders of the "
                "root keys must sign it again",
                "expired",
            )
    return top.signed


def _root(data: bytes) -> Root:
    return _root_metadata(data).signed


def _root_metadata(data: bytes) -> Metadata[Root]:
    try:
        metadata = Metadata[Root].from_bytes(data)
    except (DeserializationError, RecursionError, ValueError) as error:
        raise FormatError(f"expected a catalog's root metadata: {error}") from None
    if not isinstance(metadata.signed, Root):
        raise FormatError(f"expected root metadata, got {metadata.signed.type}")
    return metadata
