"""Trust checks of our own, which TUF alone does not make (research: Uptane, measured).

TUF accepts another device's assignment, an ordered downgrade, and a replay after
lost files. So a device runs a bundle only if, besides valid metadata,

1. the director's assignment names this device, this slot and the expected rollout,
2. director and catalog agree on the target's length and digest,
3. the target is made for this hardware and this agent,
4. its release counter is not below the durable floor, unless it is a wanted
   rollback: the release in the other slot, or one that the running release's
   catalog entry lists in `may_fall_back_to`,
5. the metadata versions are not below the durable floors, which only a new root resets.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from skerry.errors import TrustError
from skerry.ids import ID_PATTERN, check_id, check_version
from skerry.profile import ANY_CLASS

__all__ = [
    "CatalogTarget",
    "DirectorTarget",
    "Floor",
    "PatchRef",
    "SignedTime",
    "TargetPath",
    "Verified",
    "check_assignment",
    "check_floor",
    "parse_target",
    "standing_floor",
    "standing_times",
    "target_path",
]

_TARGET: Final = re.compile(
    rf"models/(?P<publisher>{ID_PATTERN})/(?P<model>{ID_PATTERN})@(?P<version>[0-9a-z.\-]{{5,64}})"
)


class TargetPath(msgspec.Struct, frozen=True):
    """The parts of ``models/<publisher>/<model>@<version>``."""

    publisher: str
    model: str
    model_version: str


class PatchRef(msgspec.Struct, frozen=True, rename={"old": "from", "new": "to"}):
    """A patch that a release comes with: it makes one of its files of an earlier one's.

    What it makes is held against `new` like any file of a bundle: a patch can save bytes, and
    bring nothing in. Digests are ``sha256:...``.
    """

    old: str
    new: str
    digest: str
    size_bytes: int


class CatalogTarget(msgspec.Struct, frozen=True, omit_defaults=True):
    """A release as the catalog states it: `length` and `sha256` of its OCI manifest."""

    path: str
    length: int
    sha256: str  # 64 hex digits
    release_counter: int
    hw_classes: list[str]
    min_agent: str
    may_fall_back_to: list[str] = []  # digests sha256:...
    patches: list[PatchRef] = []


class DirectorTarget(msgspec.Struct, frozen=True):
    """An assignment as the director states it."""

    path: str
    length: int
    sha256: str
    device: str
    slot: str
    rollout: str
    nonce: str  # the assignment id


class Floor(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device will not go below, kept durably: it outlives lost files."""

    metadata: dict[str, int] = {}  # "catalog/timestamp", "director/targets", ... -> version
    releases: dict[str, int] = {}  # slot -> release counter of what was committed
    time: float = 0.0  # Unix seconds
    time_key: str = ""  # id of the message key that signed it


class SignedTime(msgspec.Struct, frozen=True):
    """It is at least this late, by a message key of the fleet."""

    at: float  # Unix seconds
    key_id: str


class Verified(msgspec.Struct, frozen=True):
    """An assignment that passed every check."""

    bundle: str  # digest sha256:...
    length: int
    release_counter: int
    may_fall_back_to: list[str]
    metadata: dict[str, int]  # versions seen, to raise the floor with


def target_path(publisher: str, model: str, model_version: str) -> str:
    """Return the catalog's path of a release."""
    check_id(publisher, "publisher")
    return f"models/{publisher}/{check_id(model, 'model')}@{check_version(model_version)}"


def parse_target(path: str) -> TargetPath:
    """Return the parts of a target path.

    Raises:
        TrustError: not such a path.
    """
    match = _TARGET.fullmatch(path)
    if match is None:
        raise TrustError(f"expected models/<publisher>/<model>@<version>, got {path[:120]!r}",
                         "target_path")  # fmt: skip
    return TargetPath(match["publisher"], match["model"], match["version"])


def check_floor(floor: Mapping[str, int], seen: Mapping[str, int]) -> None:
    """Refuse metadata older than what this device has already accepted.

    Raises:
        TrustError: a version is below its floor (a replay, or files were lost).
    """
    standing = standing_floor(floor, seen)
    for name, version in seen.items():
        if version < standing.get(name, 0):
            raise TrustError(
                f"expected {name} version {standing[name]} or higher, got {version}: a replay",
                "metadata_below_floor",
            )


def standing_floor(floor: Mapping[str, int], seen: Mapping[str, int]) -> dict[str, int]:
    """Return the floors that still hold: under a newer root a repository's begin anew.

    Who stole an online key may have pushed versions so far that no honest one comes after them.
    The holders of the root keys end that with the next root, and nobody else can.
    """
    renewed = {
        name.removesuffix("root")
        for name, version in seen.items()
        if name.endswith("/root") and version > floor.get(name, version)
    }
    return {
        name: version
        for name, version in floor.items()
        if name.endswith("/root") or not name.startswith(tuple(renewed))
    }


def standing_times(signed: Sequence[SignedTime], keys: Collection[str]) -> list[SignedTime]:
    """Return the times that still hold under a newer director root: its keys signed them.

    Who stole a message key may have told a time so far ahead that all metadata has expired by it.
    The holders of the root keys end that too: what a revoked key has said is void.
    """
    return [time for time in signed if time.key_id in keys]


def check_assignment(
    assigned: DirectorTarget,
    released: CatalogTarget,
    *,
    device: str,
    slot: str,
    assignment_id: str,
    hw_class: str,
    agent_version: str,
    floor: int,
    fall_back_to: frozenset[str],
) -> None:
    """Refuse an assignment that TUF would let pass; rules 1 to 4 of this module.

    Args:
        assigned: the director's statement, from verified metadata.
        released: the catalog's statement, from verified metadata.
        device: this device.
        slot: the slot that is to change.
        assignment_id: what the signed `desired` names.
        hw_class: of this device.
        agent_version: such as ``0.1.0``.
        floor: release counter of the last committed release in this slot, 0 for none.
        fall_back_to: digests to which a return is wanted: the other slot's, and the
            running release's `may_fall_back_to`.

    Raises:
        TrustError: with a `code` that names the rule.
    """
    if assigned.device != device:
        raise TrustError(f"expected an assignment of {device}, got {assigned.device[:64]}'s",
                         "wrong_device")  # fmt: skip
    if assigned.slot != slot or assigned.nonce != assignment_id:
        raise TrustError(
            f"expected assignment {assignment_id} of slot {slot}, "
            f"got {assigned.nonce[:64]} of {assigned.slot[:64]}",
            "wrong_assignment",
        )
    same = (assigned.path, assigned.length, assigned.sha256) == (
        released.path, released.length, released.sha256,
    )  # fmt: skip
    if not same:
        raise TrustError(f"director and catalog disagree on {assigned.path[:120]}", "disagreement")
    if not any(c == ANY_CLASS or hw_class.startswith(c) for c in released.hw_classes):
        made_for = ", ".join(released.hw_classes)
        raise TrustError(f"made for {made_for}; this device is {hw_class}", "wrong_hardware")
    if _version(agent_version) < _version(released.min_agent):
        raise TrustError(f"needs agent {released.min_agent}, this is {agent_version}", "old_agent")
    digest = "sha256:" + released.sha256
    if released.release_counter < floor and digest not in fall_back_to:
        raise TrustError(
            f"expected release counter {floor} or higher, got {released.release_counter}, "
            "and the release is none that may be fallen back to",
            "release_below_floor",
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("-")[0].split("."))
