"""What an operator may do to a rollout: each action becomes decisions, or is refused."""

from collections.abc import Mapping
from enum import StrEnum

from fleet.decisions import Decision, RolloutTo, StageTo, apply_all, close_stages, start_return
from fleet.plan import Assignment, Rollout, Stage, current
from fleet.tally import count, in_words
from skerry.errors import InvalidTransition, RefusedError
from skerry.states import PauseReason, RolloutState, StageState

__all__ = ["Action", "act"]


class Action(StrEnum):
    """What an operator may do to a rollout."""

    SUBMIT = "submit"
    APPROVE = "approve"
    DENY = "deny"
    PAUSE = "pause"
    RESUME = "resume"
    SKIP_STAGE = "skip_stage"
    ABORT = "abort"
    ROLL_BACK = "rollback"
    ARCHIVE = "archive"


def act(
    rollout: Rollout, action: Action, assignments: Mapping[str, Assignment], now: float, by: str
) -> list[Decision]:
    """Return the decisions of an operator's action.

    Args:
        rollout: as stored.
        action: what the operator wants.
        assignments: as for `decide`.
        now: Unix seconds.
        by: who wants it, for the reason.

    Raises:
        InvalidTransition: the rollout's table does not list the step.
        RefusedError: the step exists, but not for this rollout now.
    """
    plan, said = rollout.plan, f"{action} by {by}"
    match action:
        case Action.SUBMIT if plan.needs_approval:
            made: list[Decision] = [RolloutTo(RolloutState.AWAITING_APPROVAL, said, now)]
        case Action.SUBMIT:
            _only_from(rollout, RolloutState.DRAFT, action)
            made = [RolloutTo(RolloutState.SCHEDULED, said, now)]
        case Action.APPROVE:
            _only_from(rollout, RolloutState.AWAITING_APPROVAL, action)
            made = [RolloutTo(RolloutState.SCHEDULED, said, now)]
        case Action.DENY:
            made = [RolloutTo(RolloutState.DENIED, said, now)]
        case Action.PAUSE:
            made = [RolloutTo(RolloutState.PAUSED, said, now, PauseReason.MANUAL)]
        case Action.RESUME:
            _only_from(rollout, RolloutState.PAUSED, action)
            made = [RolloutTo(RolloutState.RUNNING, said, now), *_reopen(rollout, assignments, now)]
        case Action.SKIP_STAGE:
            _only_from(rollout, RolloutState.PAUSED, action)
            made = [StageTo(_undecided(rollout).name, StageState.SKIPPED, said, now)]
        case Action.ABORT:
            made = [*close_stages(rollout, said, now), RolloutTo(RolloutState.ABORTED, said, now)]
        case Action.ROLL_BACK:
            made = start_return(rollout, said, now)
        case Action.ARCHIVE:
            made = [RolloutTo(RolloutState.ARCHIVED, said, now)]
    apply_all(rollout, made)  # raises now, not after half of it is stored
    return made


def _reopen(rollout: Rollout, assignments: Mapping[str, Assignment], now: float) -> list[Decision]:
    index = current(rollout)
    stage = None if index is None else rollout.stages[index]
    if stage is None or stage.state not in (StageState.INCONCLUSIVE, StageState.FAILED):
        return []
    if stage.state is StageState.FAILED:
        raise RefusedError(
            f"stage {stage.name} has failed and is not continued: abort or roll back"
        )
    tally = count(stage, assignments)
    if tally.failed or tally.starved:
        again = in_words(len(tally.failed) + len(tally.starved))
        reason = f"attempt {stage.attempt + 1} on {again}"
        return [StageTo(stage.name, StageState.ACTIVE, reason, now, attempt=stage.attempt + 1)]
    if not tally.asked or tally.under_way:
        return [StageTo(stage.name, StageState.ACTIVE, "looked at again", now)]
    return [StageTo(stage.name, StageState.ANALYZING, "analysed again", now)]


def _undecided(rollout: Rollout) -> Stage:
    index = current(rollout)
    stage = None if index is None else rollout.stages[index]
    if stage is None or stage.state is not StageState.INCONCLUSIVE:
        raise RefusedError("expected a rollout that waits on an undecided stage; nothing to skip")
    return stage


def _only_from(rollout: Rollout, state: RolloutState, action: Action) -> None:
    if rollout.state is not state:
        raise InvalidTransition(
            f"{action} needs a rollout that is {state}; this one is {rollout.state}"
        )
