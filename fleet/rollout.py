"""How a rollout decides: the one file that explains rollouts.

`decide` looks at a rollout, its assignments and the verdicts of its analyses, and says
what to do next, as data. It does nothing itself: the engine stores the decisions in one
transaction (`apply` gives the rollout's next value), then signs and sends. The same
arguments give the same decisions, whenever and however often it is asked.

The rules, in order:

1.  Only `committed` is success: the new model answered live requests in probation.
2.  A device that has not reached an end `assignment_timeout_s` after it was notified has
    failed as `timed_out`, and is told to go back, so that it never installs a dead
    release when it returns. A device that waits for its own consent or maintenance window has
    not failed: the limit does not run meanwhile, and after `waiting_timeout_s` it is withdrawn.
3.  Stages go one after the other. A stage takes its devices when it becomes active, in
    the rollout's order, and keeps them. Devices that match the selector later join the
    last stage only.
4.  Shares are of the devices *notified* and able to take the release: those that had it
    already, cannot run it, or were withdrawn count neither way.
5.  A stage fails as soon as `failure_threshold` of them failed, once `min_samples`
    devices have committed or failed; the rollout then rolls back, or pauses if the plan
    says so. A failed stage is not continued.
6.  When all devices have reached an end: fewer than `min_samples` with evidence, or any
    that ended for want of traffic, is `insufficient_data`, and never a pass. Fewer than
    `success_threshold` committed is `inconclusive`. Both pause.
7.  Otherwise the stage bakes for `bake_s`, then is analysed, if the plan says how. The
    counts are judged again all the while. An analysis without enough data is waited for
    (`max_wait_s`), then pauses. Failed fails the stage, inconclusive pauses.
8.  A passed stage with a gate pauses for an operator. After the last stage the rollout
    is completed.
9.  A pause holds back new devices; those under way go on, and still time out.
    Resuming an undecided stage notifies again the devices that did not commit, or looks
    at the analysis again if all did.
10. Aborting withdraws what is under way and keeps what is committed. Rolling back also
    returns every committed device to what it ran before, and is done when each has said
    so, or has not for `assignment_timeout_s`. A return that fails is asked for again; a
    silent device finds it in its `desired` when it comes back. A device on which nothing ran
    before keeps what it has committed: a slot is never emptied.
11. A device that another rollout has meanwhile taken over is left alone.
12. A device that is not accepted any more is told nothing, not waited for, and counts neither way:
    what it had under way ends as `decommissioned`, or as `canceled` where it may come back; then it
    finds in its `desired` what it ran before. What it committed stays committed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from fleet.actions import Action, act
from fleet.decisions import (
    RETURN_PROBATION,
    AssignmentTo,
    Decision,
    Notify,
    RequestAnalysis,
    RollBack,
    RolloutTo,
    StageTo,
    apply,
    apply_all,
    stage_after,
    start_return,
)
from fleet.plan import Assignment, Plan, Rollout, Stage, StagePlan, check_plan, current, share
from fleet.returns import leave, return_all, time_out, withdraw
from fleet.tally import NOBODY, Absent, Tally, count, in_words
from skerry.states import (
    ASSIGNMENT_FAILURES,
    AnalysisState,
    PauseReason,
    RolloutState,
    StageState,
)

__all__ = [
    "RETURN_PROBATION",
    "Action",
    "Assignment",
    "AssignmentTo",
    "Decision",
    "Notify",
    "Opinion",
    "Plan",
    "RequestAnalysis",
    "RollBack",
    "Rollout",
    "RolloutTo",
    "Stage",
    "StagePlan",
    "StageTo",
    "act",
    "apply",
    "apply_all",
    "controls",
    "decide",
    "draft",
    "join",
]


class Opinion(Protocol):
    """What `decide` reads of a verdict (`fleet.analysis.Verdict`)."""

    @property
    def state(self) -> AnalysisState:
        """The verdict."""
        ...

    @property
    def reason(self) -> str:
        """The verdict in a sentence with its numbers."""
        ...

    @property
    def insufficient(self) -> bool:
        """Whether it was too early or too quiet to say."""
        ...


def draft(rollout_id: str, plan: Plan, devices: Sequence[str], now: float) -> Rollout:
    """Return a new rollout in state draft.

    Args:
        rollout_id: its id.
        plan: checked here.
        devices: the selected ones, in the order of `fleet.targeting.ordered`.
        now: Unix seconds.

    Raises:
        UsageError: the plan cannot be carried out on these devices.
    """
    check_plan(plan, len(devices))
    return Rollout(
        rollout_id=rollout_id,
        plan=plan,
        devices=tuple(devices),
        selected=len(devices),
        stages=tuple(Stage(stage.name) for stage in plan.stages),
        created_at=now,
        since=now,
    )


def join(rollout: Rollout, devices: Iterable[str]) -> Rollout:
    """Return the rollout with devices that match its selector only now (rule 3)."""
    last = rollout.stages[-1]
    open_states = {RolloutState.SCHEDULED, RolloutState.RUNNING, RolloutState.PAUSED}
    joinable = {StageState.PENDING, StageState.ACTIVE}
    if rollout.state not in open_states or last.state not in joinable:
        return rollout
    known = set(rollout.devices)
    new = tuple(sorted(device for device in set(devices) if device not in known))
    if not new:
        return rollout
    if last.state is StageState.ACTIVE:
        last = msgspec.structs.replace(last, devices=last.devices + new)
    return msgspec.structs.replace(
        rollout, devices=rollout.devices + new, stages=(*rollout.stages[:-1], last)
    )


def controls(rollout: Rollout, assignments: Mapping[str, Assignment]) -> list[str]:
    """Return the devices of the rollout that still run what they ran before."""
    return [device for device in rollout.devices if device not in assignments]


def decide(
    rollout: Rollout,
    assignments: Mapping[str, Assignment],
    verdicts: Mapping[str, Opinion],
    now: float,
    absent: Absent = NOBODY,
) -> list[Decision]:
    """Return what to do next; an empty list is "wait".

    Args:
        rollout: as stored.
        assignments: device -> its latest assignment in this rollout.
        verdicts: stage name -> the latest verdict since the stage began to be analysed.
        now: Unix seconds.
        absent: the devices that are not accepted, and what they are instead.
    """
    match rollout.state:
        case RolloutState.SCHEDULED if now >= rollout.plan.start_at:
            many = in_words(len(rollout.devices))
            return [RolloutTo(RolloutState.RUNNING, f"started for {many}", now)]
        case RolloutState.RUNNING:
            over = leave(rollout, assignments, absent) or time_out(rollout, assignments, now)
            return over or _run(rollout, assignments, verdicts, now, absent)
        case RolloutState.PAUSED:
            over = leave(rollout, assignments, absent)
            return over or time_out(rollout, assignments, now)
        case RolloutState.ABORTED:
            return leave(rollout, assignments, absent) or withdraw(rollout, assignments)
        case RolloutState.ROLLING_BACK:
            over = leave(rollout, assignments, absent)
            return over or return_all(rollout, assignments, now, absent)
        case _:
            return []


# --- a running rollout: rules 3 to 8 --------------------------------------------


def _run(
    rollout: Rollout,
    assignments: Mapping[str, Assignment],
    verdicts: Mapping[str, Opinion],
    now: float,
    absent: Absent,
) -> list[Decision]:
    index = current(rollout)
    if index is None:
        return [RolloutTo(RolloutState.COMPLETED, _completed(rollout, assignments), now)]
    stage = rollout.stages[index]
    match stage.state:
        case StageState.PENDING:
            return _open(rollout, index, assignments, now, absent)
        case StageState.FAILED:
            return _fail(rollout, stage.reason, now)
        case StageState.INCONCLUSIVE:
            return [RolloutTo(RolloutState.PAUSED, stage.reason, now, PauseReason.INCONCLUSIVE)]
        case _:
            pass
    missing = _to_notify(stage, assignments, absent)
    if missing and stage.state is StageState.ACTIVE:
        return list(missing)
    tally = count(stage, assignments, absent)
    stop = _judge(rollout, index, tally, now)
    if stop is not None:
        return stop
    return _go_on(rollout, index, verdicts.get(stage.name), tally, now)


def _open(
    rollout: Rollout,
    index: int,
    assignments: Mapping[str, Assignment],
    now: float,
    absent: Absent,
) -> list[Decision]:
    plan, stage = rollout.plan.stages[index], rollout.stages[index]
    taken = sum(len(earlier.devices) for earlier in rollout.stages[:index])
    is_last = index == len(rollout.stages) - 1
    end = None if is_last else taken + share(plan, rollout.selected, taken)
    devices = rollout.devices[taken:end]
    if not devices:
        return [StageTo(stage.name, StageState.SKIPPED, "no device is left for this stage", now)]
    there = sum(device not in absent for device in devices)
    reason = f"{there} of {in_words(len(rollout.devices))} notified"
    active = StageTo(stage.name, StageState.ACTIVE, reason, now, devices)
    return [active, *_to_notify(stage_after(stage, active), assignments, absent)]


def _to_notify(stage: Stage, assignments: Mapping[str, Assignment], absent: Absent) -> list[Notify]:
    return [
        Notify(device, stage.name, stage.attempt)
        for device in stage.devices
        if device not in absent
        and (
            (known := assignments.get(device)) is None
            or (
                known.attempt < stage.attempt
                and known.state in ASSIGNMENT_FAILURES
                and known.current
            )
        )
    ]


def _judge(rollout: Rollout, index: int, tally: Tally, now: float) -> list[Decision] | None:
    """Rules 5 and 6: what the counts alone say; None if nothing stands in the way."""
    plan, stage = rollout.plan.stages[index], rollout.stages[index]
    said = f"stage {stage.name}: {tally.sentence()}"
    if (
        tally.failed
        and tally.evidence >= plan.min_samples
        and len(tally.failed) / tally.asked >= plan.failure_threshold
    ):
        rate = f"{len(tally.failed) / tally.asked:.0%}"
        reason = f"{said}; {rate} failed, the limit is {plan.failure_threshold:.0%}"
        failed = StageTo(stage.name, StageState.FAILED, reason, now)
        return [failed, *_fail(apply(rollout, failed), reason, now)]
    if tally.under_way:
        return []
    if not tally.asked and index == len(rollout.stages) - 1:
        reason = f"{said}; nobody was left to take the release"
        return [StageTo(stage.name, StageState.SKIPPED, reason, now)]
    if tally.starved or tally.evidence < plan.min_samples:
        reason = f"{said}; a verdict needs {plan.min_samples} that committed or failed" + (
            " and requests on every device" if tally.starved else ""
        )
        return _hold(stage, PauseReason.INSUFFICIENT_DATA, reason, now)
    if len(tally.committed) / tally.asked < plan.success_threshold:
        reason = (
            f"{said}; passing needs {plan.success_threshold:.0%} committed, "
            f"failing {plan.failure_threshold:.0%} failed"
        )
        return _hold(stage, PauseReason.INCONCLUSIVE, reason, now)
    return None


def _go_on(
    rollout: Rollout, index: int, verdict: Opinion | None, tally: Tally, now: float
) -> list[Decision]:
    """Rules 7 and 8: all devices are in, and the counts are good."""
    plan, stage = rollout.plan.stages[index], rollout.stages[index]
    if stage.state is StageState.ACTIVE:
        reason = f"{tally.sentence()}; bakes for {plan.bake_s:g} s"
        return [StageTo(stage.name, StageState.BAKING, reason, now)]
    if stage.state is StageState.BAKING:
        if now - stage.since < plan.bake_s:
            return []
        reason = f"{tally.sentence()}; baked for {now - stage.since:.0f} s"
        return [StageTo(stage.name, StageState.ANALYZING, reason, now)]
    if plan.analysis is None:
        return _pass(rollout, index, f"{tally.sentence()}; no analysis planned", now)
    if verdict is None:
        return [RequestAnalysis(stage.name)]
    said = f"stage {stage.name}: {verdict.reason}"
    match verdict.state:
        case AnalysisState.SUCCESSFUL:
            return _pass(rollout, index, said, now)
        case AnalysisState.FAILED:
            failed = StageTo(stage.name, StageState.FAILED, said, now)
            return [failed, *_fail(apply(rollout, failed), said, now)]
        case AnalysisState.INCONCLUSIVE if not verdict.insufficient:
            return _hold(stage, PauseReason.INCONCLUSIVE, said, now)
        case _ if now - stage.since < plan.analysis.max_wait_s:
            return [RequestAnalysis(stage.name)]
        case AnalysisState.ERROR:
            return _hold(stage, PauseReason.INCONCLUSIVE, said, now)
        case _:
            waited = f"; waited {now - stage.since:.0f} s"
            return _hold(stage, PauseReason.INSUFFICIENT_DATA, said + waited, now)


def _pass(rollout: Rollout, index: int, reason: str, now: float) -> list[Decision]:
    stage = rollout.stages[index]
    made: list[Decision] = [StageTo(stage.name, StageState.PASSED, reason, now)]
    if rollout.plan.stages[index].gate and index < len(rollout.stages) - 1:
        gate = f"stage {stage.name} passed; the plan waits for an operator after it"
        made.append(RolloutTo(RolloutState.PAUSED, gate, now, PauseReason.STAGE_GATE))
    return made


def _hold(stage: Stage, why: PauseReason, reason: str, now: float) -> list[Decision]:
    return [
        StageTo(stage.name, StageState.INCONCLUSIVE, reason, now),
        RolloutTo(RolloutState.PAUSED, reason, now, why),
    ]


def _fail(rollout: Rollout, reason: str, now: float) -> list[Decision]:
    if rollout.plan.on_failure == "pause":
        return [RolloutTo(RolloutState.PAUSED, reason, now, PauseReason.FAILURE_THRESHOLD)]
    return start_return(rollout, reason, now)


def _completed(rollout: Rollout, assignments: Mapping[str, Assignment]) -> str:
    devices = tuple(d for stage in rollout.stages for d in stage.devices)
    whole = Stage("all", StageState.PASSED, devices)
    many = len(rollout.stages)
    stages = "one stage" if many == 1 else f"{many} stages"
    return f"{count(whole, assignments).sentence()}, in {stages}"
