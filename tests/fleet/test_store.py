"""What is put into the store comes out again, on SQLite and on PostgreSQL."""

import io
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from sqlalchemy import select

from fleet import schema
from fleet.ingest import Ingest
from fleet.plan import Plan, Rollout
from fleet.registry import Claim, DeviceRecord
from fleet.rollout import draft
from fleet.rollout_rows import StoredVerdict
from fleet.store import Store
from fleet.store_alerts import NewAlert
from fleet.store_releases import Release
from fleet.store_steps import NewAssignment
from skerry.bundle import read_bundle
from skerry.canonical import from_json, from_msgpack, to_msgpack
from skerry.errors import ConflictError, InvalidTransition, NotFoundError
from skerry.keys import Signer
from skerry.manifest import Evaluation
from skerry.records import Aside, RawInput, SketchWindow
from skerry.states import AnalysisState, AssignmentState, DeviceState, RolloutState
from skerry.trust import CatalogTarget
from skerry.wire import Policy
from tests.fakes.releases import BASELINE, columns, readable_bundle
from tests.fakes.reporter import BUNDLE, FLEET, INVENTORY, SHARDS, Reporter, prediction, window

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
Enrol = Callable[..., Reporter]


def claim(device: str = "dev-01", fill: str = "a") -> Claim:
    return Claim(device, fill * 64, NOW + timedelta(hours=24))


def record(device: str = "dev-01", key: bytes | None = None) -> DeviceRecord:
    return DeviceRecord(
        device_id=device,
        state=DeviceState.ACCEPTED,
        client_id=f"{device}_x",
        report_key=key or Signer.generate().public.raw,
        certificate="PEM",
        certificate_expires=NOW + timedelta(days=30),
        inventory=INVENTORY,
        enrolled_at=NOW,
    )


def release(version: str = "1.0.0", counter: int = 1) -> Release:
    bundle = read_bundle(io.BytesIO(readable_bundle(version)))
    target = CatalogTarget(
        f"models/acme/reader@{version}", len(bundle.oci), bundle.digest.removeprefix("sha256:"),
        counter, ["any"], "0.1.0", [BUNDLE],
    )  # fmt: skip
    evaluation = from_json(bundle.blobs[bundle.manifest.evaluation.digest], Evaluation)
    return Release(target, bundle.manifest, evaluation, NOW.timestamp() + counter)


# --- devices -------------------------------------------------------------------------


def test_an_enrolment_is_both_or_neither(store: Store) -> None:
    store.devices.preauthorize(claim(), tags={"site": "north"}, now=NOW)
    assert store.devices.device_state("dev-01") is DeviceState.PREAUTHORIZED
    assert store.devices.record("dev-01") is None
    made = record()
    assert store.devices.enrol("a" * 64, made)
    assert store.devices.record("dev-01") == made
    spent = store.devices.claim("a" * 64)
    assert spent is not None
    assert spent.spent
    assert not store.devices.enrol("a" * 64, record())
    assert store.devices.record("dev-01") == made


def test_a_new_token_takes_the_old_ones_place(store: Store) -> None:
    store.devices.preauthorize(claim(fill="a"), tags={"site": "north"}, now=NOW)
    store.devices.preauthorize(claim(fill="b"), tags={"site": "south"}, now=NOW)
    assert store.devices.claim("a" * 64) is None
    assert store.devices.claim("b" * 64) == claim(fill="b")
    [view] = store.devices.views()
    assert view.tags == {"site": "south"}


def test_a_token_enrols_only_its_device(store: Store) -> None:
    store.devices.preauthorize(claim("dev-01"), tags={}, now=NOW)
    assert not store.devices.enrol("a" * 64, record("dev-02"))


def test_one_of_two_who_spend_a_token_at_once_gets_it(store: Store) -> None:
    store.devices.preauthorize(claim(), tags={}, now=NOW)
    got: list[bool] = []
    threads = [
        threading.Thread(target=lambda: got.append(store.devices.enrol("a" * 64, record())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False, False, False, True]


def test_the_report_key_is_that_of_an_accepted_device(store: Store, enrol: Enrol) -> None:
    voice = enrol("dev-01")
    assert store.devices.report_key("dev-01") == voice.signer.public
    assert store.devices.report_key("dev-02") is None
    assert store.devices.move("dev-01", DeviceState.ACCEPTED, DeviceState.REJECTED, NOW)
    assert store.devices.report_key("dev-01") is None
    assert not store.devices.move("dev-01", DeviceState.ACCEPTED, DeviceState.REJECTED, NOW)


def test_a_device_that_enrols_anew_is_heard_at_once(store: Store, enrol: Enrol) -> None:
    enrol("dev-01")
    assert store.devices.report_key("dev-01") is not None
    store.devices.preauthorize(claim(fill="c"), tags={}, now=NOW)
    again = record()
    assert store.devices.enrol("c" * 64, again)
    key = store.devices.report_key("dev-01")
    assert key is not None
    assert key.raw == again.report_key


def test_tags_are_replaced(store: Store, enrol: Enrol) -> None:
    enrol("dev-01", {"site": "north"})
    assert store.devices.set_tags("dev-01", {"line": "3"})
    assert not store.devices.set_tags("dev-02", {})
    assert store.devices.views(["dev-01"])[0].tags == {"line": "3"}


# --- releases ------------------------------------------------------------------------


def test_a_release_comes_back_as_it_was(store: Store) -> None:
    first, second = release("1.0.0", 1), release("1.1.0", 2)
    for made in (first, second):
        store.releases.add(made, baseline=to_msgpack(BASELINE), sizes={BUNDLE: 5})
    assert store.releases.get("models/acme/reader@1.0.0") == first
    assert store.releases.by_bundle(second.bundle) == second
    assert store.releases.of_model("reader") == store.releases.all() == [first, second]
    assert store.releases.baseline(first.bundle) == BASELINE
    specs = store.telemetry.column_specs(first.bundle)
    assert specs is not None
    assert set(specs) == set(BASELINE.columns)


def test_a_version_is_published_once(store: Store) -> None:
    store.releases.add(release(), baseline=to_msgpack(BASELINE), sizes={BUNDLE: 5})
    with pytest.raises(ConflictError, match=r"reader 1\.0\.0"):
        store.releases.add(release(), baseline=to_msgpack(BASELINE), sizes={BUNDLE: 5})


def test_what_is_not_published_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.releases.get("models/acme/reader@9.9.9")
    assert store.releases.by_bundle(BUNDLE) is None
    assert store.releases.baseline(BUNDLE) is None
    assert store.telemetry.column_specs(BUNDLE) is None


# --- rollouts ------------------------------------------------------------------------


@pytest.fixture
def rollout(store: Store, enrol: Enrol) -> Rollout:
    enrol("dev-01")
    store.releases.add(release(), baseline=to_msgpack(BASELINE), sizes={BUNDLE: 5})
    made = draft("r-001", Plan("reader", "1.0.0", "acme", "reader"), ["dev-01"], 1000.0)
    store.rollouts.create(made, release().bundle)
    return made


def assignment(name: str, returns: str | None = None, target: str | None = None) -> NewAssignment:
    path = "models/acme/reader@1.0.0" if target is None else target
    return NewAssignment(name, "all", "dev-01", "reader", 1, path, BUNDLE, "", returns)


def test_a_rollout_comes_back_as_it_was(store: Store, rollout: Rollout) -> None:
    assert store.rollouts.get("r-001") == rollout
    assert store.rollouts.all() == [rollout]
    assert store.rollouts.open_ids() == ["r-001"]
    with pytest.raises(ConflictError):
        store.rollouts.create(rollout, BUNDLE)
    with pytest.raises(NotFoundError):
        store.rollouts.get("r-404")


def test_what_a_failed_step_did_is_undone(store: Store, rollout: Rollout) -> None:
    def torn() -> None:
        with store.rollouts.step("r-001") as step:
            step.assign(assignment("a-1"), 1001.0)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        torn()
    assert store.rollouts.assignments("r-001") == {}


def test_steps_of_an_assignment_are_checked(store: Store, rollout: Rollout) -> None:
    with store.rollouts.step("r-001") as step:
        step.assign(assignment("a-1"), 1001.0)
    with pytest.raises(InvalidTransition), store.rollouts.step("r-001") as step:
        step.end_assignment("dev-01", AssignmentState.COMMITTED, "by decree", 1002.0)
    with store.rollouts.step("r-001") as step:
        step.end_assignment("dev-01", AssignmentState.TIMED_OUT, "silent", 1003.0)
    known = store.rollouts.assignments("r-001")["dev-01"]
    assert (known.state, known.message, known.current) == ("timed_out", "silent", True)


def test_a_return_is_told_apart_from_what_it_undoes(store: Store, rollout: Rollout) -> None:
    with store.rollouts.step("r-001") as step:
        step.assign(assignment("a-1"), 1001.0)
        step.end_assignment("dev-01", AssignmentState.TIMED_OUT, "silent", 1002.0)
        step.assign(assignment("a-2", returns="a-1"), 1003.0)
    known = store.rollouts.assignments("r-001")["dev-01"]
    assert (known.assignment_id, known.back, known.back_at) == ("a-1", "notified", 1003.0)


def test_a_return_to_nothing_is_committed_at_once(store: Store, rollout: Rollout) -> None:
    with store.rollouts.step("r-001") as step:
        step.assign(assignment("a-1"), 1001.0)
        step.end_assignment("dev-01", AssignmentState.CANCELED, "withdrawn", 1002.0)
        step.assign(assignment("a-2", returns="a-1", target=""), 1003.0)
    assert store.rollouts.assignments("r-001")["dev-01"].back is AssignmentState.COMMITTED


def test_an_aborted_rollout_is_open_while_a_device_is_under_way(
    store: Store, rollout: Rollout
) -> None:
    with store.rollouts.step("r-001") as step:
        step.assign(assignment("a-1"), 1001.0)
        over = msgspec.structs.replace(step.rollout, state=RolloutState.ABORTED)
        step.put_rollout(over, 1002.0)
    assert store.rollouts.open_ids() == ["r-001"]
    with store.rollouts.step("r-001") as step:
        step.end_assignment("dev-01", AssignmentState.CANCELED, "withdrawn", 1003.0)
    assert store.rollouts.open_ids() == []


def test_only_verdicts_since_the_stage_is_analysed_count(store: Store, rollout: Rollout) -> None:
    for at in (5.0, 20.0):
        verdict = StoredVerdict(AnalysisState.SUCCESSFUL, f"at {at:g}", False, at, "all", {"n": 1})
        store.rollouts.add_verdict("r-001", 1, verdict)
    with store.rollouts.step("r-001") as step:
        stages = (msgspec.structs.replace(step.rollout.stages[0], since=10.0),)
        step.put_rollout(msgspec.structs.replace(step.rollout, stages=stages), 10.0)
        assert step.verdicts()["all"].reason == "at 20"
    with store.rollouts.step("r-001") as step:
        stages = (msgspec.structs.replace(step.rollout.stages[0], since=30.0),)
        step.put_rollout(msgspec.structs.replace(step.rollout, stages=stages), 30.0)
        assert step.verdicts() == {}


# --- windows, alerts, policy ----------------------------------------------------------


class Silent:
    def ack(self, *_: object) -> None:
        pass

    hello = ack


def test_parts_of_one_window_are_merged(store: Store, enrol: Enrol) -> None:
    voice = enrol("dev-01")
    ingest = Ingest(store.telemetry, Silent(), fleet_id=FLEET, shards=SHARDS)
    part = [5, *[0] * 9]
    rest = [0, 7, *[0] * 8]
    items = [window(1000.0, 5, counts=part, errors=1), window(1001.0, 7, counts=rest)]
    ingest.take([voice.records(1, items)], 1002.0)
    # the process was killed; its successor closes what it had left open
    ingest.take([voice.records(1, [window(1000.0, 7, counts=rest)], boot="boot-2")], 1003.0)
    first, second = store.windows.windows("reader", 0.0)
    assert (first.start, first.n, first.errors, second.n) == (1000.0, 12, 1, 7)
    assert first.columns == columns([5, 7, *[0] * 8], {})
    assert store.windows.windows("reader", 1000.5) == [second]
    assert store.windows.windows("reader", 0.0, until=1000.5, device="dev-01") == [first]
    assert store.windows.windows("reader", 0.0, device="dev-02") == []
    assert store.windows.models_since(1001.0) == ["reader"]
    assert store.windows.longest_window_s("reader", 0.0) == 1.0
    with store.database.read() as connection:
        assert len(connection.execute(select(schema.windows)).all()) == 3


def test_what_a_record_carries_besides_is_kept(store: Store, enrol: Enrol) -> None:
    voice = enrol("dev-01")
    ingest = Ingest(store.telemetry, Silent(), fleet_id=FLEET, shards=SHARDS)
    aside = Aside([RawInput("row", "FP32", [1, 1], b"\x00" * 4)], 7, [0], [1])
    plain = prediction("plain")
    ingest.take(
        [voice.records(1, [plain, msgspec.structs.replace(plain, id="full", aside=aside)])], 1001.0
    )
    with store.database.read() as connection:
        rows = connection.execute(
            select(schema.predictions.c.request, schema.predictions.c.aside)
        ).all()
    kept = {row.request: row.aside for row in rows}
    assert kept["plain"] is None
    assert from_msgpack(kept["full"], Aside) == aside


def test_covers_are_kept(store: Store, enrol: Enrol) -> None:
    voice = enrol("dev-01")
    ingest = Ingest(store.telemetry, Silent(), fleet_id=FLEET, shards=SHARDS)
    item = SketchWindow(0, 1000.0, 1.0, 0, 0, {}, {"boot-0": (1, 7)})
    ingest.take([voice.records(1, [item])], 1001.0)
    with store.database.read() as connection:
        covers = connection.execute(select(schema.windows.c.covers)).scalar_one()
    assert covers == '{"boot-0":[1,7]}'


def test_of_one_subject_one_alert_is_open(store: Store) -> None:
    def new(message: str) -> NewAlert:
        return NewAlert("drift", "reader/dev-01", "warning", message, {"model": "reader"})

    first = store.alerts.raise_alert(new("darker"), 1000.0)
    assert store.alerts.raise_alert(new("darker still"), 1001.0) == first
    assert store.alerts.acknowledge(first, "anna", 1002.0)
    assert not store.alerts.acknowledge(first, "ben", 1003.0)
    assert store.alerts.raise_alert(new("dark"), 1004.0) == first
    found = store.alerts.get_alert(first)
    assert (found.message, found.state, found.acknowledged_by) == ("dark", "acknowledged", "anna")
    store.alerts.close_alert(first, 1005.0)
    assert store.alerts.live_alerts("drift") == []
    assert [alert.alert_id for alert in store.alerts.closed_alerts("drift", 1000.0)] == [first]
    assert store.alerts.raise_alert(new("again"), 1006.0) != first
    with pytest.raises(NotFoundError):
        store.alerts.get_alert("alert-404")


def test_a_policy_follows_the_last_one(store: Store) -> None:
    assert store.alerts.policy() == Policy(1)
    store.alerts.put_policy(Policy(2, window_s=1.0), 1000.0)
    with pytest.raises(ConflictError):
        store.alerts.put_policy(Policy(2, window_s=2.0), 1001.0)
    assert store.alerts.policy() == Policy(2, window_s=1.0)
