"""Laws of a rollout under any history: devices, operators, verdicts and time as they come."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from fleet.analysis import AnalysisPlan
from fleet.plan import Plan, StagePlan
from fleet.rollout import Action, Notify, StageTo, decide, join
from skerry.errors import RefusedError
from skerry.states import (
    ASSIGNMENT,
    ASSIGNMENT_ENDS,
    AnalysisState,
    AssignmentState,
    DeviceState,
    RolloutState,
    StageState,
)
from tests.fakes.rollouts import Desk, Say

DEVICES = [f"dev-{n}" for n in range(6)]
LATE = ["dev-8", "dev-9"]
OUT = [DeviceState.PENDING, DeviceState.REJECTED, DeviceState.DECOMMISSIONED]
NO_SUCCESS = {AssignmentState.FAILED, AssignmentState.ROLLED_BACK, AssignmentState.TIMED_OUT}

thresholds = st.sampled_from([0.3, 0.5, 1.0])
counts = st.integers(1, 3)


class AnyHistory(RuleBasedStateMachine):
    """A rollout of two or three stages, and whatever may happen to it."""

    desk: Desk

    @initialize(
        size=counts, success=thresholds, failure=thresholds, analysed=st.booleans(),
        gate=st.booleans(), pause=st.booleans(),
    )  # fmt: skip
    def plan(
        self, size: int, success: float, failure: float, analysed: bool, gate: bool, pause: bool
    ) -> None:
        first = StagePlan(
            "canary", count=size, bake_s=5.0, success_threshold=success, gate=gate,
            failure_threshold=failure, analysis=AnalysisPlan() if analysed else None,
        )  # fmt: skip
        self.success = success
        self.desk = Desk(
            Plan(
                model="reader", model_version="1.1.0", publisher="acme", slot="reader",
                stages=(first, StagePlan("half", percent=50), StagePlan("rest")),
                on_failure="pause" if pause else "rollback", assignment_timeout_s=60.0,
            ),
            DEVICES,
        )  # fmt: skip
        self.skipped_by_hand = False
        self.heard_later = False
        self.desk.settle()

    @rule()
    def a_good_hour(self) -> None:
        self.tick(0.0)
        self.everybody_commits()
        for _ in range(3):
            self.tick(6.0)

    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0, 61.0]))
    def tick(self, seconds: float) -> None:
        desk = self.desk
        desk.now += seconds
        made = decide(desk.rollout, desk.assignments, desk.verdicts, desk.now, desk.absent)
        assert made == decide(desk.rollout, desk.assignments, desk.verdicts, desk.now, desk.absent)
        desk.tick()
        active = {s.name: set(s.devices) for s in desk.rollout.stages if s.state == "active"}
        for decision in made:
            if isinstance(decision, Notify):
                assert decision.device in active[decision.stage]
                assert decision.device not in desk.absent
            if isinstance(decision, StageTo) and decision.state is StageState.ANALYZING:
                desk.verdicts.pop(decision.stage, None)

    @rule(data=st.data(), hurry=st.booleans())
    def report(self, data: st.DataObject, hurry: bool) -> None:
        under_way = [d for d, a in self.desk.assignments.items() if ASSIGNMENT[a.state]]
        under_way = [device for device in under_way if device not in self.desk.absent]
        if not under_way:
            return
        device = data.draw(st.sampled_from(sorted(under_way)))
        self.heard_later |= self.desk.rollout.stages[-1].state is StageState.PASSED
        if hurry and self.desk.assignments[device].state is AssignmentState.NOTIFIED:
            self.desk.commit(device)
            return
        nexts = sorted(ASSIGNMENT[self.desk.assignments[device].state])
        code = data.draw(st.sampled_from(["", "insufficient_data", "smoke_failed"]))
        self.desk.report(device, data.draw(st.sampled_from(nexts)), code=code)

    @rule()
    def everybody_commits(self) -> None:
        for device, known in self.desk.assignments.items():
            if known.state is AssignmentState.NOTIFIED and device not in self.desk.absent:
                self.desk.commit(device)

    @rule(device=st.sampled_from(DEVICES), state=st.sampled_from(OUT), returns=st.booleans())
    def go_or_come(self, device: str, state: DeviceState, returns: bool) -> None:
        if self.desk.absent.get(device) is DeviceState.DECOMMISSIONED:
            return
        if returns:
            self.desk.absent.pop(device, None)
        else:
            self.desk.absent[device] = state

    @rule()
    def everybody_goes(self) -> None:
        """Then nothing is waited for: the rollout is decided, or asks an operator."""
        self.desk.absent |= {
            device: DeviceState.REJECTED
            for device in self.desk.rollout.devices
            if device not in self.desk.absent
        }
        for _ in range(15):
            self.tick(6.0)
        stages = [stage.state for stage in self.desk.rollout.stages]
        if self.desk.rollout.state is RolloutState.RUNNING:
            assert StageState.ACTIVE not in stages
        assert self.desk.rollout.state is not RolloutState.ROLLING_BACK
        for device, known in self.desk.assignments.items():
            assert known.state in ASSIGNMENT_ENDS, device

    @rule()
    def everybody_is_back(self) -> None:
        waiting = [d for d, a in self.desk.assignments.items() if a.back is not None]
        self.desk.go_back(*(device for device in waiting if device not in self.desk.absent))

    @rule(state=st.sampled_from(list(AnalysisState)), insufficient=st.booleans())
    def verdict(self, state: AnalysisState, insufficient: bool) -> None:
        self.desk.verdicts["canary"] = Say(state, insufficient=insufficient)

    @rule(action=st.sampled_from([Action.PAUSE, Action.RESUME, Action.SKIP_STAGE]))
    def interrupt(self, action: Action) -> None:
        self.operate(action)

    @rule(action=st.sampled_from([Action.ABORT, Action.ROLL_BACK]), really=st.integers(0, 7))
    def end(self, action: Action, really: int) -> None:
        if really == 7:
            self.operate(action)

    def operate(self, action: Action) -> None:
        before = self.desk.rollout
        try:
            self.desk.act(action)
        except RefusedError:
            assert self.desk.rollout == before
        else:
            self.skipped_by_hand |= action is Action.SKIP_STAGE

    @rule(device=st.sampled_from(LATE))
    def arrive(self, device: str) -> None:
        self.desk.rollout = join(self.desk.rollout, [device])

    @precondition(lambda self: hasattr(self, "desk"))
    @invariant()
    def a_pause_has_its_reason_and_nothing_else_has_one(self) -> None:
        rollout = self.desk.rollout
        assert (rollout.state is RolloutState.PAUSED) == (rollout.pause_reason is not None)

    @precondition(lambda self: hasattr(self, "desk"))
    @invariant()
    def only_devices_of_stages_that_were_active_are_assigned(self) -> None:
        opened = {device for stage in self.desk.rollout.stages for device in stage.devices}
        assert set(self.desk.assignments) <= opened

    @precondition(lambda self: hasattr(self, "desk"))
    @invariant()
    def no_device_is_in_two_stages_and_no_late_one_in_an_early_stage(self) -> None:
        stages = [set(stage.devices) for stage in self.desk.rollout.stages]
        assert sum(map(len, stages)) == len(set().union(*stages))
        assert not (stages[0] | stages[1]) & set(LATE)

    @precondition(lambda self: hasattr(self, "desk"))
    @invariant()
    def stages_pass_in_order(self) -> None:
        states = [stage.state for stage in self.desk.rollout.stages]
        done = [state in (StageState.PASSED, StageState.SKIPPED) for state in states]
        if self.desk.rollout.state is RolloutState.RUNNING:
            assert done == sorted(done, reverse=True)

    @precondition(lambda self: hasattr(self, "desk"))
    @invariant()
    def a_completed_rollout_left_nobody_uncommitted(self) -> None:
        desk = self.desk
        if desk.rollout.state is not RolloutState.COMPLETED or self.skipped_by_hand:
            return
        if desk.log[-1] is not self._completion() or self.heard_later:
            return  # what devices do afterwards is another matter
        assert all(known.state in ASSIGNMENT_ENDS for known in desk.assignments.values())
        rest = desk.rollout.stages[2]
        if rest.state is StageState.PASSED:
            told = [device for device in rest.devices if device in desk.assignments]
            states = [desk.assignments[device].state for device in told]
            assert NO_SUCCESS.isdisjoint(states)  # its success threshold is 1

    def _completion(self) -> object:
        return next(d for d in self.desk.log if getattr(d, "state", None) == "completed")

    @precondition(lambda self: hasattr(self, "desk"))
    @invariant()
    def an_ended_rollout_notifies_nobody(self) -> None:
        kinds = [d for d in self.desk.log if isinstance(d, Notify) or hasattr(d, "state")]
        states = [str(d.state) for d in kinds if not isinstance(d, Notify)]
        over = {"aborted", "rolling_back", "completed"}
        if over & set(states):
            first = next(n for n, d in enumerate(kinds) if str(getattr(d, "state", "")) in over)
            assert not any(isinstance(decision, Notify) for decision in kinds[first:])


AnyHistory.TestCase.settings = settings(
    max_examples=3 * settings().max_examples, stateful_step_count=40
)
test_any_history = AnyHistory.TestCase
