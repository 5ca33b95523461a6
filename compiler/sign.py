"""Signing: a publisher's TUF role metadata, with one release more.

    models/<publisher>/<model>@<version>   length and sha256 of the bundle's OCI manifest
      custom.release_counter      per model, one higher than the last: what devices compare
      custom.hw_classes           where any of its variants runs
      custom.min_agent            the oldest agent that can run one
      custom.may_fall_back_to     digests of the newest earlier releases of this model
      custom.patches              what makes one of its files of an earlier one's, by digest

Above 300 releases they move into bins (`skerry.holding`): from then on a release changes one bin
and the publisher's role, whose version counts the releases. Bins that are about to expire are signed
anew with whatever is signed next.

The fleet hands out the current metadata, and the fleet is not trusted: it is signed again only if
this publisher had signed it before, so that nobody can slip a target into what a publisher signs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from securesystemslib.signer import CryptoSigner
from securesystemslib.signer import Signer as TufSigner
from tuf.api.metadata import Metadata, TargetFile, Targets

from compiler.believe import (
    Trust,
    check_current,
    check_own,
    parse_holding,
    parse_targets,
    to_bytes,
)
from skerry.bundle import Bundle
from skerry.canonical import sha256
from skerry.custom import catalog_custom
from skerry.errors import ConflictError, UsageError
from skerry.holding import SPLIT_ABOVE, Delegation, Holding
from skerry.io.signers import add_signature
from skerry.keys import Signer
from skerry.profile import ANY_CLASS
from skerry.trust import CatalogTarget, PatchRef, parse_target, target_path

__all__ = [
    "VALID",
    "Release",
    "add_release",
    "next_release",
    "release_of",
    "target_file",
    "tuf_signer",
]

VALID: Final = timedelta(days=90)
RENEW_BEFORE: Final = timedelta(days=45)
FALL_BACKS: Final = 4
ONLY_OWN: Final = Trust()  # no key but the one that signs


@dataclass(frozen=True, slots=True)
class Release:
    """What a publisher says of one bundle."""

    path: str
    length: int
    sha256: str  # 64 hex digits
    hw_classes: list[str]
    min_agent: str
    patches: tuple[PatchRef, ...] = ()


def release_of(bundle: Bundle, publisher: str) -> Release:
    """Return what is to be signed of a bundle.

    Raises:
        UsageError: the publisher's name has a wrong form.
    """
    manifest = bundle.manifest
    classes = {c for variant in manifest.variants for c in variant.hw_classes}
    agents = [variant.min_agent for variant in manifest.variants]
    return Release(
        path=target_path(publisher, manifest.model, manifest.model_version),
        length=len(bundle.oci),
        sha256=sha256(bundle.oci).removeprefix("sha256:"),
        hw_classes=[ANY_CLASS] if ANY_CLASS in classes else sorted(classes),
        min_agent=min(agents, key=_version),
    )


def add_release(
    current: Mapping[str, bytes],
    release: Release,
    signer: TufSigner | Signer,
    *,
    now: datetime,
    trust: Trust = ONLY_OWN,
) -> dict[str, bytes]:
    """Return the publisher's metadata with a release added, one version higher, signed.

    A release that is in it already, with the same digest, is signed anew and keeps its
    counter.

    Args:
        current: all of the publisher's roles as the fleet has them, by name; empty for the
            first release.
        release: from `release_of`.
        signer: one of the publisher's keys.
        now: aware UTC.
        trust: by which keys the current metadata is believed, besides by this one.

    Returns:
        The roles that change, by name; the publisher's own first.

    Raises:
        ConflictError: this version was released with another digest.
        FormatError: the current metadata is none.
        TrustError: the current metadata was not signed by this publisher.
        UsageError: bins are due, and by whose keys is not certain.
    """
    key = tuf_signer(signer)
    publisher = parse_target(release.path).publisher
    before = parse_holding(publisher, current)
    check_own(publisher, key.public_key, trust)
    check_current(before, trust, key.public_key)
    known = before.releases
    if release.path in known and known[release.path].sha256 != release.sha256:
        raise ConflictError(
            f"{release.path} was released already, with another digest; "
            "give the model a new version"
        )
    draft = _Draft(before, now)
    speakers = trust.for_bins(key.public_key)
    if speakers is not None:
        draft.delegate_bins(speakers)
    if release.path not in known:
        draft.add(target_file(next_release(release, known)), speakers)
    changed = draft.changed()
    for metadata in changed.values():
        add_signature(metadata, key)
    return {name: to_bytes(metadata) for name, metadata in changed.items()}


class _Draft:
    """A publisher's next metadata in the making."""

    def __init__(self, before: Holding, now: datetime) -> None:
        self._publisher = before.publisher
        self._now = now
        copies = {name: parse_targets(to_bytes(role)) for name, role in before.roles.items()}
        self._roles = copies or {before.publisher: self._empty()}
        self._touched = {before.publisher} | {
            name for name, role in copies.items() if role.signed.expires - now < RENEW_BEFORE
        }

    @property
    def _own(self) -> Targets:
        return self._roles[self._publisher].signed

    def delegate_bins(self, delegation: Delegation) -> None:
        """Let the publisher's present keys speak for its bins."""
        delegations = self._own.delegations
        if delegations is not None and not delegation.is_of_bins(delegations):
            assert delegations.succinct_roles is not None
            renewed = delegation.bins(self._publisher)
            assert renewed.succinct_roles is not None
            renewed.succinct_roles.bit_length = delegations.succinct_roles.bit_length
            self._own.delegations = renewed
            self._touched |= set(self._roles)

    def add(self, target: TargetFile, delegation: Delegation | None) -> None:
        """Add a release where it belongs."""
        if self._own.delegations is None and len(self._own.targets) >= SPLIT_ABOVE:
            self._split(delegation)
        role = self._role_of(target.path)
        self._roles[role].signed.targets[target.path] = target
        self._touched.add(role)

    def changed(self) -> dict[str, Metadata[Targets]]:
        """Return what is to be signed, each one version higher."""
        for name in self._touched:
            self._roles[name].signed.version += 1
            self._roles[name].signed.expires = (self._now + VALID).replace(microsecond=0)
        return {name: role for name, role in self._roles.items() if name in self._touched}

    def _split(self, delegation: Delegation | None) -> None:
        if delegation is None:
            raise UsageError(
                f"{self._publisher} has {SPLIT_ABOVE} releases, and the next moves them into bins, "
                "for which its keys and threshold must be known for certain: give --fleet and --root"
            )
        targets, self._own.targets = self._own.targets, {}
        self._own.delegations = delegation.bins(self._publisher)
        bins = self._own.delegations.succinct_roles
        assert bins is not None
        self._roles |= {name: self._empty() for name in bins.get_roles()}
        for path, target in targets.items():
            self._roles[self._role_of(path)].signed.targets[path] = target
        self._touched = set(self._roles)

    def _role_of(self, path: str) -> str:
        delegations = self._own.delegations
        if delegations is None or delegations.succinct_roles is None:
            return self._publisher
        return delegations.succinct_roles.get_role_for_target(path)

    def _empty(self) -> Metadata[Targets]:
        role = Targets(version=1, expires=self._now)
        role.version = 0  # raised before it is signed; the constructor takes none below 1
        return Metadata(role)


def target_file(release: CatalogTarget) -> TargetFile:
    """Return a release as TUF states it."""
    custom = {"custom": catalog_custom(release)}
    return TargetFile(release.length, {"sha256": release.sha256}, release.path, custom)


def tuf_signer(signer: TufSigner | Signer) -> TufSigner:
    """Return a key of ours as python-tuf signs with it."""
    return CryptoSigner(signer.private_key) if isinstance(signer, Signer) else signer


def next_release(release: Release, known: Mapping[str, CatalogTarget]) -> CatalogTarget:
    """Return a release with its counter, and with what it may fall back to.

    Args:
        release: of a bundle.
        known: every release of this publisher, by path.
    """
    model = parse_target(release.path).model
    earlier = [target for path, target in known.items() if parse_target(path).model == model]
    earlier.sort(key=lambda target: target.release_counter, reverse=True)
    return CatalogTarget(
        path=release.path,
        length=release.length,
        sha256=release.sha256,
        release_counter=earlier[0].release_counter + 1 if earlier else 1,
        hw_classes=release.hw_classes,
        min_agent=release.min_agent,
        may_fall_back_to=["sha256:" + target.sha256 for target in earlier[:FALL_BACKS]],
        patches=list(release.patches),
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
