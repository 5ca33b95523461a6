"""A rollout under every situation that a stage can meet."""

import itertools

import msgspec
import pytest

from fleet.analysis import AnalysisPlan
from fleet.plan import Assignment, Plan, Rollout, Stage, StagePlan
from fleet.rollout import (
    Action,
    Decision,
    RolloutTo,
    act,
    apply_all,
    controls,
    decide,
    draft,
    join,
)
from fleet.tally import count
from skerry.errors import InvalidTransition, RefusedError, UsageError
from skerry.states import (
    ROLLOUT,
    AnalysisState,
    AssignmentState,
    PauseReason,
    RolloutState,
    StageState,
)
from tests.fakes.rollouts import GOOD_WAY, Desk, Say, notified, returned

A, R, S = AssignmentState, RolloutState, StageState
DEVICES = [f"dev-{n:02}" for n in range(12)]
CANARIES, REST = DEVICES[:3], DEVICES[3:]
BEFORE = "models/acme/reader@1.0.0"


def plan(*stages: StagePlan, **fields: object) -> Plan:
    settings = {"model": "reader", "model_version": "1.1.0", "publisher": "acme", "slot": "reader"}
    return Plan(**settings, stages=stages or (StagePlan("all"),), **fields)  # type: ignore[arg-type]


def canary_plan(on_failure: str = "rollback", **fields: object) -> Plan:
    canary = {"count": 3, "min_samples": 3, "bake_s": 10.0} | fields
    return plan(StagePlan("canary", **canary), StagePlan("rest"), on_failure=on_failure)  # type: ignore[arg-type]


def desk_with_canaries(**fields: object) -> Desk:
    desk = Desk(canary_plan(**fields), DEVICES)  # type: ignore[arg-type]
    desk.settle()
    assert desk.stages()["canary"] == "active"
    return desk


def analysed_desk(**analysis: object) -> Desk:
    """A desk whose canaries have committed and baked, waiting for the analysis."""
    desk = desk_with_canaries(analysis=AnalysisPlan(**analysis))  # type: ignore[arg-type]
    desk.commit(*CANARIES)
    desk.settle()
    desk.tick(10.0)
    desk.settle()
    assert desk.stages()["canary"] == "analyzing"
    return desk


# --- the good way ---------------------------------------------------------------


def test_a_rollout_without_trouble_completes_stage_after_stage() -> None:
    desk = Desk(canary_plan(), DEVICES)
    assert notified(desk.settle()) == CANARIES
    desk.commit(*CANARIES)
    assert notified(desk.settle()) == []
    assert desk.stages() == {"canary": "baking", "rest": "pending"}
    desk.now += 10.0
    assert notified(desk.settle()) == REST
    desk.commit(*REST)
    desk.settle()
    assert desk.stages() == {"canary": "passed", "rest": "passed"}
    assert desk.rollout.state is R.COMPLETED
    assert "12 of 12 devices notified committed" in desk.rollout.reason


def test_a_stage_waits_until_every_device_has_reached_an_end() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES[:2])
    desk.report(CANARIES[2], A.DOWNLOADING)
    assert desk.settle() == []
    assert desk.stages()["canary"] == "active"


def test_a_stage_bakes_for_its_time_and_no_less() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES)
    desk.settle()
    assert desk.tick(9.9) == []
    desk.tick(0.1)
    assert desk.stages()["canary"] == "analyzing"


def test_a_rollout_starts_no_sooner_than_planned() -> None:
    desk = Desk(plan(start_at=1_000_060.0), DEVICES)
    assert desk.tick(59.0) == []
    desk.tick(1.0)
    assert desk.rollout.state is R.RUNNING


def test_a_rollout_that_needs_approval_waits_for_it() -> None:
    desk = Desk(plan(needs_approval=True), DEVICES)
    assert desk.settle() == []
    assert desk.rollout.state is R.AWAITING_APPROVAL
    desk.act(Action.APPROVE)
    assert notified(desk.settle()) == DEVICES


def test_a_stage_by_percent_counts_earlier_stages_in() -> None:
    stages = StagePlan("tenth", percent=10), StagePlan("half", percent=50), StagePlan("rest")
    desk = Desk(plan(*stages), DEVICES)
    sizes = []
    while desk.rollout.state is not R.COMPLETED:
        now_notified = notified(desk.settle())
        sizes.append(len(now_notified))
        desk.commit(*now_notified)
    assert sizes[:3] == [2, 4, 6]


# --- failures -------------------------------------------------------------------


@pytest.mark.parametrize("end", [A.FAILED, A.REJECTED, A.TIMED_OUT])
def test_a_stage_fails_at_its_threshold_and_the_rollout_rolls_back(end: AssignmentState) -> None:
    desk = desk_with_canaries(min_samples=2)
    desk.report(CANARIES[0], end)
    desk.report(CANARIES[1], end, code="smoke_failed")
    desk.tick()
    assert desk.stages() == {"canary": "failed", "rest": "skipped"}
    assert desk.rollout.state is R.ROLLING_BACK
    assert "67% failed, the limit is 34%" in desk.rollout.reason
    assert "smoke_failed" in desk.rollout.reason


def test_a_failure_below_the_minimum_count_decides_nothing_yet() -> None:
    desk = desk_with_canaries(failure_threshold=0.01)
    desk.report(CANARIES[0], A.FAILED)
    assert desk.settle() == []
    desk.report(CANARIES[1], A.FAILED)
    assert desk.settle() == []
    desk.commit(CANARIES[2])
    desk.tick()
    assert desk.rollout.state is R.ROLLING_BACK


def test_the_denominator_is_the_devices_notified_and_not_the_fleet() -> None:
    hundred = [f"dev-{n:03}" for n in range(100)]
    desk = Desk(canary_plan(count=5, failure_threshold=0.5), hundred)
    desk.settle()
    for device in hundred[:5]:
        desk.report(device, A.FAILED)
    desk.tick()
    assert desk.rollout.state is R.ROLLING_BACK


def test_a_failed_stage_only_pauses_if_the_plan_says_so_and_is_not_continued() -> None:
    desk = desk_with_canaries(on_failure="pause")
    for device in CANARIES:
        desk.report(device, A.FAILED)
    desk.settle()
    assert desk.rollout.state is R.PAUSED
    assert desk.rollout.pause_reason is PauseReason.FAILURE_THRESHOLD
    with pytest.raises(RefusedError, match="canary has failed"):
        desk.act(Action.RESUME)
    desk.act(Action.ROLL_BACK)
    assert desk.rollout.state is R.ROLLING_BACK


def test_a_device_that_falls_back_during_the_bake_fails_the_stage() -> None:
    desk = desk_with_canaries(failure_threshold=0.3)
    desk.commit(*CANARIES)
    desk.settle()
    desk.report(CANARIES[0], A.ROLLED_BACK, code="serve_failed")
    desk.tick(1.0)
    assert desk.stages()["canary"] == "failed"


def test_a_device_that_waits_for_leave_has_not_failed() -> None:
    desk = desk_with_canaries(min_samples=2)
    desk.commit(CANARIES[0])
    for device, wait in zip(CANARIES[1:], (A.WAITING_WINDOW, A.WAITING_CONSENT), strict=True):
        desk.report(device, A.DOWNLOADING, A.DOWNLOADED, A.VERIFIED, A.STAGED, wait)
    assert desk.tick(13 * 86_400.0) == []
    assert desk.stages()["canary"] == "active"
    stage = desk.rollout.stages[0]
    assert "2 under way, of which 2 wait for leave" in count(stage, desk.assignments).sentence()
    # it goes on: from now on the limit runs again
    desk.report(CANARIES[1], A.ACTIVATING)
    known = desk.assignments[CANARIES[1]]
    desk.assignments[CANARIES[1]] = msgspec.structs.replace(known, waited_until=desk.now)
    assert desk.tick(3599.0) == []
    desk.report(CANARIES[1], A.PROBATION, A.COMMITTED)
    # the other one waits for ever: it is withdrawn, and counts neither way
    late = desk.tick(86_400.0)
    assert returned(late) == {CANARIES[2]: BEFORE}
    assert desk.assignments[CANARIES[2]].state is A.CANCELED
    desk.settle()
    assert desk.stages()["canary"] == "baking"


def test_a_device_that_went_on_after_it_waited_may_still_time_out() -> None:
    desk = desk_with_canaries()
    device = CANARIES[0]
    desk.report(device, *GOOD_WAY[:4], A.WAITING_WINDOW, A.ACTIVATING)
    known = desk.assignments[device]
    desk.assignments[device] = msgspec.structs.replace(known, waited_until=desk.now + 100.0)
    desk.tick(3600.0)
    assert desk.assignments[device].state is A.ACTIVATING
    desk.tick(100.0)
    assert desk.assignments[device].state is A.TIMED_OUT


def test_what_was_the_first_release_of_a_slot_is_kept_and_said_to_be() -> None:
    desk = desk_with_canaries()
    for device in CANARIES:
        known = desk.assignments[device]
        first = device == CANARIES[0]
        previous = "" if first else known.previous
        desk.assignments[device] = msgspec.structs.replace(known, previous=previous)
    desk.commit(*CANARIES)
    desk.tick()
    desk.act(Action.ROLL_BACK)
    desk.settle()
    desk.go_back(*CANARIES)
    desk.settle()
    assert desk.rollout.state is R.ROLLED_BACK
    assert desk.assignments[CANARIES[0]].state is A.COMMITTED
    assert desk.assignments[CANARIES[1]].state is A.ROLLED_BACK
    assert "2 of 3 devices returned, 1 keep it, for nothing ran there before" in desk.rollout.reason


def test_silent_devices_time_out_as_failures_and_are_taken_back() -> None:
    desk = desk_with_canaries()
    desk.commit(CANARIES[0])
    assert desk.tick(3599.0) == []
    late = desk.tick(1.0)
    assert returned(late) == {CANARIES[1]: BEFORE, CANARIES[2]: BEFORE}
    assert desk.assignments[CANARIES[1]].state is A.TIMED_OUT
    desk.tick()
    assert desk.stages()["canary"] == "failed"
    assert "timed_out" in desk.rollout.reason


def test_devices_time_out_during_a_pause_too() -> None:
    desk = desk_with_canaries()
    desk.act(Action.PAUSE)
    assert len(returned(desk.tick(3600.0))) == 3
    assert desk.rollout.state is R.PAUSED


# --- not enough to say ----------------------------------------------------------


def test_devices_without_traffic_are_insufficient_data_and_never_a_pass() -> None:
    desk = desk_with_canaries()
    for device in CANARIES:
        desk.report(device, *(A.DOWNLOADING, A.DOWNLOADED, A.VERIFIED, A.STAGED, A.ACTIVATING))
        desk.report(device, A.PROBATION, A.ROLLED_BACK, code="insufficient_data")
    desk.settle()
    assert desk.rollout.pause_reason is PauseReason.INSUFFICIENT_DATA
    assert desk.stages() == {"canary": "inconclusive", "rest": "pending"}
    assert "3 saw too few requests" in desk.rollout.reason


def test_one_device_without_traffic_is_enough_to_hold_a_stage() -> None:
    desk = desk_with_canaries(min_samples=1, success_threshold=0.5)
    desk.commit(*CANARIES[:2])
    desk.report(CANARIES[2], A.FAILED, code="insufficient_data")
    desk.settle()
    assert desk.rollout.pause_reason is PauseReason.INSUFFICIENT_DATA


def test_fewer_devices_than_the_minimum_is_insufficient_data() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES[:2])
    desk.report(CANARIES[2], A.INCOMPATIBLE)
    desk.settle()
    assert desk.rollout.pause_reason is PauseReason.INSUFFICIENT_DATA
    assert "a verdict needs 3" in desk.rollout.reason


def test_a_canary_stage_that_nobody_could_take_teaches_nothing() -> None:
    desk = desk_with_canaries()
    for device in CANARIES:
        desk.report(device, A.ALREADY_INSTALLED)
    desk.settle()
    assert desk.rollout.pause_reason is PauseReason.INSUFFICIENT_DATA


def test_a_last_stage_that_nobody_had_to_take_is_skipped() -> None:
    desk = Desk(plan(), DEVICES)
    desk.settle()
    for device in DEVICES:
        desk.report(device, A.ALREADY_INSTALLED)
    desk.settle()
    assert desk.stages() == {"all": "skipped"}
    assert desk.rollout.state is R.COMPLETED


def test_between_the_thresholds_a_stage_is_inconclusive() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES[:2])
    desk.report(CANARIES[2], A.FAILED, code="disk_full")
    desk.settle()
    assert desk.rollout.pause_reason is PauseReason.INCONCLUSIVE
    assert "2 of 3 devices notified committed, 1 failed" in desk.rollout.reason
    assert "disk_full" in desk.rollout.reason


def test_resuming_an_undecided_stage_tries_the_missing_devices_again() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES[:2])
    desk.report(CANARIES[2], A.FAILED, code="insufficient_data")
    desk.settle()
    desk.act(Action.RESUME)
    assert notified(desk.settle()) == [CANARIES[2]]
    assert desk.assignments[CANARIES[2]].attempt == 2
    assert desk.assignments[CANARIES[2]].previous == BEFORE
    desk.commit(CANARIES[2])
    desk.settle()
    assert desk.stages()["canary"] == "baking"


def test_an_operator_may_skip_an_undecided_stage_and_then_resume() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES[:2])
    desk.report(CANARIES[2], A.FAILED)
    desk.settle()
    desk.act(Action.SKIP_STAGE)
    assert desk.settle() == []
    desk.act(Action.RESUME)
    assert notified(desk.settle()) == REST
    with pytest.raises(InvalidTransition, match="paused"):
        desk.act(Action.SKIP_STAGE)


# --- the analysis ---------------------------------------------------------------


def test_an_analysis_is_asked_for_and_its_success_passes_the_stage() -> None:
    desk = analysed_desk()
    assert set(desk.asked) == {"canary"}
    assert desk.stages()["rest"] == "pending"
    desk.verdicts["canary"] = Say(AnalysisState.SUCCESSFUL)
    assert notified(desk.settle()) == REST


def test_a_failed_analysis_rolls_back_for_the_reason_it_gives() -> None:
    desk = analysed_desk()
    desk.verdicts["canary"] = Say(AnalysisState.FAILED, "prediction moved by 0.41 (limit 0.15)")
    desk.tick()
    assert desk.rollout.state is R.ROLLING_BACK
    assert "prediction moved by 0.41" in desk.rollout.reason


def test_an_inconclusive_analysis_pauses_and_may_be_looked_at_again() -> None:
    desk = analysed_desk()
    desk.verdicts["canary"] = Say(AnalysisState.INCONCLUSIVE)
    desk.settle()
    assert desk.rollout.pause_reason is PauseReason.INCONCLUSIVE
    del desk.verdicts["canary"]
    desk.act(Action.RESUME)
    assert desk.stages()["canary"] == "analyzing"
    assert notified(desk.settle()) == []
    desk.verdicts["canary"] = Say(AnalysisState.SUCCESSFUL)
    assert notified(desk.settle()) == REST


@pytest.mark.parametrize("state", [AnalysisState.INCONCLUSIVE, AnalysisState.RUNNING])
def test_an_analysis_short_of_data_is_waited_for_and_then_pauses(state: AnalysisState) -> None:
    desk = analysed_desk(max_wait_s=30.0)
    desk.verdicts["canary"] = Say(state, "3 windows of 6", insufficient=True)
    asked = len(desk.asked)
    desk.tick(29.0)
    assert (desk.rollout.state, len(desk.asked)) == (R.RUNNING, asked + 1)
    desk.tick(1.0)
    assert desk.rollout.pause_reason is PauseReason.INSUFFICIENT_DATA
    assert "3 windows of 6; waited 30 s" in desk.rollout.reason


def test_an_analysis_that_breaks_is_tried_again_and_then_pauses() -> None:
    desk = analysed_desk(max_wait_s=30.0)
    desk.verdicts["canary"] = Say(AnalysisState.ERROR, "no baseline")
    desk.tick(1.0)
    assert desk.rollout.state is R.RUNNING
    desk.tick(30.0)
    assert desk.rollout.pause_reason is PauseReason.INCONCLUSIVE


def test_no_device_of_a_later_stage_is_notified_while_an_analysis_runs() -> None:
    desk = analysed_desk()
    desk.verdicts["canary"] = Say(AnalysisState.RUNNING)
    assert notified([d for _ in range(5) for d in desk.tick(5.0)]) == []
    assert controls(desk.rollout, desk.assignments) == REST


# --- operators ------------------------------------------------------------------


def test_a_pause_holds_back_new_devices_and_resuming_goes_on() -> None:
    desk = desk_with_canaries()
    desk.act(Action.PAUSE)
    assert desk.rollout.pause_reason is PauseReason.MANUAL
    desk.commit(*CANARIES)
    assert desk.tick(60.0) == []
    desk.act(Action.RESUME)
    assert desk.rollout.pause_reason is None
    desk.tick()
    desk.now += 10.0
    assert notified(desk.settle()) == REST


def test_a_gate_waits_for_an_operator_after_its_stage() -> None:
    desk = desk_with_canaries(gate=True, bake_s=0.0)
    desk.commit(*CANARIES)
    desk.settle()
    assert desk.rollout.pause_reason is PauseReason.STAGE_GATE
    assert desk.stages() == {"canary": "passed", "rest": "pending"}
    desk.act(Action.RESUME)
    assert notified(desk.settle()) == REST


def test_aborting_withdraws_what_is_under_way_and_keeps_what_is_committed() -> None:
    desk = desk_with_canaries()
    desk.commit(CANARIES[0])
    desk.report(CANARIES[1], A.DOWNLOADING)
    desk.act(Action.ABORT)
    assert returned(desk.settle()) == {CANARIES[1]: BEFORE, CANARIES[2]: BEFORE}
    assert [desk.assignments[d].state for d in CANARIES] == [A.COMMITTED, A.CANCELED, A.CANCELED]
    assert desk.stages() == {"canary": "skipped", "rest": "skipped"}
    assert desk.tick(9999.0) == []


def test_rolling_back_returns_committed_devices_and_ends_when_all_have_said_so() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES[:2])
    desk.report(CANARIES[2], A.DOWNLOADING)
    desk.act(Action.ROLL_BACK)
    assert returned(desk.settle()) == dict.fromkeys(CANARIES, BEFORE)
    desk.go_back(*CANARIES[:2])
    desk.settle()
    assert desk.assignments[CANARIES[0]].state is A.ROLLED_BACK
    assert desk.rollout.state is R.ROLLING_BACK
    desk.go_back(CANARIES[2])
    desk.settle()
    assert desk.rollout.state is R.ROLLED_BACK
    assert "3 of 3 devices returned" in desk.rollout.reason


def test_a_rollback_does_not_wait_for_a_silent_device_for_ever() -> None:
    desk = desk_with_canaries()
    desk.act(Action.ROLL_BACK)
    desk.settle()
    desk.go_back(*CANARIES[:2])
    assert desk.tick(3599.0) == []
    desk.tick(1.0)
    assert desk.rollout.state is R.ROLLED_BACK
    assert "2 of 3 devices returned, 1 did not confirm" in desk.rollout.reason


def test_a_return_that_fails_is_asked_for_again_for_a_while() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES)
    desk.act(Action.ROLL_BACK)
    desk.settle()
    desk.go_back(*CANARIES[:2])
    asked = []
    for _ in range(90):
        known = desk.assignments[CANARIES[2]]
        desk.assignments[CANARIES[2]] = msgspec.structs.replace(known, back=A.FAILED)
        asked += list(returned(desk.tick(45.0)))
    assert set(asked) == {CANARIES[2]}
    assert len(asked) == 3600 // 45 - 1
    assert desk.rollout.state is R.ROLLED_BACK
    assert "2 of 3 devices returned, 1 did not confirm" in desk.rollout.reason


def test_a_return_that_was_refused_is_not_asked_for_again() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES)
    desk.act(Action.ROLL_BACK)
    desk.settle()
    desk.go_back(*CANARIES[:2])
    known = desk.assignments[CANARIES[2]]
    desk.assignments[CANARIES[2]] = msgspec.structs.replace(known, back=A.REJECTED)
    assert returned(desk.settle()) == {}
    assert desk.rollout.state is R.ROLLED_BACK


def test_a_completed_rollout_can_be_rolled_back_from_every_device() -> None:
    desk = Desk(plan(), DEVICES)
    desk.settle()
    desk.commit(*DEVICES)
    desk.settle()
    assert desk.rollout.state is R.COMPLETED
    desk.act(Action.ROLL_BACK)
    assert set(returned(desk.settle())) == set(DEVICES)


def test_a_device_that_another_rollout_has_taken_over_is_left_alone() -> None:
    desk = desk_with_canaries()
    desk.commit(*CANARIES)
    taken = desk.assignments[CANARIES[0]]
    desk.assignments[CANARIES[0]] = msgspec.structs.replace(taken, current=False)
    desk.act(Action.ROLL_BACK)
    assert set(returned(desk.settle())) == set(CANARIES[1:])


@pytest.mark.parametrize(
    "end", [A.ALREADY_INSTALLED, A.SUPERSEDED, A.DECOMMISSIONED], ids=lambda end: str(end)
)
def test_a_device_on_which_nothing_of_the_rollout_can_be_is_not_taken_back(
    end: AssignmentState,
) -> None:
    desk = desk_with_canaries()
    desk.report(CANARIES[0], end)
    desk.act(Action.ROLL_BACK)
    assert set(returned(desk.settle())) == set(CANARIES[1:])


def test_a_first_release_has_nothing_to_return_to_and_still_ends() -> None:
    desk = desk_with_canaries()
    for device in CANARIES:
        first = msgspec.structs.replace(desk.assignments[device], previous="")
        desk.assignments[device] = first
    desk.commit(*CANARIES)
    desk.act(Action.ROLL_BACK)
    assert returned(desk.settle()) == dict.fromkeys(CANARIES, "")
    assert desk.rollout.state is R.ROLLED_BACK


# --- late joiners ---------------------------------------------------------------


def test_late_joiners_never_land_in_the_canary_stage() -> None:
    desk = desk_with_canaries()
    desk.rollout = join(desk.rollout, ["dev-98", *DEVICES])
    assert desk.rollout.devices == (*DEVICES, "dev-98")
    desk.commit(*CANARIES)
    desk.settle()
    desk.now += 10.0
    assert notified(desk.settle()) == [*REST, "dev-98"]
    desk.rollout = join(desk.rollout, ["dev-99"])
    assert notified(desk.settle()) == ["dev-99"]


def test_nobody_joins_a_rollout_that_is_over_or_baking_its_last_stage() -> None:
    desk = Desk(plan(StagePlan("all", bake_s=5.0)), DEVICES)
    desk.settle()
    desk.commit(*DEVICES)
    desk.settle()
    assert join(desk.rollout, ["dev-99"]) is desk.rollout
    desk.now += 5.0
    desk.settle()
    assert desk.rollout.state is R.COMPLETED
    assert join(desk.rollout, ["dev-99"]) is desk.rollout


def test_a_joiner_before_the_start_is_not_counted_into_a_percentage() -> None:
    rollout = join(draft("r-1", plan(), DEVICES, 0.0), ["dev-99"])
    assert rollout.devices == tuple(DEVICES)  # a draft takes nobody


# --- plans ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((), "at least one stage"),
        ((StagePlan("one", count=1), StagePlan("one")), "different names"),
        ((StagePlan("one", count=3),), "last stage to take all"),
        ((StagePlan("one", count=3, percent=9), StagePlan("rest")), "got both"),
        ((StagePlan("one", count=0), StagePlan("rest")), "at least 1"),
        ((StagePlan("one", percent=101), StagePlan("rest")), "at most 100"),
        ((StagePlan("one", success_threshold=0),), "success_threshold"),
        ((StagePlan("one", failure_threshold=1.5),), "failure_threshold"),
        ((StagePlan("one", min_samples=0),), "min_samples"),
        ((StagePlan("one", bake_s=-1),), "bake_s"),
        ((StagePlan("one", bake_s=float("nan")),), "bake_s"),
        ((StagePlan("one", count=3, min_samples=4), StagePlan("rest")), "could never pass"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(
    stages: tuple[StagePlan, ...], says: str
) -> None:
    settings = {"model": "reader", "model_version": "1.1.0", "publisher": "acme", "slot": "reader"}
    with pytest.raises(UsageError, match=says):
        draft("r-1", Plan(**settings, stages=stages), DEVICES, 0.0)  # type: ignore[arg-type]


def test_a_plan_for_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="no accepted device matches 'site=moon'"):
        draft("r-1", plan(selector="site=moon"), [], 0.0)


def test_a_rollout_comes_back_from_its_json() -> None:
    desk = desk_with_canaries(analysis=AnalysisPlan())
    again = msgspec.json.decode(msgspec.json.encode(desk.rollout), type=Rollout)
    assert again == desk.rollout
    log = msgspec.json.decode(msgspec.json.encode(desk.log), type=list[Decision])
    assert log == desk.log


# --- every state in every situation ----------------------------------------------


def situations() -> list[dict[str, Assignment]]:
    """All assignment states, alone and against a committed neighbour."""
    made: list[dict[str, Assignment]] = [{}]
    for state, code, back in itertools.product(
        A, ("", "insufficient_data"), (None, A.NOTIFIED, A.COMMITTED)
    ):
        one = Assignment("a-1", "dev-1", state, notified_at=50.0, code=code, back=back)
        two = Assignment("a-2", "dev-2", A.COMMITTED, notified_at=50.0)
        made += [{"dev-1": one}, {"dev-1": one, "dev-2": two}]
    return made


@pytest.mark.parametrize("stage_state", StageState)
@pytest.mark.parametrize("state", RolloutState)
def test_deciding_is_total_and_takes_only_listed_steps(
    state: RolloutState, stage_state: StageState
) -> None:
    asked = plan(StagePlan("one", count=2, bake_s=10.0, analysis=AnalysisPlan()), StagePlan("rest"))
    devices = () if stage_state is S.PENDING else ("dev-1", "dev-2")
    stages = (Stage("one", stage_state, devices, since=90.0, reason="so far"), Stage("rest"))
    rollout = Rollout("r-1", asked, ("dev-1", "dev-2", "dev-3"), 3, stages, state, reason="so far")
    verdicts = [{}, *({"one": Say(v, insufficient=i)} for v in AnalysisState for i in (0, 1))]  # type: ignore[arg-type]
    for assignments, verdict, now in itertools.product(situations(), verdicts, (95.0, 9999.0)):
        decisions = decide(rollout, assignments, verdict, now)
        assert decisions == decide(rollout, assignments, verdict, now)
        after = apply_all(rollout, decisions)
        assert (after.state is R.PAUSED) == (after.pause_reason is not None) or state is R.PAUSED
        assert not any(d.reason == "" for d in decisions if isinstance(d, RolloutTo))
        fresh = set(notified(decisions))
        assert fresh <= set(after.stages[0].devices) | set(after.stages[1].devices)
        if stage_state not in (S.PASSED, S.SKIPPED):
            assert "dev-3" not in fresh


LEADS_TO = {
    Action.SUBMIT: (R.SCHEDULED, {R.DRAFT}),
    Action.APPROVE: (R.SCHEDULED, {R.AWAITING_APPROVAL}),
    Action.DENY: (R.DENIED, {R.AWAITING_APPROVAL}),
    Action.PAUSE: (R.PAUSED, {R.RUNNING}),
    Action.RESUME: (R.RUNNING, {R.PAUSED}),
    Action.ABORT: (R.ABORTED, {s for s in R if R.ABORTED in ROLLOUT[s]}),
    Action.ROLL_BACK: (R.ROLLING_BACK, {s for s in R if R.ROLLING_BACK in ROLLOUT[s]}),
    Action.ARCHIVE: (R.ARCHIVED, {s for s in R if R.ARCHIVED in ROLLOUT[s]}),
}


@pytest.mark.parametrize("state", RolloutState)
@pytest.mark.parametrize("action", LEADS_TO)
def test_an_action_takes_its_listed_step_or_raises(action: Action, state: RolloutState) -> None:
    rollout = Rollout("r-1", plan(), ("dev-1",), 1, (Stage("all"),), state)
    leads_to, allowed = LEADS_TO[action]
    if state in allowed:
        made = act(rollout, action, {}, 1.0, "anna")
        assert apply_all(rollout, made).state is leads_to
        assert any("anna" in d.reason for d in made if isinstance(d, RolloutTo))
    else:
        with pytest.raises(InvalidTransition):
            act(rollout, action, {}, 1.0, "anna")


def test_a_rollout_that_needs_approval_cannot_be_submitted_twice() -> None:
    desk = Desk(plan(needs_approval=True), DEVICES)
    with pytest.raises(InvalidTransition):
        desk.act(Action.SUBMIT)
