"""Devices that are rejected, quarantined or decommissioned while a rollout runs (rule 12)."""

from pathlib import Path

import pytest
from sqlalchemy import select

from fleet import schema
from fleet.plan import Plan, StagePlan
from fleet.rollout import Action
from fleet.store import Store
from skerry.errors import RefusedError
from skerry.states import DeviceState, RolloutState
from skerry.wire import Hello
from tests.fakes.rollouts import Desk, notified, returned
from tests.fakes.trusted import make_fleet
from tests.fleet.test_engine import SQLITE, Bench, Enrol

DEVICES = [f"dev-{n}" for n in range(4)]
OUT = [DeviceState.PENDING, DeviceState.REJECTED, DeviceState.DECOMMISSIONED]
CANARY = (StagePlan("canary", count=2), StagePlan("rest"))
OLD = "models/acme/reader@1.0.0"


def desk(*stages: StagePlan, **fields: object) -> Desk:
    plan = Plan("reader", "1.1.0", "acme", "reader", stages=stages or CANARY, **fields)  # type: ignore[arg-type]
    return Desk(plan, DEVICES)


@pytest.fixture
def bench(store: Store, tmp_path: Path, enrol: Enrol) -> Bench:
    return Bench(store, make_fleet(tmp_path / "trust"), enrol)


# --- what is decided --------------------------------------------------------------------


@pytest.mark.parametrize("state", OUT)
def test_a_device_that_goes_while_under_way_is_not_waited_for(state: DeviceState) -> None:
    rollout = desk()
    first, second = notified(rollout.settle())
    rollout.commit(first)
    rollout.absent[second] = state
    made = rollout.settle()
    ended = rollout.assignments[second].state
    gone = state is DeviceState.DECOMMISSIONED
    assert ended == ("decommissioned" if gone else "canceled")
    assert returned(made) == ({} if gone else {second: OLD})  # found when it comes back
    assert rollout.stages()["canary"] == "passed"
    assert "1 of 1 device notified committed, 1 left out" in rollout.rollout.stages[0].reason


@pytest.mark.parametrize("state", OUT)
def test_a_stage_whose_devices_are_all_gone_does_not_pass(state: DeviceState) -> None:
    rollout = desk()
    rollout.absent |= dict.fromkeys(notified(rollout.settle()), state)
    rollout.settle()
    assert rollout.rollout.state is RolloutState.PAUSED
    assert rollout.rollout.pause_reason == "insufficient_data"


@pytest.mark.parametrize("state", OUT)
def test_a_device_that_is_gone_before_its_stage_is_not_told(state: DeviceState) -> None:
    rollout = desk(StagePlan("all"))
    rollout.rollout, kept = rollout.rollout, set(DEVICES[1:])
    rollout.absent[DEVICES[0]] = state
    assert set(notified(rollout.settle())) == kept
    assert rollout.rollout.stages[0].reason.startswith("3 of 4 devices notified")
    rollout.commit(*kept)
    rollout.settle()
    assert rollout.rollout.state is RolloutState.COMPLETED
    assert "3 of 3 devices notified committed, 1 left out" in rollout.rollout.reason


def test_a_device_that_comes_back_in_time_is_told_and_a_late_one_is_not_waited_for() -> None:
    rollout = desk(StagePlan("all", bake_s=10.0))
    early, late, *kept = DEVICES
    rollout.absent = {early: DeviceState.PENDING, late: DeviceState.REJECTED}
    rollout.settle()
    del rollout.absent[early]
    assert notified(rollout.settle()) == [early]
    rollout.commit(early, *kept)
    rollout.settle()
    assert rollout.stages()["all"] == "baking"
    del rollout.absent[late]
    assert notified(rollout.settle()) == []
    rollout.tick(11.0)
    rollout.settle()
    assert rollout.rollout.state is RolloutState.COMPLETED


def test_what_a_device_committed_before_it_went_still_counts() -> None:
    rollout = desk()
    canaries = notified(rollout.settle())
    rollout.commit(*canaries)
    rollout.absent |= dict.fromkeys(canaries, DeviceState.DECOMMISSIONED)
    rest = notified(rollout.settle())
    assert rollout.stages()["canary"] == "passed"
    rollout.commit(*rest)
    rollout.settle()
    assert rollout.rollout.state is RolloutState.COMPLETED


@pytest.mark.parametrize("state", OUT)
def test_a_rollback_does_not_wait_for_whoever_is_gone(state: DeviceState) -> None:
    rollout = desk()
    first, second = notified(rollout.settle())
    rollout.commit(first, second)
    rollout.absent[second] = state
    rollout.act(Action.ROLL_BACK)
    made = rollout.settle()
    assert returned(made).keys() == (
        {first} if state is DeviceState.DECOMMISSIONED else {first, second}
    )
    rollout.go_back(first)
    rollout.settle()
    assert rollout.rollout.state is RolloutState.ROLLED_BACK


# --- with the real engine ----------------------------------------------------------------


def move(bench: Bench, device: str, state: DeviceState) -> None:
    if state is DeviceState.PENDING:
        bench.commands.quarantine.begin(device, "seen twice", bench.now)
    else:
        bench.commands.move_device(device, state, "anna")


def versions(bench: Bench, device: str) -> list[int]:
    return [version for name, version, _ in bench.air.sent if name == device]


def started(bench: Bench, *names: str) -> str:
    bench.add(*names)
    for version in ("1.0.0", "1.1.0"):
        bench.publish(version)
    bench.commands.create_rollout(Plan("reader", "1.0.0", "acme", "reader"), "anna")
    bench.tick()
    bench.answer()
    bench.tick()
    rollout = bench.commands.create_rollout(Plan("reader", "1.1.0", "acme", "reader"), "anna")
    bench.tick()
    return rollout


@SQLITE
@pytest.mark.parametrize("state", OUT)
def test_nothing_is_signed_for_a_device_that_is_out(bench: Bench, state: DeviceState) -> None:
    rollout = started(bench, "dev-01", "dev-02")
    told = versions(bench, "dev-02")
    move(bench, "dev-02", state)
    bench.tick()
    bench.answer("dev-01")
    bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.COMPLETED
    gone = state is DeviceState.DECOMMISSIONED
    outcome = "decommissioned" if gone else "canceled"
    assert bench.states(rollout) == {"dev-01": "committed", "dev-02": outcome}
    bench.commands.rollback(rollout, "anna")
    for _ in range(3):
        bench.tick(60.0)  # resends and housekeeping fall due, too
    row = bench.store.rollouts.desired("dev-02")
    assert row is not None
    assert (row.director == {}) == (not gone)
    bench.engine.start()
    signed = [version for version in versions(bench, "dev-02") if version not in told]
    assert signed == []


@SQLITE
@pytest.mark.parametrize("state", [DeviceState.PENDING, DeviceState.REJECTED])
def test_a_device_that_is_accepted_again_finds_what_it_ran_before(
    bench: Bench, state: DeviceState
) -> None:
    started(bench, "dev-01")
    held = versions(bench, "dev-01")[-1]
    move(bench, "dev-01", state)
    bench.tick()
    bench.commands.move_device("dev-01", DeviceState.ACCEPTED, "anna")
    bench.engine.hello("dev-01", Hello("0.1.0", held, 0), bench.now)
    version, body = bench.air.latest("dev-01")
    assert version > held
    assert body.slots["reader"].target == OLD
    assert body.director


@SQLITE
def test_decommissioning_ends_what_is_under_way_at_once(bench: Bench) -> None:
    rollout = started(bench, "dev-01", "dev-02")
    bench.commands.abort(rollout, "anna")
    bench.tick()  # now each has a way back under way, too
    bench.commands.move_device("dev-02", DeviceState.DECOMMISSIONED, "anna")
    table = schema.assignments.c
    with bench.store.database.read() as connection:
        found = connection.execute(select(table.state).where(table.device == "dev-02")).scalars()
        assert set(found) == {"committed", "canceled", "decommissioned"}
    bench.tick()


@SQLITE
def test_one_release_in_two_slots_is_refused_when_it_is_asked_for(bench: Bench) -> None:
    rollout = started(bench, "dev-01", "dev-02")
    other = Plan("reader", "1.1.0", "acme", "spare")
    message = "1.1.0 has slot reader of dev-01 and of 1 more: roll it back there first"
    with pytest.raises(RefusedError, match=message):
        bench.commands.create_rollout(other, "anna")
    bench.answer()
    bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.COMPLETED
    with pytest.raises(RefusedError, match=message):  # also when it runs there
        bench.commands.create_rollout(other, "anna")
    bench.add("dev-03", site="south")
    elsewhere = Plan("reader", "1.1.0", "acme", "spare", selector="site=south")
    assert bench.commands.create_rollout(elsewhere, "anna")  # where it is not
    bench.commands.create_rollout(Plan("reader", "1.0.0", "acme", "spare"), "anna")


@SQLITE
def test_a_device_with_the_release_in_another_slot_does_not_join_later(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    first = Plan("reader", "1.0.0", "acme", "spare")
    bench.commands.create_rollout(first, "anna")
    bench.tick()
    bench.answer()
    bench.add("dev-02", site="south")
    second = Plan("reader", "1.0.0", "acme", "reader", selector="site=south")
    rollout = bench.commands.create_rollout(second, "anna")
    bench.tick()
    bench.commands.preauthorize("dev-01", {"site": "south"}, "anna", again=True)
    bench.add("dev-03", site="south")
    bench.tick(3.0)
    bench.answer("dev-02", "dev-03")
    bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.COMPLETED
    assert bench.states(rollout).keys() == {"dev-02", "dev-03"}
