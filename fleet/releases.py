"""The rules by which a publisher's next metadata follows from the last; pure.

See `fleet.catalog` for the list. Signatures are checked there, before these.
"""

from datetime import datetime
from typing import Final

from tuf.api.metadata import TargetFile, Targets

from skerry.bundle import Bundle
from skerry.custom import catalog_target
from skerry.errors import ConflictError, TrustError
from skerry.trust import CatalogTarget, parse_target, target_path

__all__ = ["check_release", "publisher_of", "releases_of"]

MAX_RELEASES: Final = 2000  # keeps the metadata of one publisher below 1 MiB


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


def releases_of(targets: Targets) -> dict[str, CatalogTarget]:
    """Return the releases that a publisher's metadata names, by path.

    Raises:
        TrustError: a target is not as Skerry signs it.
    """
    return {path: _release(target) for path, target in targets.targets.items()}


def check_release(
    publisher: str, new: Targets, old: Targets, bundle: Bundle, now: datetime
) -> CatalogTarget:
    """Check that metadata follows from the last and releases this bundle; return the release.

    Args:
        publisher: whose keys signed it.
        new: the metadata that is offered.
        old: the last that was accepted; version 0 without targets for none. May be `new` itself.
        bundle: whose release is wanted.
        now: aware UTC.

    Raises:
        TrustError: with a `code` that names the rule.
        ConflictError: its version is not the next one.
    """
    _check_version(new, old)
    if new.is_expired(now):
        raise TrustError(
            f"the metadata expired on {new.expires:%Y-%m-%d}; sign it again", "expired"
        )
    if new.delegations is not None:
        raise TrustError(f"expected no delegations by {publisher}", "delegation")
    if len(new.targets) > MAX_RELEASES:
        raise TrustError(f"expected at most {MAX_RELEASES} releases of {publisher}", "too_many")
    for path in new.targets:
        if parse_target(path).publisher != publisher:
            raise TrustError(f"{path[:120]} is not {publisher}'s to release", "outside_path")
    for path, target in old.targets.items():
        if path not in new.targets or new.targets[path].to_dict() != target.to_dict():
            raise TrustError(
                f"{path} was released and cannot be changed or taken out; "
                "give the model a new version",
                "release_changed",
            )
    manifest = bundle.manifest
    wanted = target_path(publisher, manifest.model, manifest.model_version)
    strangers = set(new.targets) - set(old.targets) - {wanted}
    if wanted not in new.targets or strangers:
        raise TrustError(
            f"expected metadata that releases {wanted}, the bundle that came with it, "
            f"and no other; it releases {min(strangers, default='nothing new')}",
            "wrong_bundle",
        )
    release = _release(new.targets[wanted])
    if (release.length, "sha256:" + release.sha256) != (len(bundle.oci), bundle.digest):
        raise TrustError(
            f"expected bundle sha256:{release.sha256}, got {bundle.digest}; "
            "sign the bundle that you publish",
            "wrong_bundle",
        )
    if wanted not in old.targets:
        _check_order(release, releases_of(old), bundle)
    return release


def _check_version(new: Targets, old: Targets) -> None:
    if new is not old and new.version != old.version + 1:
        raise ConflictError(
            f"expected version {old.version + 1} of the publisher's metadata, got {new.version}; "
            "sign again on the fleet's latest"
        )


def _check_order(release: CatalogTarget, known: dict[str, CatalogTarget], bundle: Bundle) -> None:
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


def _release(target: TargetFile) -> CatalogTarget:
    return catalog_target(target.path, target.length, target.hashes, target.custom)
