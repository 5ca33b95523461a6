"""What a device must remember of its updates, and what follows from it.

The state is one value in MessagePack. `doing` says what a slot is busy with, and each
such activity has one effect, which may be carried out again (`pending`).
"""

from enum import StrEnum
from typing import Final

import msgspec

from agent.facts import (
    Activate,
    Discard,
    Download,
    EffectItem,
    Observe,
    Release,
    Report,
    RollBack,
    Stage,
    Verify,
    Wait,
)
from skerry.profile import Inventory
from skerry.states import ASSIGNMENT_WAITS, AssignmentState
from skerry.trials import ShadowReport, Trial
from skerry.trust import Floor
from skerry.wire import AssignmentReport, LiveStats, Reported, SlotDesired, Step

__all__ = [
    "CANDIDATE_SERVES",
    "Doing",
    "Ended",
    "Ending",
    "Host",
    "Slot",
    "State",
    "Work",
    "assignment_report",
    "doing",
    "effect_of",
    "kept_bundles",
    "name_of",
    "pending",
    "reported",
    "serving",
]

_A = AssignmentState
WAITS: Final = frozenset(state.value for state in ASSIGNMENT_WAITS)


class Doing(StrEnum):
    """What a slot is busy with; each but `IDLE` is one effect that may be repeated."""

    IDLE = "idle"
    VERIFYING = "verifying"
    DOWNLOADING = "downloading"
    STAGING = "staging"
    WAITING = "waiting"
    ACTIVATING = "activating"
    PROBATION = "probation"
    ROLLING_BACK = "rolling_back"


class Host(msgspec.Struct, frozen=True):
    """What the trust checks must know of this device."""

    device_id: str
    hw_class: str
    agent: str  # its version, such as 0.1.0


class Ending(msgspec.Struct, frozen=True):
    """How an assignment will end once the slot has returned."""

    state: AssignmentState
    code: str
    message: str


class Work(msgspec.Struct, frozen=True, omit_defaults=True):
    """The assignment under way in a slot."""

    want: SlotDesired
    path: list[Step]
    release: Release | None = None  # what is being installed, once it is verified
    variants: list[str] = []  # still to be tried, best first
    trials: list[Trial] = []  # what was measured of them
    shadow: ShadowReport | None = None  # what the candidate did beside what serves
    before: LiveStats | None = None  # what the committed release did until it was activated
    crashes: int = 0  # of serve or of the whole agent, since it was activated
    ending: Ending | None = None  # set while the slot returns to what was committed
    note: str = ""  # code of what keeps it from getting on, which is no failure
    note_message: str = ""

    @property
    def state(self) -> AssignmentState:
        """The assignment's state, as the fleet sees it."""
        return AssignmentState(self.path[-1].state)

    @property
    def since(self) -> float:
        """When it entered its state, Unix seconds."""
        return self.path[-1].at

    def spent_s(self, now: float) -> float:
        """Return for how long it has been under way, without what it waited for leave."""
        ends = [step.at for step in self.path[1:]] + [now]
        waited = sum(
            end - step.at for step, end in zip(self.path, ends, strict=True) if step.state in WAITS
        )
        return now - self.path[0].at - waited


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot: what is committed, what was before, what is under way, what comes next."""

    name: str
    current: Release | None = None
    previous: Release | None = None
    good: Release | None = None  # the last that served for a good while without a crash
    work: Work | None = None
    next: SlotDesired | None = None  # begins when the slot has returned
    begun: str = ""  # the last assignment ever begun, with its attempt


class Ended(msgspec.Struct, frozen=True):
    """The last word on an assignment, and the `reported` version that first says it."""

    version: int
    report: AssignmentReport


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that must outlive a crash, in MessagePack (`canonical.to_msgpack`)."""

    host: Host
    desired_version: int = 0
    desired_key: str = ""  # id of the message key that signed it
    director: dict[str, bytes] = {}  # metadata that came with this desired
    slots: dict[str, Slot] = {}
    floor: Floor = Floor()
    until: dict[str, float] = {}  # by repository: when the timestamp last verified expires
    reported_version: int = 0
    acked_version: int = 0  # of `reported`
    ended: list[Ended] = []


def name_of(want: SlotDesired) -> str:
    """Return the name under which an assignment is begun at most once per attempt."""
    return f"{want.assignment_id}#{want.attempt}"


def doing(slot: Slot) -> Doing:
    """Return what a slot is busy with."""
    if slot.work is None:
        return Doing.IDLE
    return Doing.ROLLING_BACK if slot.work.ending else _DOING[slot.work.state]


_DOING: Final = {
    _A.NOTIFIED: Doing.VERIFYING,
    _A.DOWNLOADING: Doing.DOWNLOADING,
    _A.VERIFIED: Doing.STAGING,
    _A.WAITING_WINDOW: Doing.WAITING,
    _A.WAITING_CONSENT: Doing.WAITING,
    _A.ACTIVATING: Doing.ACTIVATING,
    _A.PROBATION: Doing.PROBATION,
}
CANDIDATE_SERVES: Final = frozenset({Doing.ACTIVATING, Doing.PROBATION})


def serving(state: State) -> dict[str, Release]:
    """Return what shall serve now, by slot: the committed release, or the candidate."""
    found: dict[str, Release] = {}
    for name, slot in sorted(state.slots.items()):
        candidate = slot.work.release if slot.work and doing(slot) in CANDIDATE_SERVES else None
        release = candidate or slot.current
        if release is not None:
            found[name] = release
    return found


def reported(state: State, inventory: Inventory) -> Reported:
    """Return what the device says of itself to its fleet."""
    under_way = [assignment_report(slot, slot.work) for slot in state.slots.values() if slot.work]
    return Reported(
        version=state.reported_version,
        slots={name: release.ref for name, release in serving(state).items()},
        assignments=[ended.report for ended in state.ended] + under_way,
        inventory=inventory,
        desired_version=state.desired_version,
    )


def pending(state: State) -> list[EffectItem]:
    """Return the effects of a saved state; each of them may have been carried out already."""
    effects: list[EffectItem] = []
    for _, slot in sorted(state.slots.items()):
        effect = effect_of(state, slot)
        if effect is not None:
            effects.append(effect)
    effects.append(Discard(kept_bundles(state)))
    if state.reported_version > state.acked_version:
        effects.append(Report(state.reported_version))
    return effects


def effect_of(state: State, slot: Slot) -> EffectItem | None:
    """Return the effect of what a slot is busy with."""
    work = slot.work
    if work is None:
        return None
    name, key, release = slot.name, work.want.assignment_id, work.release
    match doing(slot):
        case Doing.VERIFYING:
            return Verify(name, key, work.want, state.director)
        case Doing.ROLLING_BACK:
            return RollBack(name, key, slot.current)
    if release is None:
        return None
    match doing(slot):
        case Doing.DOWNLOADING:
            return Download(name, key, release)
        case Doing.STAGING:
            return Stage(name, key, release, work.variants[0], work.variants[1:])
        case Doing.WAITING:
            return Wait(name, key, work.want)
        case Doing.ACTIVATING:
            return Activate(name, key, release)
        case Doing.PROBATION:
            return Observe(name, key, work.want.probation)
    return None


def assignment_report(slot: Slot, work: Work) -> AssignmentReport:
    """Return where an assignment stands, as the fleet is told."""
    variant = work.release.ref.variant if work.release else ""
    return AssignmentReport(
        assignment_id=work.want.assignment_id,
        slot=slot.name,
        state=work.state.value,
        path=work.path,
        variant=variant or None,
        code=work.note or None,
        message=work.note_message or None,
        trials=work.trials,
        shadow=work.shadow,
    )


def kept_bundles(state: State) -> list[str]:
    """Return the bundles that a slot still needs."""
    releases = (
        release
        for slot in state.slots.values()
        for release in (
            slot.current, slot.previous, slot.good, slot.work.release if slot.work else None
        )
    )  # fmt: skip
    return sorted({release.ref.bundle for release in releases if release is not None})
