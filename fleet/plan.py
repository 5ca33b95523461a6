"""What a rollout is: the plan, its stages, its assignments, as plain values.

A plan is what an operator writes, `Rollout` is how far it has come, `Assignment` is
one device in it. All are msgspec structs, so that they are stored and shown as JSON.
Times are Unix seconds. `fleet.rollout` holds the rules.
"""

import math
from typing import Literal

import msgspec

from fleet.analysis import AnalysisPlan
from skerry.errors import UsageError
from skerry.ids import check_id
from skerry.states import AssignmentState, PauseReason, RolloutState, StageState
from skerry.trials import Shadow
from skerry.trust import target_path
from skerry.wire import Probation

__all__ = ["Assignment", "Plan", "Rollout", "Stage", "StagePlan", "check_plan", "current", "share"]


class StagePlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One stage as planned: how many devices, and what must be seen on them.

    `count` is a number of devices; `percent` is a share of all devices selected,
    those of earlier stages included; neither means all that are left.
    """

    name: str
    count: int | None = None
    percent: float | None = None
    bake_s: float = 0.0  # from the last device's end to the analysis
    success_threshold: float = 1.0  # committed share of the devices notified
    failure_threshold: float = 0.34  # failed share of the devices notified
    min_samples: int = 1  # devices that committed or failed, before a verdict
    analysis: AnalysisPlan | None = None
    gate: bool = False  # after this stage, wait for an operator


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an operator asks for: which version, where, in which stages."""

    model: str
    model_version: str
    publisher: str
    slot: str
    selector: str = "all"
    stages: tuple[StagePlan, ...] = (StagePlan("all"),)
    probation: Probation = Probation()
    shadow: Shadow | None = None  # first beside what serves; None: not at all
    on_failure: Literal["rollback", "pause"] = "rollback"
    assignment_timeout_s: float = 3600.0  # from notified to an end, without what is waited below
    waiting_timeout_s: float = 14 * 86400.0  # for a device's consent or maintenance window
    needs_approval: bool = False
    start_at: float = 0.0

    @property
    def target(self) -> str:
        """The release's path in the catalog."""
        return target_path(self.publisher, self.model, self.model_version)


class Stage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stage as it stands; `devices` is fixed when the stage becomes active."""

    name: str
    state: StageState = StageState.PENDING
    devices: tuple[str, ...] = ()
    attempt: int = 1
    since: float = 0.0  # when it entered its state
    reason: str = ""


class Rollout(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rollout as it stands.

    `devices` are in the order in which they are notified; those from position
    `selected` on matched the selector only after the start.
    """

    rollout_id: str
    plan: Plan
    devices: tuple[str, ...]
    selected: int
    stages: tuple[Stage, ...]
    state: RolloutState = RolloutState.DRAFT
    pause_reason: PauseReason | None = None
    reason: str = ""
    created_at: float = 0.0
    since: float = 0.0  # when it entered its state


class Assignment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One device in one rollout, as the fleet's records have it.

    `back` is the state of a later assignment that returns the device to `previous`,
    None as long as there is none. `current` is false once another rollout has
    assigned something else to the device's slot.
    """

    assignment_id: str
    device: str
    state: AssignmentState
    attempt: int = 1
    notified_at: float = 0.0
    previous: str = ""  # target path of what ran before, empty for nothing
    phase: str = ""
    code: str = ""
    effect: str = ""
    message: str = ""
    back: AssignmentState | None = None
    back_at: float = 0.0
    current: bool = True
    waited_until: float = 0.0  # when it went on after it had waited for the device's leave


def check_plan(plan: Plan, selected: int) -> Plan:
    """Return the plan if it can be carried out on so many devices.

    Raises:
        UsageError: it cannot; the message names the field.
    """
    _ = plan.target, check_id(plan.slot, "slot")
    if selected < 1:
        raise UsageError(
            f"no accepted device matches {plan.selector!r}; list devices with their tags"
        )
    if not plan.stages:
        raise UsageError("expected at least one stage")
    names = [check_id(stage.name, "stage name") for stage in plan.stages]
    if len(set(names)) < len(names):
        raise UsageError(f"expected stages of different names, got {', '.join(names)}")
    _positive(plan.assignment_timeout_s, "assignment_timeout_s")
    _positive(plan.waiting_timeout_s, "waiting_timeout_s")
    if plan.shadow is not None:
        _check_shadow(plan.shadow)
    for stage in plan.stages:
        _check_stage(stage)
    last = plan.stages[-1]
    if last.count is not None or last.percent not in (None, 100.0):
        raise UsageError(
            f"expected the last stage to take all that are left, got one limited to "
            f"{last.count or last.percent}: leave out count and percent of {last.name}"
        )
    taken = 0
    for stage in plan.stages:
        size = share(stage, selected, taken)
        if size < stage.min_samples and size > 0:
            raise UsageError(
                f"stage {stage.name} would have {size} devices of {selected}, fewer than its "
                f"min_samples of {stage.min_samples}, and could never pass"
            )
        taken += size
    return plan


def share(stage: StagePlan, selected: int, taken: int) -> int:
    """Return how many devices a stage takes when `taken` of `selected` are in earlier ones."""
    if stage.count is not None:
        wanted = stage.count
    elif stage.percent is not None:
        wanted = math.ceil(selected * stage.percent / 100.0) - taken
    else:
        wanted = selected - taken
    return max(0, min(wanted, selected - taken))


def current(rollout: Rollout) -> int | None:
    """Return the position of the first stage not yet passed or skipped, None after the last."""
    for index, stage in enumerate(rollout.stages):
        if stage.state not in (StageState.PASSED, StageState.SKIPPED):
            return index
    return None


def _check_shadow(shadow: Shadow) -> None:
    for name in ("share", "min_agreement", "max_cpu"):
        value = getattr(shadow, name)
        if not 0 < value <= 1:
            raise UsageError(f"expected shadow.{name} above 0, at most 1, got {value}")
    if shadow.min_rows < 1:
        raise UsageError(f"expected shadow.min_rows of at least 1, got {shadow.min_rows}")
    _positive(shadow.max_seconds, "shadow.max_seconds")


def _check_stage(stage: StagePlan) -> None:
    where = f"of stage {stage.name}"
    if stage.count is not None and stage.percent is not None:
        raise UsageError(f"expected count or percent {where}, got both")
    if stage.count is not None and stage.count < 1:
        raise UsageError(f"expected a count {where} of at least 1, got {stage.count}")
    if stage.percent is not None and not 0 < stage.percent <= 100:
        raise UsageError(f"expected a percent {where} above 0, at most 100, got {stage.percent}")
    for name in ("success_threshold", "failure_threshold"):
        value = getattr(stage, name)
        if not 0 < value <= 1:
            raise UsageError(f"expected a {name} {where} above 0, at most 1, got {value}")
    if stage.min_samples < 1:
        raise UsageError(f"expected min_samples {where} of at least 1, got {stage.min_samples}")
    if not (math.isfinite(stage.bake_s) and stage.bake_s >= 0):
        raise UsageError(f"expected bake_s {where} of at least 0, got {stage.bake_s}")


def _positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"expected {name} above 0, got {value}")
