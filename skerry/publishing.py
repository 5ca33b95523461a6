"""The rules by which what a publisher releases follows from what it had released; pure.

1. Its role is one version higher than the last, each of its bins is as it was or one higher, and
   none has expired.
2. It delegates to nobody but its own bins, by its own keys, and each release lies in its bin.
3. Every release lies under ``models/<publisher>/``.
4. Every release that was there is there unchanged, wherever it lies: what is released stays as it is.
5. At most one release is new: the bundle's, by length and digest; its counter is higher than any of
   its model, it may fall back only to earlier releases of that model, and its patches make files of
   its own variants.

The fleet asks them before it accepts, and so does each who adds a signature. Signatures are checked
by the caller.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from tuf.api.metadata import Targets

from skerry.bundle import Bundle
from skerry.errors import ConflictError, TrustError
from skerry.holding import Delegation, Holding
from skerry.trust import CatalogTarget, parse_target, target_path

__all__ = ["check_release", "publisher_of"]

MAX_IN_A_ROLE: Final = 2000  # releases; keeps a role below 1 MiB
MAX_RELEASES: Final = 20_000


def publisher_of(targets: Targets) -> str:
    """Return whose metadata this is, by its targets' paths.

    Raises:
        TrustError: it has no target, or targets of several publishers.
    """
    names = {parse_target(path).publisher for path in targets.targets}
    if len(names) != 1:
        raise TrustError(
            f"expected releases of one publisher, got those of {', '.join(sorted(names)) or 'none'}",
            "outside_path",
        )
    return names.pop()


def check_release(
    new: Holding, old: Holding, delegation: Delegation, bundle: Bundle, now: datetime
) -> CatalogTarget:
    """Check that metadata follows from the last and releases this bundle; return the release.

    Args:
        new: what is offered, as it would be with everything that does not change.
        old: the last that was accepted. May be `new` itself.
        delegation: the publisher's keys.
        bundle: whose release is wanted.
        now: aware UTC.

    Raises:
        TrustError: with a `code` that names the rule.
        ConflictError: its version is not the next one.
    """
    if new is not old:
        _check_versions(new, old)
    for name, metadata in new.roles.items():
        if metadata.signed.is_expired(now):
            raise TrustError(
                f"{name}'s metadata expired on {metadata.signed.expires:%Y-%m-%d}; sign it again",
                "expired",
            )
    new.check_shape(delegation)
    _check_paths(new, old)
    manifest = bundle.manifest
    wanted = target_path(new.publisher, manifest.model, manifest.model_version)
    strangers = set(new.targets) - set(old.targets) - {wanted}
    if wanted not in new.targets or strangers:
        raise TrustError(
            f"expected metadata that releases {wanted}, the bundle that came with it, "
            f"and no other; it releases {min(strangers, default='nothing new')}",
            "wrong_bundle",
        )
    release = new.releases[wanted]
    if (release.length, "sha256:" + release.sha256) != (len(bundle.oci), bundle.digest):
        raise TrustError(
            f"expected bundle sha256:{release.sha256}, got {bundle.digest}; "
            "sign the bundle that you publish",
            "wrong_bundle",
        )
    if wanted not in old.targets:
        _check_order(release, old.releases, bundle)
    return release


def _check_versions(new: Holding, old: Holding) -> None:
    _check_next(new.publisher, new, old)
    for name, metadata in new.roles.items():
        last = old.roles.get(name)
        if last is not metadata and (last is None or last.to_dict() != metadata.to_dict()):
            _check_next(name, new, old)


def _check_next(name: str, new: Holding, old: Holding) -> None:
    last = old.roles[name].signed.version if name in old.roles else 0
    got = new.roles[name].signed.version
    if got != last + 1:
        raise ConflictError(
            f"expected version {last + 1} of {name}'s metadata, got {got}: somebody published in "
            "between, or this was never published; sign again on the fleet's latest"
        )


def _check_paths(new: Holding, old: Holding) -> None:
    largest = max(len(metadata.signed.targets) for metadata in new.roles.values())
    if largest > MAX_IN_A_ROLE or len(new.targets) > MAX_RELEASES:
        raise TrustError(
            f"expected at most {MAX_IN_A_ROLE} releases in a role and {MAX_RELEASES} of a publisher",
            "too_many",
        )
    for path in new.targets:
        if parse_target(path).publisher != new.publisher:
            raise TrustError(f"{path[:120]} is not {new.publisher}'s to release", "outside_path")
    for path, target in old.targets.items():
        if path not in new.targets or new.targets[path].to_dict() != target.to_dict():
            raise TrustError(
                f"{path} was released and cannot be changed or taken out; "
                "give the model a new version",
                "release_changed",
            )


def _check_order(
    release: CatalogTarget, known: Mapping[str, CatalogTarget], bundle: Bundle
) -> None:
    model = bundle.manifest.model
    earlier = [target for path, target in known.items() if parse_target(path).model == model]
    highest = max((target.release_counter for target in earlier), default=0)
    if release.release_counter <= highest:
        raise TrustError(
            f"expected a release counter above {highest} for {model}, "
            f"got {release.release_counter}",
            "release_counter",
        )
    digests = {"sha256:" + target.sha256 for target in earlier}
    if set(release.may_fall_back_to) - digests:
        raise TrustError(
            f"{release.path} may fall back only to earlier releases of {model}", "fall_back"
        )
    needed = {name for variant in bundle.manifest.variants for name in variant.hw_classes}
    if not set(release.hw_classes) <= needed:
        raise TrustError(
            f"expected hardware classes of the bundle ({', '.join(sorted(needed))}), "
            f"got {', '.join(release.hw_classes)}",
            "hw_classes",
        )
    sizes = {v.file.digest: v.file.size_bytes for v in bundle.manifest.variants}
    for patch in release.patches:
        if patch.size_bytes >= sizes.get(patch.new, 0) or patch.old == patch.new:
            raise TrustError(
                f"expected patches that make a variant of {release.path} and are smaller than it, "
                f"got one of {patch.size_bytes} bytes to {patch.new}; sign the release again",
                "patches",
            )
