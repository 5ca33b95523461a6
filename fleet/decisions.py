"""What a rollout decides, as data, and what a decision makes of the rollout.

Decisions are stored as they are, for the record; `apply` is the only way in which a
rollout changes, and takes only the steps that the tables of `skerry.states` list.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from fleet.plan import Rollout, Stage
from skerry.states import (
    ROLLOUT,
    STAGE,
    AssignmentState,
    PauseReason,
    RolloutState,
    StageState,
    advance,
)
from skerry.wire import Probation

__all__ = [
    "RETURN_PROBATION",
    "AssignmentTo",
    "Decision",
    "Notify",
    "RequestAnalysis",
    "RollBack",
    "RolloutTo",
    "StageTo",
    "apply",
    "apply_all",
    "close_stages",
    "stage_after",
    "start_return",
]

# Going back asks nothing of the traffic: the release served here before.
RETURN_PROBATION: Final = Probation(min_answered=0, min_seconds=0.0, max_error_rate=1.0)


class Notify(msgspec.Struct, frozen=True, tag=True):
    """Give the device a new assignment to the plan's release, in this attempt."""

    device: str
    stage: str
    attempt: int


class AssignmentTo(msgspec.Struct, frozen=True, tag=True):
    """End the device's assignment in this state, on the fleet's side."""

    device: str
    state: AssignmentState
    reason: str


class RollBack(msgspec.Struct, frozen=True, tag=True):
    """Give the device a new assignment to `target`, or take the slot out if that is empty.

    It goes with `RETURN_PROBATION`; its state comes back as `Assignment.back`. Without
    a target there is nothing to return to, and `back` is `committed` at once.
    """

    device: str
    target: str
    reason: str


class StageTo(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Bring a stage into a state; `devices` only when it becomes active."""

    stage: str
    state: StageState
    reason: str
    at: float
    devices: tuple[str, ...] = ()
    attempt: int = 0  # 0 keeps it


class RolloutTo(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Bring the rollout into a state; a pause has its reason."""

    state: RolloutState
    reason: str
    at: float
    pause_reason: PauseReason | None = None


class RequestAnalysis(msgspec.Struct, frozen=True, tag=True):
    """Compare this stage's devices with the controls, and hand the verdict in next time."""

    stage: str


Decision = Notify | AssignmentTo | RollBack | StageTo | RolloutTo | RequestAnalysis


def apply(rollout: Rollout, decision: Decision) -> Rollout:
    """Return the rollout after a decision; those about one device leave it as it is.

    Raises:
        InvalidTransition: the table of the rollout or of the stage does not list it.
    """
    match decision:
        case RolloutTo():
            return msgspec.structs.replace(
                rollout,
                state=advance(ROLLOUT, rollout.state, decision.state),
                pause_reason=decision.pause_reason,
                reason=decision.reason,
                since=decision.at,
            )
        case StageTo():
            stages = tuple(
                stage_after(stage, decision) if stage.name == decision.stage else stage
                for stage in rollout.stages
            )
            return msgspec.structs.replace(rollout, stages=stages)
        case _:
            return rollout


def apply_all(rollout: Rollout, decisions: Iterable[Decision]) -> Rollout:
    """Return the rollout after several decisions, in order."""
    for decision in decisions:
        rollout = apply(rollout, decision)
    return rollout


def stage_after(stage: Stage, decision: StageTo) -> Stage:
    """Return a stage after a decision about it."""
    return msgspec.structs.replace(
        stage,
        state=advance(STAGE, stage.state, decision.state),
        devices=decision.devices or stage.devices,
        attempt=decision.attempt or stage.attempt,
        since=decision.at,
        reason=decision.reason,
    )


def start_return(rollout: Rollout, reason: str, now: float) -> list[Decision]:
    """Return what begins a rollback."""
    back = RolloutTo(RolloutState.ROLLING_BACK, reason, now)
    return [*close_stages(rollout, "not reached: the rollout rolls back", now), back]


def close_stages(rollout: Rollout, reason: str, now: float) -> list[Decision]:
    """Return what closes every stage that has no end yet."""
    return [
        StageTo(stage.name, StageState.SKIPPED, reason, now)
        for stage in rollout.stages
        if StageState.SKIPPED in STAGE[stage.state]
    ]
