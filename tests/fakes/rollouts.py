"""A rollout desk: carries out decisions in memory as the fleet's engine does in its database."""

import itertools
from collections.abc import Mapping

import msgspec

from fleet.plan import Assignment, Plan, Rollout
from fleet.rollout import (
    Action,
    AssignmentTo,
    Decision,
    Notify,
    Opinion,
    RequestAnalysis,
    RollBack,
    act,
    apply,
    decide,
    draft,
)
from skerry.states import ASSIGNMENT, AnalysisState, AssignmentState, DeviceState, advance

# The way of a device to which everything goes well, after it was notified.
GOOD_WAY = (
    AssignmentState.DOWNLOADING,
    AssignmentState.DOWNLOADED,
    AssignmentState.VERIFIED,
    AssignmentState.STAGED,
    AssignmentState.ACTIVATING,
    AssignmentState.PROBATION,
    AssignmentState.COMMITTED,
)


class Say(msgspec.Struct, frozen=True):
    """A verdict as `decide` reads it."""

    state: AnalysisState
    reason: str = "prediction moved by 0.02 (limit 0.15)"
    insufficient: bool = False


class Desk:
    """One rollout with its assignments, from draft on."""

    def __init__(self, plan: Plan, devices: list[str], *, submit: bool = True) -> None:
        self.now = 1_000_000.0
        self.rollout: Rollout = draft("r-1", plan, devices, self.now)
        self.assignments: dict[str, Assignment] = {}
        self.verdicts: dict[str, Opinion] = {}
        self.absent: dict[str, DeviceState] = {}  # devices that are not accepted
        self.asked: list[str] = []  # stages whose analysis was requested
        self.log: list[Decision] = []
        self._ids = itertools.count(1)
        if submit:
            self.act(Action.SUBMIT)

    def act(self, action: Action) -> None:
        """An operator does something."""
        self._carry_out(act(self.rollout, action, self.assignments, self.now, "anna"))

    def tick(self, after_s: float = 0.0) -> list[Decision]:
        """Time passes, then the engine decides once."""
        self.now += after_s
        made = decide(self.rollout, self.assignments, self.verdicts, self.now, self.absent)
        self._carry_out(made)
        return made

    def settle(self, limit: int = 50) -> list[Decision]:
        """The engine decides until it waits, without time passing."""
        everything: list[Decision] = []
        for _ in range(limit):
            made = self.tick()
            everything += made
            if all(isinstance(decision, RequestAnalysis) for decision in made):
                return everything
        raise AssertionError(f"still deciding after {limit} ticks: {made}")

    def report(self, device: str, *states: AssignmentState, code: str = "") -> None:
        """The device says which steps it took."""
        known = self.assignments[device]
        for state in states:
            known = msgspec.structs.replace(known, state=advance(ASSIGNMENT, known.state, state))
        self.assignments[device] = msgspec.structs.replace(known, code=code)

    def commit(self, *devices: str) -> None:
        """These devices go the good way to its end."""
        for device in devices:
            self.report(device, *GOOD_WAY)

    def go_back(self, *devices: str) -> None:
        """These devices have returned to what they ran before."""
        for device in devices:
            known = self.assignments[device]
            self.assignments[device] = msgspec.structs.replace(
                known, back=AssignmentState.COMMITTED
            )

    def stages(self) -> dict[str, str]:
        """Stage name -> state."""
        return {stage.name: stage.state.value for stage in self.rollout.stages}

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self.rollout = apply(self.rollout, decision)
            self.log.append(decision)
            self._touch(decision)

    def _touch(self, decision: Decision) -> None:
        match decision:
            case Notify():
                old = self.assignments.get(decision.device)
                self.assignments[decision.device] = Assignment(
                    assignment_id=f"a-{next(self._ids)}",
                    device=decision.device,
                    state=AssignmentState.NOTIFIED,
                    attempt=decision.attempt,
                    notified_at=self.now,
                    previous=old.previous if old else "models/acme/reader@1.0.0",
                )
            case AssignmentTo():
                known = self.assignments[decision.device]
                self.assignments[decision.device] = msgspec.structs.replace(
                    known, state=advance(ASSIGNMENT, known.state, decision.state)
                )
            case RollBack():
                known = self.assignments[decision.device]
                back = AssignmentState.NOTIFIED if decision.target else AssignmentState.COMMITTED
                self.assignments[decision.device] = msgspec.structs.replace(
                    known, back=back, back_at=self.now
                )
            case RequestAnalysis():
                self.asked.append(decision.stage)
            case _:
                pass


def notified(decisions: list[Decision]) -> list[str]:
    """The devices that these decisions notify."""
    return [decision.device for decision in decisions if isinstance(decision, Notify)]


def returned(decisions: list[Decision]) -> Mapping[str, str]:
    """Device -> target, of those that these decisions take back."""
    return {d.device: d.target for d in decisions if isinstance(d, RollBack)}
