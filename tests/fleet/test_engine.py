"""The engine with a real database, real director and catalog, and devices that only talk."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import select

from fleet import schema
from fleet.analysis import AnalysisPlan
from fleet.commands import Commands
from fleet.dispatch import Dispatcher
from fleet.engine import Engine
from fleet.ingest import Ingest
from fleet.mqtt import Sender
from fleet.plan import Plan, StagePlan
from fleet.registry import Registry
from fleet.store import Store
from fleet.watch import DriftWatch
from skerry.errors import ConflictError, FormatError, NotFoundError, RefusedError, UsageError
from skerry.records import Context, SketchWindow
from skerry.states import AssignmentState, RolloutState
from skerry.wire import Ack, Batch, Desired, Hello, Policy
from tests.fakes.releases import columns, readable_bundle
from tests.fakes.reporter import FLEET, SHARDS, Reporter, report
from tests.fakes.trusted import NOW, TrustedFleet, assigned, make_bundle, make_fleet

Enrol = Callable[..., Reporter]
GOOD = ("downloading", "downloaded", "verified", "staged", "activating", "probation", "committed")


@dataclass
class Air:
    """What left for the devices, instead of MQTT."""

    sent: list[tuple[str, int, Desired]] = field(default_factory=list)
    policies: list[Policy] = field(default_factory=list)

    def desired(self, device: str, version: int, body: Desired) -> None:
        self.sent.append((device, version, body))

    def policy(self, policy: Policy) -> None:
        self.policies.append(policy)

    def ack(self, device: str, ack: Ack) -> None:
        pass

    def hello(self, device: str, hello: Hello) -> None:
        pass

    def latest(self, device: str) -> tuple[int, Desired]:
        return next((v, body) for d, v, body in reversed(self.sent) if d == device)


class Bench:
    """A fleet without sockets, on a clock of its own."""

    def __init__(self, store: Store, trusted: TrustedFleet, enrol: Enrol) -> None:
        self.now = NOW
        self.store, self.trusted, self.air = store, trusted, Air()
        self.dispatcher = Dispatcher(trusted.director, store.releases)
        self.engine = self.new_engine()
        self.commands = Commands(
            store=store,
            dispatcher=self.dispatcher,
            engine=self.engine,
            sender=Sender(FLEET, trusted.keys.message),
            registry=Registry(
                store.devices,
                trusted.authority,
                lambda: (trusted.catalog.root, trusted.director.root),
            ),
            bundles=trusted.bundles,
            catalog=trusted.catalog,
            fleet_url="http://127.0.0.1:8441",
            clock=lambda: self.now,
        )
        self.ingest = Ingest(store.telemetry, self.air, fleet_id=FLEET, shards=SHARDS)
        self.devices: dict[str, Reporter] = {}
        self._enrol = enrol
        self._versions: dict[str, int] = {}
        self._records: dict[str, int] = {}

    def new_engine(self) -> Engine:
        return Engine(
            self.store,
            self.dispatcher,
            self.air,
            DriftWatch(self.store, windows=22),
            drift_every_s=1.0,
            keep_predictions_s=3600.0,
            keep_windows_s=7200.0,
        )

    def add(self, *names: str, site: str = "north") -> None:
        for name in names:
            self.devices[name] = self._enrol(name, {"site": site})

    def publish(self, version: str) -> str:
        bundle = readable_bundle(version)
        made = self.commands.publish(
            io.BytesIO(bundle), self.trusted.sign(bundle, now=self.now), "anna"
        )
        return made.bundle.digest

    def tick(self, seconds: float = 1.0) -> None:
        self.now += timedelta(seconds=seconds)
        self.engine.tick(self.now)

    def answer(self, *names: str, way: Sequence[str] = GOOD, **fields: object) -> None:
        """Devices carry out the latest they were told, and say so."""
        for name in names or tuple(self.devices):
            _, body = self.air.latest(name)
            version = self._versions[name] = self._versions.get(name, 0) + 1
            reports = [report(slot.assignment_id, *way, **fields) for slot in body.slots.values()]
            bundles = [slot.bundle for slot in body.slots.values()]
            bundle = bundles[0] if way[-1] in ("committed", "already_installed") else None
            self.ingest.take(
                [self.devices[name].reported(version, *reports, bundle=bundle)],
                self.now.timestamp(),
            )

    def see(self, seen: Mapping[str, tuple[str, list[int], list[int]]]) -> None:
        """Devices close a window of one second: bundle, class counts, brightness counts."""
        at, messages = self.now.timestamp(), []
        for name, (bundle, predicted, bins) in seen.items():
            made = columns(predicted, {"brightness": bins, "contrast": [9, 9, 9, 9, 9]})
            item = SketchWindow(0, float(int(at)), 1.0, sum(predicted), 0, made)
            seq = self._records[name] = self._records.get(name, 0) + 1
            context = Context("reader", "reader", "1.0.0", bundle, "fp32-cpu")
            messages.append(self.devices[name].say("telemetry", Batch(seq, [context], [item])))
        self.ingest.take(messages, at)

    def states(self, rollout: str) -> dict[str, str]:
        return {d: a.state for d, a in self.store.rollouts.assignments(rollout).items()}

    def rollout_state(self, rollout: str) -> tuple[RolloutState, str]:
        found = self.store.rollouts.get(rollout)
        return found.state, found.reason


BOTH = pytest.mark.parametrize(
    "database_url",
    ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)],
    indirect=True,
)
SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def bench(store: Store, tmp_path: Path, enrol: Enrol) -> Bench:
    return Bench(store, make_fleet(tmp_path / "trust"), enrol)


def plan(version: str = "1.0.0", *stages: StagePlan, **fields: object) -> Plan:
    return Plan("reader", version, "acme", "reader", stages=stages or (StagePlan("all"),), **fields)  # type: ignore[arg-type]


# --- the good way ------------------------------------------------------------------


@BOTH
def test_a_rollout_reaches_every_device_and_completes(bench: Bench) -> None:
    bench.add("dev-01", "dev-02")
    bundle = bench.publish("1.0.0")
    rollout = bench.commands.create_rollout(plan(), "anna")
    bench.tick()
    assert sorted(device for device, _, _ in bench.air.sent) == ["dev-01", "dev-02"]
    version, body = bench.air.latest("dev-01")
    slot = body.slots["reader"]
    assert (version, slot.bundle, slot.rollout_id) == (1, bundle, rollout)
    bench.answer()
    bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.COMPLETED
    assert bench.states(rollout) == {"dev-01": "committed", "dev-02": "committed"}


@SQLITE
def test_what_is_sent_verifies_as_a_device_would(bench: Bench, tmp_path: Path) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    bench.commands.create_rollout(plan(), "anna")
    bench.tick()
    _, body = bench.air.latest("dev-01")
    slot = body.slots["reader"]
    target = assigned(
        tmp_path / "device", bench.trusted.director.root, body.director, slot.target, bench.now
    )
    assert target is not None
    assert (target.device, target.slot, target.nonce) == ("dev-01", "reader", slot.assignment_id)
    assert "sha256:" + target.sha256 == slot.bundle


@SQLITE
def test_canaries_go_first(bench: Bench) -> None:
    bench.add("dev-01", "dev-02", "dev-03")
    bench.publish("1.0.0")
    stages = (StagePlan("canary", count=1), StagePlan("rest"))
    rollout = bench.commands.create_rollout(plan("1.0.0", *stages), "anna")
    bench.tick()
    [(first, _, _)] = bench.air.sent
    bench.answer(first)
    bench.tick()
    assert len(bench.air.sent) == 3
    bench.answer(*(device for device, _, _ in bench.air.sent[1:]))
    bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.COMPLETED


@SQLITE
def test_devices_that_come_later_join_the_last_stage(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    rollout = bench.commands.create_rollout(plan(), "anna")
    bench.tick()
    bench.add("dev-02")
    bench.tick(3.0)
    assert bench.air.latest("dev-02")[0] == 1
    bench.answer()
    bench.tick()
    assert bench.states(rollout) == {"dev-01": "committed", "dev-02": "committed"}


# --- going back --------------------------------------------------------------------


def committed(bench: Bench, version: str) -> tuple[str, str]:
    bundle = bench.publish(version)
    rollout = bench.commands.create_rollout(plan(version), "anna")
    bench.tick()
    bench.answer()
    bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.COMPLETED
    return bundle, rollout


@BOTH
def test_a_rollback_returns_each_device_to_what_it_ran(bench: Bench) -> None:
    bench.add("dev-01", "dev-02")
    old, _ = committed(bench, "1.0.0")
    _, rollout = committed(bench, "1.1.0")
    bench.commands.rollback(rollout, "anna")
    bench.tick()
    version, body = bench.air.latest("dev-01")
    assert (version, body.slots["reader"].bundle) == (3, old)
    assert body.slots["reader"].probation.min_answered == 0
    bench.answer()
    bench.tick()
    state, reason = bench.rollout_state(rollout)
    assert (state, "2 of 2 devices returned" in reason) == (RolloutState.ROLLED_BACK, True)
    assert set(bench.states(rollout).values()) == {"rolled_back"}


@SQLITE
def test_a_first_release_rolled_back_leaves_the_slot_empty(bench: Bench) -> None:
    bench.add("dev-01")
    _, rollout = committed(bench, "1.0.0")
    bench.commands.rollback(rollout, "anna")
    bench.tick()
    assert bench.air.latest("dev-01")[1].slots == {}
    assert bench.rollout_state(rollout)[0] is RolloutState.ROLLED_BACK


@SQLITE
def test_failed_devices_fail_the_stage_and_roll_it_back(bench: Bench) -> None:
    bench.add("dev-01", "dev-02")
    old, _ = committed(bench, "1.0.0")
    bench.publish("1.1.0")
    rollout = bench.commands.create_rollout(plan("1.1.0"), "anna")
    bench.tick()
    way = (*GOOD[:-1], "rolled_back")
    bench.answer(way=way, phase="probation", code="error_rate", effect="rolled_back")
    bench.tick()
    state, reason = bench.rollout_state(rollout)
    assert (state, "error_rate" in reason) == (RolloutState.ROLLING_BACK, True)
    assert bench.air.latest("dev-02")[1].slots["reader"].bundle == old
    bench.answer(way=("already_installed",))
    bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.ROLLED_BACK


@SQLITE
def test_a_silent_device_times_out_and_is_told_to_go_back(bench: Bench) -> None:
    bench.add("dev-01")
    committed(bench, "1.0.0")
    bench.publish("1.1.0")
    rollout = bench.commands.create_rollout(plan("1.1.0", assignment_timeout_s=30.0), "anna")
    bench.tick()
    bench.tick(31.0)
    assert bench.states(rollout) == {"dev-01": AssignmentState.TIMED_OUT}
    assert bench.air.latest("dev-01")[0] == 3


@SQLITE
def test_what_a_device_waits_for_leave_is_no_part_of_the_limit(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    rollout = bench.commands.create_rollout(plan(assignment_timeout_s=30.0), "anna")
    bench.tick()
    known = bench.store.rollouts.assignments(rollout)["dev-01"]
    way = ["downloading", "downloaded", "verified", "staged", "waiting_window"]

    def say(version: int, *states: str) -> None:
        body = report(known.assignment_id, *states)
        bench.ingest.take([bench.devices["dev-01"].reported(version, body)], bench.now.timestamp())

    say(1, *way)
    bench.tick(86_400.0)
    assert bench.states(rollout) == {"dev-01": AssignmentState.WAITING_WINDOW}
    say(2, *way, "activating")
    bench.tick(29.0)
    assert bench.states(rollout) == {"dev-01": AssignmentState.ACTIVATING}
    bench.tick(2.0)
    assert bench.states(rollout) == {"dev-01": AssignmentState.TIMED_OUT}


@SQLITE
def test_a_late_word_does_not_overwrite_why_the_fleet_ended_it(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    rollout = bench.commands.create_rollout(plan(assignment_timeout_s=30.0), "anna")
    bench.tick()
    known = bench.store.rollouts.assignments(rollout)["dev-01"]
    seen = report(known.assignment_id, "downloading")
    bench.ingest.take([bench.devices["dev-01"].reported(1, seen)], bench.now.timestamp())
    bench.tick(31.0)
    bench.ingest.take([bench.devices["dev-01"].reported(2, seen)], bench.now.timestamp())
    known = bench.store.rollouts.assignments(rollout)["dev-01"]
    assert known.state is AssignmentState.TIMED_OUT
    assert "the limit is 30 s" in known.message


@BOTH
def test_a_second_rollout_supersedes_the_first(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    first = bench.commands.create_rollout(plan("1.0.0"), "anna")
    bench.tick()
    bench.publish("1.1.0")
    second = bench.commands.create_rollout(plan("1.1.0"), "anna")
    bench.tick()
    assert bench.states(first) == {"dev-01": "superseded"}
    assert bench.states(second) == {"dev-01": "notified"}
    assert not bench.store.rollouts.assignments(first)["dev-01"].current


# --- sent again ----------------------------------------------------------------------


@SQLITE
def test_everything_is_sent_again_at_the_start(bench: Bench) -> None:
    bench.add("dev-01", "dev-02")
    bench.publish("1.0.0")
    bench.commands.create_rollout(plan(), "anna")
    bench.tick()
    before = sorted(bench.air.sent, key=lambda sent: sent[0])
    bench.air.sent.clear()
    bench.new_engine().start()
    assert bench.air.sent == before
    assert bench.air.policies == [Policy(1)]


@SQLITE
@pytest.mark.parametrize(("held", "answers"), [(0, 1), (1, 0)])
def test_hello_is_answered_only_if_the_device_holds_another(
    bench: Bench, held: int, answers: int
) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    bench.commands.create_rollout(plan(), "anna")
    bench.tick()
    bench.air.sent.clear()
    bench.engine.hello("dev-01", Hello("0.1.0", held, 0), bench.now)
    assert len(bench.air.sent) == answers


@SQLITE
def test_desired_is_sent_again_until_the_device_says_it_has_it(bench: Bench) -> None:
    bench.add("dev-01", "dev-02")
    bench.publish("1.0.0")
    bench.commands.create_rollout(plan(), "anna")
    bench.tick()
    bench.air.sent.clear()
    bench.tick(8.0)
    bench.ingest.take([bench.devices["dev-01"].hello()], bench.now.timestamp())
    bench.tick(8.0)
    # dev-02 has not been heard of: it will say hello
    assert [(device, version) for device, version, _ in bench.air.sent] == [("dev-01", 1)]
    bench.air.sent.clear()
    bench.ingest.take(
        [bench.devices["dev-01"].reported(1, desired_version=1)], bench.now.timestamp()
    )
    bench.tick(12.0)
    assert bench.air.sent == []


@SQLITE
def test_the_policy_is_sent_again_after_somebody_connected(bench: Bench) -> None:
    bench.tick(20.0)
    assert bench.air.policies == []
    bench.engine.hello("dev-01", Hello("0.1.0", 0, 0, again=True), bench.now)
    bench.tick(20.0)
    assert bench.air.policies == []  # it has been connected all the while
    bench.engine.hello("dev-01", Hello("0.1.0", 0, 0), bench.now)
    bench.tick(20.0)
    bench.tick(20.0)
    assert bench.air.policies == [Policy(1)]


@SQLITE
def test_after_a_restored_backup_versions_rise_above_what_the_device_holds(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    bench.commands.create_rollout(plan(), "anna")
    bench.tick()
    bench.engine.hello("dev-01", Hello("0.1.0", 40, 0), bench.now)
    version, body = bench.air.latest("dev-01")
    assert version == 41
    assert "41.targets.json" in body.director


@SQLITE
def test_director_metadata_is_signed_anew_every_day(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    bench.commands.create_rollout(plan(assignment_timeout_s=9e9), "anna")
    bench.tick()
    assert bench.air.latest("dev-01")[0] == 1
    bench.tick(25 * 3600.0)
    assert bench.air.latest("dev-01")[0] == 2


@BOTH
def test_nothing_of_a_step_is_stored_if_signing_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    rollout = bench.commands.create_rollout(plan(), "anna")
    with monkeypatch.context() as patch:
        patch.setattr(type(bench.trusted.director), "sign", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench.tick()
    assert (bench.states(rollout), bench.air.sent) == ({}, [])
    bench.tick()
    assert bench.states(rollout) == {"dev-01": "notified"}


# --- analysis and drift ------------------------------------------------------------------

EVEN = [5] * 9 + [0]
SKEWED = [40, 5] + [0] * 8
CALM = [5, 9, 17, 9, 5]
DARK = [30, 15, 0, 0, 0]


def watched(bench: Bench) -> tuple[str, str]:
    """Five devices on 1.0.0 with a past, and a canary stage of two on 1.1.0."""
    bench.add("dev-01", "dev-02", "dev-03", "dev-04", "dev-05", "dev-06")
    old, _ = committed(bench, "1.0.0")
    for _ in range(24):
        bench.tick()
        bench.see(dict.fromkeys(bench.devices, (old, EVEN, CALM)))
    new = bench.publish("1.1.0")
    analysis = AnalysisPlan(max_wait_s=60.0)
    stages = (StagePlan("canary", count=2, analysis=analysis), StagePlan("rest"))
    rollout = bench.commands.create_rollout(plan("1.1.0", *stages), "anna")
    bench.tick()
    canaries = [d for d, v, _ in bench.air.sent if v == 2]
    assert len(canaries) == 2
    bench.answer(*canaries)
    return rollout, new


@BOTH
@pytest.mark.parametrize(("predicted", "passes"), [(EVEN, True), (SKEWED, False)])
def test_a_canary_is_compared_with_its_controls(
    bench: Bench, predicted: list[int], passes: bool
) -> None:
    rollout, new = watched(bench)
    canaries = set(bench.states(rollout))
    old = bench.store.releases.of_model("reader")[0].bundle
    for _ in range(9):
        bench.tick()
        bench.see(
            {
                name: (new, predicted, CALM) if name in canaries else (old, EVEN, CALM)
                for name in bench.devices
            }
        )
    bench.tick()
    state, reason = bench.rollout_state(rollout)
    if passes:
        assert (state, len(bench.states(rollout))) == (RolloutState.RUNNING, 6)
    else:
        assert state is RolloutState.ROLLING_BACK
        assert "prediction" in reason
        assert set(bench.states(rollout)) == canaries


@SQLITE
def test_an_analysis_without_windows_waits_and_then_pauses(bench: Bench) -> None:
    rollout, _ = watched(bench)
    for _ in range(5):
        bench.tick()
    assert bench.rollout_state(rollout)[0] is RolloutState.RUNNING
    bench.tick(70.0)
    bench.tick(1.0)
    found = bench.store.rollouts.get(rollout)
    assert (found.state, found.pause_reason) == ("paused", "insufficient_data")
    with bench.store.database.read() as connection:
        states = connection.scalars(select(schema.verdicts.c.state)).all()
    assert set(states) == {"inconclusive"}


@SQLITE
def test_a_device_that_drifts_raises_an_alert_that_closes_again(bench: Bench) -> None:
    bench.add("dev-01", "dev-02", "dev-03", "dev-04", "dev-05", "dev-06")
    bundle, _ = committed(bench, "1.0.0")
    rng = Random(7)

    def seconds(count: int, dark: Sequence[str]) -> None:
        for _ in range(count):
            bench.tick()
            seen = {}
            for number, name in enumerate(bench.devices):
                # a little of its own, so that the spread is not zero
                bins = list(CALM)
                bins[number % 3] += rng.randrange(3)
                seen[name] = (bundle, EVEN, DARK if name in dark else bins)
            bench.see(seen)

    seconds(20, ())
    assert bench.store.alerts.live_alerts("drift") == []
    seconds(6, ("dev-04",))
    [alert] = bench.store.alerts.live_alerts("drift")
    assert alert.body["devices"] == ["dev-04"]
    assert [feature["name"] for feature in alert.body["features"]] == ["brightness"]
    assert "dev-04" in alert.message
    bench.commands.acknowledge_alert(alert.alert_id, "anna")
    # it lasts longer than the windows that are looked at, and is still named
    seconds(24, ("dev-04",))
    [alert] = bench.store.alerts.live_alerts("drift")
    assert (alert.state, alert.acknowledged_by) == ("acknowledged", "anna")
    seconds(8, ())
    assert bench.store.alerts.live_alerts("drift") == []
    with pytest.raises(ConflictError, match="closed"):
        bench.commands.acknowledge_alert(alert.alert_id, "anna")
    seconds(10, ())
    assert bench.store.alerts.live_alerts("drift") == []
    report = bench.store.windows.drift_report("reader")
    assert report is not None
    assert {device.verdict for device in report.devices} == {"quiet"}


@BOTH
def test_old_telemetry_is_forgotten(bench: Bench) -> None:
    bench.add("dev-01")
    bundle = bench.publish("1.0.0")
    bench.see({"dev-01": (bundle, EVEN, CALM)})
    bench.tick(7000.0)
    assert len(bench.store.windows.windows("reader", 0.0)) == 1
    bench.tick(300.0)
    assert bench.store.windows.windows("reader", 0.0) == []


# --- operators -----------------------------------------------------------------------------


@SQLITE
def test_a_rollout_of_an_unpublished_version_is_not_found(bench: Bench) -> None:
    bench.add("dev-01")
    with pytest.raises(NotFoundError, match="publish it first"):
        bench.commands.create_rollout(plan("9.9.9"), "anna")


@SQLITE
def test_a_rollout_for_nobody_is_refused(bench: Bench) -> None:
    bench.publish("1.0.0")
    with pytest.raises(UsageError, match="no accepted device"):
        bench.commands.create_rollout(plan(), "anna")


@SQLITE
def test_what_is_over_cannot_be_resumed(bench: Bench) -> None:
    bench.add("dev-01")
    _, rollout = committed(bench, "1.0.0")
    with pytest.raises(RefusedError):
        bench.commands.resume(rollout, "anna")


@SQLITE
def test_pause_holds_back_and_resume_goes_on(bench: Bench) -> None:
    bench.add("dev-01", "dev-02")
    bench.publish("1.0.0")
    stages = (StagePlan("canary", count=1), StagePlan("rest"))
    rollout = bench.commands.create_rollout(plan("1.0.0", *stages), "anna")
    bench.tick()
    bench.commands.pause(rollout, "anna")
    bench.answer(bench.air.sent[0][0])
    bench.tick()
    assert len(bench.air.sent) == 1
    bench.commands.resume(rollout, "anna")
    bench.tick()
    assert len(bench.air.sent) == 2


@SQLITE
def test_an_unreadable_bundle_never_reaches_the_catalog(bench: Bench) -> None:
    bundle = make_bundle()
    with pytest.raises(FormatError):
        bench.commands.publish(io.BytesIO(bundle), bench.trusted.sign(bundle), "anna")
    assert bench.trusted.catalog.releases() == []


@BOTH
def test_publishing_twice_changes_nothing(bench: Bench) -> None:
    bundle = readable_bundle()
    metadata = bench.trusted.sign(bundle)
    first = bench.commands.publish(io.BytesIO(bundle), metadata, "anna")
    again = bench.commands.publish(io.BytesIO(bundle), metadata, "anna")
    assert (first.new, again.new) == (True, False)
    assert len(bench.store.releases.all()) == 1


@SQLITE
def test_a_release_that_only_the_catalog_knows_is_brought_in(bench: Bench) -> None:
    bench.trusted.publish(readable_bundle())
    assert bench.commands.reconcile() == 1
    assert bench.commands.reconcile() == 0
    [release] = bench.store.releases.all()
    assert release.target.path == "models/acme/reader@1.0.0"


@SQLITE
@pytest.mark.parametrize(
    "wrong",
    [Policy(0, window_s=0.1), Policy(0, sample_rate=1.5), Policy(0, spread_s=-1.0)],
)
def test_a_policy_out_of_bounds_is_refused(bench: Bench, wrong: Policy) -> None:
    with pytest.raises(UsageError):
        bench.commands.set_policy(wrong, "anna")
    assert bench.commands.policy().version == 1


@BOTH
def test_policies_have_rising_versions(bench: Bench) -> None:
    assert bench.commands.set_policy(Policy(0, window_s=2.0), "anna").version == 2
    assert bench.commands.set_policy(Policy(0, window_s=3.0), "anna").version == 3
    assert bench.commands.policy() == Policy(3, window_s=3.0)


@BOTH
def test_what_operators_do_is_on_record(bench: Bench) -> None:
    bench.add("dev-01")
    bench.publish("1.0.0")
    rollout = bench.commands.create_rollout(plan(), "anna")
    bench.commands.abort(rollout, "ben")
    trail = bench.store.alerts.audit_trail(10)
    assert [(entry.actor, entry.action) for entry in trail] == [
        ("ben", "rollout.abort"),
        ("anna", "rollout.submit"),
        ("anna", "rollout.create"),
        ("anna", "release.publish"),
    ]


@SQLITE
def test_tokens_are_for_one_device(bench: Bench) -> None:
    made = bench.commands.preauthorize("dev-07", {"site": "north"}, "anna")
    assert (made.device_id, made.token.startswith("sk1.")) == ("dev-07", True)
    bench.add("dev-01")
    with pytest.raises(ConflictError):
        bench.commands.preauthorize("dev-01", {}, "anna")
