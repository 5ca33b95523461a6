"""Laws of ingest, on the real store: once, in order, signed, and answered after the commit."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf

import msgspec
import pytest
from sqlalchemy import func, select

from fleet import schema
from fleet.ingest import Ingest, Message, above_cursor, replay
from fleet.store import Store
from skerry.errors import InvalidTransition
from skerry.feedback import ErrorSketch
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.records import Context, Errors, Loss, Skip
from skerry.sketch import CategoricalCounts
from skerry.wire import Ack, Batch, Hello, LiveStats, ReleaseRef, Reported, Result
from tests.fakes.reporter import (
    BUNDLE,
    CONTEXT,
    FLEET,
    INVENTORY,
    SHARDS,
    Reporter,
    prediction,
    report,
    window,
)

Enrol = Callable[..., Reporter]


@dataclass
class Heard:
    """What devices were answered."""

    acks: list[tuple[str, Ack]] = field(default_factory=list)
    hellos: list[tuple[str, Hello]] = field(default_factory=list)

    def ack(self, device: str, ack: Ack) -> None:
        self.acks.append((device, ack))

    def hello(self, device: str, hello: Hello) -> None:
        self.hellos.append((device, hello))

    @property
    def upto(self) -> dict[str, int]:
        return self.acks[-1][1].upto


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def ingest(store: Store, heard: Heard) -> Ingest:
    return Ingest(store.telemetry, heard, fleet_id=FLEET, shards=SHARDS)


def requests(store: Store) -> list[str]:
    with store.database.read() as connection:
        return list(
            connection.scalars(
                select(schema.predictions.c.request).order_by(schema.predictions.c.n)
            )
        )


def refused(store: Store) -> dict[tuple[str, str], int]:
    t = schema.refused.c
    with store.database.read() as connection:
        return {(d, r): n for d, r, n in connection.execute(select(t.device, t.reason, t.count))}


# --- once -------------------------------------------------------------------------


def test_records_are_stored_and_acknowledged(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.predictions(1, 3)], 1000.0)
    assert requests(store) == [f"dev-01-boot-1-{n}" for n in (1, 2, 3)]
    assert heard.upto == {"boot-1": 3}
    assert heard.acks[-1][1].now == 1000.0


def test_a_batch_sent_twice_is_stored_once(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    message = device.predictions(1, 3)
    ingest.take([message, message], 1000.0)
    ingest.take([message], 1001.0)
    assert len(requests(store)) == 3
    assert heard.upto == {"boot-1": 3}


def test_of_an_overlapping_batch_only_what_is_new_is_stored(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.predictions(1, 3)], 1000.0)
    ingest.take([device.predictions(2, 5)], 1001.0)
    assert requests(store) == [f"dev-01-boot-1-{n}" for n in (1, 2, 3, 4, 5)]
    assert heard.upto == {"boot-1": 5}


def test_a_gap_is_not_stored_and_answered_with_the_cursor(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.predictions(1, 2)], 1000.0)
    ingest.take([device.predictions(5, 6)], 1001.0)
    assert len(requests(store)) == 2
    assert heard.upto == {"boot-1": 2}


def test_reordered_batches_arrive_when_the_device_goes_back(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    first, second = device.predictions(1, 2), device.predictions(3, 4)
    ingest.take([second, first], 1000.0)
    assert heard.upto == {"boot-1": 2}
    ingest.take([second], 1001.0)
    assert heard.upto == {"boot-1": 4}
    assert len(requests(store)) == 4


def test_boots_are_counted_apart(ingest: Ingest, store: Store, heard: Heard, enrol: Enrol) -> None:
    device = enrol("dev-01")
    ingest.take([device.predictions(1, 2), device.predictions(1, 3, boot="boot-2")], 1000.0)
    assert heard.upto == {"boot-1": 2, "boot-2": 3}
    assert len(requests(store)) == 5


def test_what_a_device_dropped_is_skipped_and_counted(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.predictions(1, 2)], 1000.0)
    loss = Loss("boot-1", 7, "quota")
    ingest.take([device.records(10, [loss, prediction("late")], dropped_before=10)], 1001.0)
    assert heard.upto == {"boot-1": 11}
    with store.database.read() as connection:
        cursor = connection.execute(select(schema.ingest_cursors)).one()
        assert (cursor.upto, cursor.skipped) == (11, 7)
        assert connection.execute(select(schema.losses.c.at_most)).scalar_one() == 7


def test_a_skip_uses_up_its_numbers_and_stores_nothing(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.records(1, [Skip(5), window(1000.0, 5), Skip(2)])], 1000.0)
    assert heard.upto == {"boot-1": 8}
    ingest.take([device.records(4, [Skip(2), window(1000.0, 5), Skip(3)])], 1001.0)
    assert heard.upto == {"boot-1": 9}
    with store.database.read() as connection:
        assert connection.execute(select(schema.windows.c.seq)).scalars().all() == [6]


@pytest.mark.parametrize(
    ("cursor", "first", "count", "dropped_before", "expected"),
    [
        (0, 1, 3, 0, (3, [1, 2, 3], 0)),
        (3, 1, 3, 0, None),
        (3, 2, 3, 0, (4, [4], 0)),
        (3, 5, 2, 0, None),
        (3, 5, 2, 5, (6, [5, 6], 1)),
        (3, 9, 0, 9, (8, [], 5)),
        (8, 5, 2, 5, None),
        (0, 4, 2, 6, (5, [4, 5], 3)),
    ],
)
def test_above_cursor(
    cursor: int, first: int, count: int, dropped_before: int, expected: object
) -> None:
    batch = Batch(first, [], [Loss("b", 1, "r")] * count, dropped_before)
    run = above_cursor(batch, cursor, device="dev-01", boot="b")
    got = run and (run.upto, [seq for seq, _ in run.items], run.skipped)
    assert got == expected


# --- after the commit ----------------------------------------------------------------


def test_a_crash_before_the_commit_answers_nothing_and_stores_nothing(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = enrol("dev-01")
    message = device.predictions(1, 3)

    def torn(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fleet.store_telemetry.TelemetryTransaction.flush", torn)
        with pytest.raises(OSError, match="no space"):
            ingest.take([message], 1000.0)
    assert (heard.acks, requests(store)) == ([], [])
    ingest.take([message], 1001.0)
    assert (heard.upto, len(requests(store))) == ({"boot-1": 3}, 3)


def test_a_crash_between_commit_and_ack_is_healed_by_sending_again(
    store: Store, heard: Heard, enrol: Enrol
) -> None:
    class Dead(Heard):
        def ack(self, device: str, ack: Ack) -> None:
            raise RuntimeError("killed")

    device = enrol("dev-01")
    message = device.predictions(1, 3)
    with pytest.raises(RuntimeError):
        Ingest(store.telemetry, Dead(), fleet_id=FLEET, shards=SHARDS).take([message], 1000.0)
    assert len(requests(store)) == 3
    Ingest(store.telemetry, heard, fleet_id=FLEET, shards=SHARDS).take([message], 1001.0)
    assert (heard.upto, len(requests(store))) == ({"boot-1": 3}, 3)


def test_contexts_of_a_failed_transaction_are_not_remembered(
    ingest: Ingest, store: Store, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = enrol("dev-01")
    message = device.predictions(1, 1)
    with monkeypatch.context() as patch:
        patch.setattr("fleet.store_telemetry.TelemetryTransaction.flush", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest.take([message], 1000.0)
    ingest.take([message], 1000.0)
    joined = select(func.count()).select_from(
        schema.predictions.join(
            schema.contexts, schema.contexts.c.context == schema.predictions.c.context
        )
    )
    with store.database.read() as connection:
        assert connection.execute(joined).scalar_one() == 1


def test_acks_of_one_take_are_one_per_device(ingest: Ingest, heard: Heard, enrol: Enrol) -> None:
    one, two = enrol("dev-01"), enrol("dev-02")
    ingest.take([one.predictions(1, 2), two.predictions(1, 1), one.predictions(3, 4)], 1000.0)
    assert [(device, ack.upto) for device, ack in heard.acks] == [
        ("dev-01", {"boot-1": 4}),
        ("dev-02", {"boot-1": 1}),
    ]


# --- refused ---------------------------------------------------------------------------


def test_what_is_forged_or_foreign_is_counted_and_not_stored(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device, other = enrol("dev-01"), enrol("dev-02")
    good = device.predictions(1, 1)
    stranger = Reporter("dev-99").predictions(1, 1)
    forged = device.say("hello", Hello("0.1.0", 0, 0), signer=Signer.generate())
    posing = replace(good, topic=other.predictions(1, 1).topic)
    wrong_kind = replace(good, topic=good.topic.replace("telemetry", "hello"))
    foreign = replace(good, topic=good.topic.replace("/demo/", "/other-fleet/"))
    noise = Message(good.topic, b"\xff" * 40)
    elsewhere = Message("skerry/v1/demo/up/zz/dev-01/hello", b"")
    huge = Message(good.topic, b"\x00" * 200_000)
    ingest.take(
        [stranger, forged, posing, wrong_kind, foreign, noise, elsewhere, huge, good], 1000.0
    )
    assert requests(store) == ["dev-01-boot-1-1"]
    assert [device for device, _ in heard.acks] == ["dev-01"]
    assert refused(store) == {
        ("", "unknown_device"): 1,
        ("", "foreign_topic"): 1,
        ("", "foreign_fleet"): 1,
        ("dev-01", "unknown_key"): 1,
        ("dev-01", "malformed"): 3,
        ("dev-02", "unknown_key"): 1,
    }


def test_a_rejected_device_is_not_heard(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.hello()], 1000.0)
    with store.database.write() as connection:
        connection.execute(schema.devices.update().values(state="rejected"))
    store.devices.forget_key("dev-01")
    ingest.take([device.predictions(1, 1)], 1001.0)
    assert (requests(store), refused(store)) == ([], {("dev-01", "not_accepted"): 1})


@pytest.mark.parametrize(
    "odd",
    [
        prediction("nul\x00byte"),
        prediction("x" * 500),
        msgspec.structs.replace(prediction("ok"), prediction=1 << 63),
        msgspec.structs.replace(prediction("ok"), latency_us=-1),
        msgspec.structs.replace(prediction("ok"), at=float("inf")),
        msgspec.structs.replace(prediction("ok"), ctx=5),
        msgspec.structs.replace(window(1000.0, 4), n=-1),
        window(1000.0, 4, length_s=0.0),
        msgspec.structs.replace(
            window(1000.0, 4), columns={"prediction": CategoricalCounts(9, [1, 2])}
        ),
        Loss("boot\n", 1, "quota"),
        Errors([CONTEXT], [ErrorSketch(1, 0.0, 1.0, 3, 3)]),
        Errors([CONTEXT], [ErrorSketch(0, 0.0, 1.0, 3, 3), ErrorSketch(0, 0.0, 1.0, 3, 4)]),
        Errors([Context("", "m", "1", "b", "v")], [ErrorSketch(0, 0.0, 1.0, 3, 3)]),
        Errors([CONTEXT], [ErrorSketch(0, inf, 1.0, 3, 3)]),
        Errors([CONTEXT], [ErrorSketch(0, 0.0, 1.0, 1 << 63, 3)]),
    ],
)
def test_an_unsound_record_is_left_out_and_its_number_used_up(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol, odd: object
) -> None:
    device = enrol("dev-01")
    ingest.take([device.records(1, [prediction("a"), odd, prediction("b")])], 1000.0)  # type: ignore[list-item]
    assert requests(store) == ["a", "b"]
    assert heard.upto == {"boot-1": 3}
    assert refused(store) == {("dev-01", "unsound_record"): 1}


def test_a_confidence_that_is_no_number_is_kept_as_none(
    ingest: Ingest, store: Store, enrol: Enrol
) -> None:
    odd = msgspec.structs.replace(prediction("a"), confidence=float("nan"))
    ingest.take([enrol("dev-01").records(1, [odd])], 1000.0)
    with store.database.read() as connection:
        assert connection.execute(select(schema.predictions.c.confidence)).scalar_one() is None


def test_numbers_beyond_reason_are_refused(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take(
        [
            device.records((1 << 63) + 5, [prediction("a")]),
            device.records(1, [], dropped_before=1 << 63),
            device.records(0, [prediction("a")]),
            device.records(1, [prediction("a")], boot="not a boot"),
        ],
        1000.0,
    )
    assert requests(store) == []
    assert refused(store) == {("dev-01", "malformed"): 4}
    assert heard.upto == {"boot-1": 0}


# --- reported, hello, results -------------------------------------------------------------


def test_reported_replaces_only_an_older_one(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    other = "sha256:" + "b" * 64
    ingest.take([device.reported(5, bundle=BUNDLE)], 1000.0)
    ingest.take([device.reported(4, bundle=other)], 1001.0)
    assert heard.acks[-1][1].reported == 5
    [view] = store.devices.views()
    assert view.slots["reader"].bundle == BUNDLE
    assert (view.reported_version, view.hw_class) == (5, "linux-x86_64-vnni")


def test_reports_of_unknown_assignments_are_counted(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.reported(1, report("a-1", "downloading"))], 1000.0)
    assert refused(store) == {("dev-01", "unknown_assignment"): 1}
    assert heard.acks[-1][1].reported == 1


@pytest.mark.parametrize(
    "odd",
    [
        Reported(1, {}, [], Inventory(platform="x" * 200)),
        Reported(1, {}, [], INVENTORY, desired_version=1 << 63),
        Reported(0, {}, [], INVENTORY),
        Reported(1, {"reader": ReleaseRef("a\x00", "1", "b", "c")}, [], INVENTORY),
        Reported(1, {}, [report("a-1", "downloading", live=LiveStats(seconds=inf))], INVENTORY),
        Reported(1, {}, [report("a-1", *["downloading"] * 65)], INVENTORY),
        Reported(1, {}, [report("a-1", "downloading", message="x" * 5000)], INVENTORY),
    ],
)
def test_a_malformed_reported_is_counted_and_stops_nothing(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol, odd: Reported
) -> None:
    device = enrol("dev-01")
    ingest.take([device.say("reported", odd), device.predictions(1, 1)], 1000.0)
    assert len(requests(store)) == 1
    [view] = store.devices.views()
    assert view.reported_version == 0


def test_an_odd_hello_is_kept_in_bounds(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    odd = Hello("agent\x00" + "x" * 500, 1 << 63, 0, outbox_records=-5, outbox_bytes=1 << 63)
    ingest.take([enrol("dev-01").say("hello", odd)], 1000.0)
    [view] = store.devices.views()
    assert (view.agent[:6], view.outbox_records) == ("agentx", 0)


def test_a_path_is_replayed_on_what_is_known() -> None:
    way = ("downloading", "downloaded", "verified", "staged")
    known = ("queued", "notified", "downloading", "downloaded")
    assert [step.state for step in replay(known, report("a", *way))] == ["verified", "staged"]
    assert [step.state for step in replay(known, report("a", "notified", *way))] == [
        "verified",
        "staged",
    ]
    assert replay(known, report("a", *way[:1])) == []


@pytest.mark.parametrize(
    "path",
    [
        ("downloading", "committed"),
        ("downloading", "downloaded", "verified", "staged", "queued"),
        ("downloading", "downloaded", "no such state"),
    ],
)
def test_an_unlisted_step_is_refused(path: tuple[str, ...]) -> None:
    with pytest.raises(InvalidTransition):
        replay(("queued", "notified"), report("a", *path))


def test_what_the_fleet_has_ended_does_not_go_on() -> None:
    known = ("queued", "notified", "downloading", "timed_out")
    with pytest.raises(InvalidTransition):
        replay(known, report("a", "downloading", "downloaded"))


def test_hello_is_answered_with_every_cursor(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    ingest.take([device.predictions(1, 2), device.predictions(1, 3, boot="boot-2")], 1000.0)
    ingest.take([device.reported(7)], 1000.5)
    ingest.take([device.hello(desired_version=3)], 1001.0)
    ack = heard.acks[-1][1]
    assert (ack.upto, ack.reported) == ({"boot-1": 2, "boot-2": 3}, 7)
    assert [(device, hello.desired_version) for device, hello in heard.hellos] == [("dev-01", 3)]
    [view] = store.devices.views()
    assert (view.last_seen, view.agent, view.desired_version) == (1001.0, "0.1.0", 3)


def test_a_result_is_stored_once_and_acknowledged(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol
) -> None:
    device = enrol("dev-01")
    store.alerts.add_command("c-1", "dev-01", "restart", {}, now=999.0, expires_at=1300.0)
    ingest.take([device.say("result", Result("c-1", True, "done"))], 1000.0)
    ingest.take([device.say("result", Result("c-1", False, "again"))], 1001.0)
    assert heard.acks[-1][1].results == ["c-1"]
    with store.database.read() as connection:
        row = connection.execute(select(schema.commands)).one()
    assert (row.ok, row.output, row.finished_at) == (1, "done", 1000.0)


def test_windows_of_a_published_bundle_must_have_its_cells(
    ingest: Ingest, store: Store, heard: Heard, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skerry.sketch import CategoricalSpec

    specs = {"prediction": CategoricalSpec([str(n) for n in range(10)])}
    monkeypatch.setattr(store.telemetry, "column_specs", lambda bundle: specs)
    device = enrol("dev-01")
    ingest.take([device.records(1, [window(1000.0, 4), window(1001.0, 4, counts=[2, 2])])], 1000.0)
    assert refused(store) == {("dev-01", "unsound_record"): 1}
    assert heard.upto == {"boot-1": 2}


def test_contexts_are_kept_once(ingest: Ingest, store: Store, enrol: Enrol) -> None:
    device = enrol("dev-01")
    ingest.take([device.predictions(1, 2)], 1000.0)
    ingest.take([device.predictions(3, 4)], 1001.0)
    with store.database.read() as connection:
        rows = connection.execute(select(schema.contexts)).all()
    assert [Context(*row[1:]) for row in rows] == [
        Context("reader", "reader", "1.0.0", BUNDLE, "int8-cpu")
    ]
