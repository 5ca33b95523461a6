"""Assignments for tests of the update machine, and a machine that runs in memory."""

from agent.device_state import Host, State
from agent.facts import (
    Activated,
    DesiredArrived,
    Downloaded,
    EffectItem,
    Event,
    ProbationObserved,
    RolledBack,
    Staged,
    Verified,
)
from agent.update import Machine
from skerry.trust import CatalogTarget, DirectorTarget
from skerry.wire import Desired, LiveStats, Probation, SlotDesired

NOW = 1_800_000_000.0
SLOT = "reader"
DEVICE = "cam-1"
HEALTHY = LiveStats(answered=100, errors=0, p50_us=900.0, p99_us=2_000.0, seconds=10.0)
PROBATION = Probation(min_answered=30, min_seconds=3.0, timeout_s=60.0)


def digest(counter: int) -> str:
    """The bundle of a release, told apart by its counter."""
    return f"{counter:064x}"


def path(counter: int) -> str:
    return f"models/acme/reader@1.{counter}.0"


def want(id: str, counter: int = 1, *, probation: Probation = PROBATION) -> SlotDesired:
    return SlotDesired(
        id, "rollout-1", path(counter), "sha256:" + digest(counter), probation=probation,
        deadline_s=600.0,
    )  # fmt: skip


def desired(version: int, one: SlotDesired | None = None, slot: str = SLOT) -> DesiredArrived:
    """A `desired` of one slot, or of none."""
    director = {"timestamp.json": b"%d" % version}
    return DesiredArrived(version, Desired({slot: one} if one else {}, director))


def released(counter: int, *, hw: str = "any", back: tuple[int, ...] = ()) -> CatalogTarget:
    return CatalogTarget(
        path(counter), 500, digest(counter), counter, [hw], "0.1.0",
        ["sha256:" + digest(earlier) for earlier in back],
    )  # fmt: skip


def verified(
    id: str,
    counter: int = 1,
    *,
    device: str = DEVICE,
    hw: str = "any",
    back: tuple[int, ...] = (),
    metadata: dict[str, int] | None = None,
) -> Verified:
    assigned = DirectorTarget(path(counter), 500, digest(counter), device, SLOT, "rollout-1", id)
    return Verified(
        SLOT, id, assigned, released(counter, hw=hw, back=back),
        {"director/timestamp": 1} if metadata is None else metadata,
    )  # fmt: skip


def way(id: str, counter: int = 1, *, back: tuple[int, ...] = ()) -> list[Event]:
    """Everything that happens to a good release, from its verification to its commit."""
    return [
        verified(id, counter, back=back),
        Downloaded(SLOT, id, ["int8", "fp32"]),
        Staged(SLOT, id, "int8"),
        Activated(SLOT, id),
        ProbationObserved(SLOT, id, HEALTHY),
    ]


class Bench:
    """A machine with a journal and an installer in memory; both remember their order.

    Args:
        state: to begin with.
        fail_saves: so many saves fail at first.
    """

    def __init__(self, state: State | None = None, fail_saves: int = 0) -> None:
        self.log: list[object] = []
        self.fail_saves = fail_saves
        self.now = NOW
        self.machine = Machine(state or fresh(), self, self)

    @property
    def state(self) -> State:
        return self.machine.state

    @property
    def effects(self) -> list[EffectItem]:
        return [entry for entry in self.log if not isinstance(entry, State)]  # type: ignore[misc]

    def save(self, state: State) -> None:
        if self.fail_saves:
            self.fail_saves -= 1
            raise OSError("no space left on device")
        self.log.append(state)

    def carry_out(self, effect: EffectItem) -> None:
        self.log.append(effect)

    def take(self, *events: Event, after: float = 0.0) -> list[EffectItem]:
        """Hand events in, one second apart; return the effects of the last one."""
        self.now += after
        for event in events:
            begin = len(self.log)
            self.now += 1.0
            self.machine.handle(event, self.now)
        return [entry for entry in self.log[begin:] if not isinstance(entry, State)]  # type: ignore[misc]

    def install(self, version: int, id: str, counter: int, *, back: tuple[int, ...] = ()) -> None:
        """Commit a release."""
        self.take(desired(version, want(id, counter)), *way(id, counter, back=back))
        current = self.state.slots[SLOT].current
        assert current is not None
        assert current.ref.bundle == "sha256:" + digest(counter)

    def last_word(self) -> str:
        """The state in which the last ended assignment ended."""
        return self.state.ended[-1].report.state


def fresh() -> State:
    return State(Host(DEVICE, "linux-x86_64-vnni", "0.1.0"))


def rolled_back(id: str) -> RolledBack:
    return RolledBack(SLOT, id)
