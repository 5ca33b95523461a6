"""What a publisher offers to the catalog: read, and checked against what the catalog has.

See `fleet.catalog` for the rules; those that need no signature are `skerry.publishing`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tuf.api.metadata import Metadata, Targets

from fleet.roles import check_signed, parse
from skerry.bundle import Bundle
from skerry.errors import TrustError
from skerry.holding import Delegation, Holding
from skerry.publishing import check_release, publisher_of
from skerry.release_file import read_release_file
from skerry.trust import CatalogTarget, parse_target

__all__ = ["Acceptance", "Offer", "check_offer", "read_offer"]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A release that the catalog holds; `new` is False where it had it already."""

    publisher: str
    target: CatalogTarget
    new: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """A publisher's new metadata: its own role, and those of its bins that change."""

    publisher: str
    files: dict[str, bytes]  # by role
    roles: dict[str, Metadata[Targets]]


def read_offer(data: bytes) -> Offer:
    """Read a release file or a publisher's plain metadata.

    Raises:
        FormatError: neither.
        TrustError: plain metadata with releases of nobody, or of several publishers.
    """
    file = read_release_file(data)
    what = "a publisher's metadata"
    roles = {name: parse(role, Targets, what) for name, role in file.metadata.items()}
    if file.publisher:
        return Offer(file.publisher, file.metadata, roles)
    publisher = publisher_of(roles[""].signed)
    return Offer(publisher, {publisher: data}, {publisher: roles[""]})


def check_offer(
    offer: Offer,
    targets: Targets,
    holdings: Mapping[str, Holding],
    bundle: Bundle,
    now: datetime,
) -> tuple[Acceptance, Holding]:
    """Check an offer and the bundle that it releases; return the publisher's holding with it.

    Args:
        offer: from `read_offer`.
        targets: the catalog's, with its delegations.
        holdings: what publishers have released so far.
        bundle: as `read_bundle` returned it.
        now: aware UTC.

    Raises:
        TrustError: with a `code` that names the rule.
        ConflictError: somebody released in between; sign again on the latest metadata.
    """
    publisher = offer.publisher
    check_signed(targets, publisher, offer.roles[publisher])
    delegation = Delegation.of(targets, publisher)
    _check_owner(publisher, bundle.manifest.model, holdings)
    old = holdings.get(publisher, Holding(publisher, {}))
    if all(_same(old.roles.get(name), role) for name, role in offer.roles.items()):
        # the same request again: its answer was lost
        target = check_release(old, old, delegation, bundle, now)
        return Acceptance(publisher, target, new=False), old
    new = old.with_roles(offer.roles)
    target = check_release(new, old, delegation, bundle, now)
    check_bins(new)
    return Acceptance(publisher, target, new=target.path not in old.targets), new


def check_bins(holding: Holding) -> None:
    """Check that enough of the publisher's keys signed each of its bins.

    Raises:
        TrustError: too few did.
    """
    for name, metadata in holding.roles.items():
        if name != holding.publisher:
            check_signed(holding.roles[holding.publisher].signed, name, metadata)


def _same(one: Metadata[Targets] | None, other: Metadata[Targets]) -> bool:
    return one is not None and one.to_dict() == other.to_dict()


def _check_owner(publisher: str, model: str, holdings: Mapping[str, Holding]) -> None:
    for name, holding in holdings.items():
        models = {parse_target(path).model for path in holding.targets}
        if name != publisher and model in models:
            raise TrustError(
                f"expected {model} from {name}, who released it first, got it from "
                f"{publisher}; give the model another name",
                "model_taken",
            )
