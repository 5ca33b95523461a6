"""Bytes that attack who decodes them, and floods. Rows 43 to 45 and 47 of the attack table."""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import select

from fleet import schema
from fleet.broker_config import FLEET_USER
from fleet.ingest import Ingest, Message
from fleet.intake import sound_items
from fleet.rate import Rate
from fleet.registry import Claim, DeviceRecord
from fleet.store import Store
from skerry import topics, wire
from skerry.canonical import from_msgpack, to_msgpack
from skerry.counting import count_numeric
from skerry.errors import FormatError
from skerry.manifest import Baseline, BaselineColumn, BaselineGroup, parse_baseline
from skerry.records import Context, SketchWindow
from skerry.sketch import (
    CategoricalCounts,
    CategoricalSpec,
    Column,
    NumericCounts,
    NumericSpec,
    check_column,
    check_spec,
)
from skerry.states import DeviceState
from tests.fakes.backend import new_store
from tests.fakes.brokers import Mosquitto, NatsServer, Server, context_for
from tests.fakes.mqtt_client import MqttClient
from tests.fakes.mqtt_device import until
from tests.fakes.reporter import FLEET, INVENTORY, SHARDS, Reporter

DEVICE = "dev-01"
NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
EMPTY_MAPS = b"\xdd" + (120_000).to_bytes(4, "big") + b"\x80" * 120_000


@dataclass
class Fleet:
    """Ingest on a real store, with one accepted device."""

    store: Store
    device: Reporter
    answered: list[str] = field(default_factory=list)
    rate: Rate = field(default_factory=Rate)

    def __post_init__(self) -> None:
        self.ingest = Ingest(
            self.store.telemetry, self, fleet_id=FLEET, shards=SHARDS, rate=self.rate
        )

    def ack(self, device: str, _ack: wire.Ack) -> None:
        self.answered.append(device)

    def hello(self, device: str, _hello: wire.Hello) -> None:
        pass

    def take(self, *messages: Message, now: float = 1000.0) -> None:
        self.ingest.take(messages, now)

    @property
    def refused(self) -> dict[tuple[str, str], int]:
        t = schema.refused.c
        with self.store.database.read() as connection:
            return {
                (d, r): n for d, r, n in connection.execute(select(t.device, t.reason, t.count))
            }

    @property
    def stored(self) -> int:
        with self.store.database.read() as connection:
            return len(connection.execute(select(schema.predictions.c.request)).all())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = new_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def enrol(store: Store) -> Callable[[str], Reporter]:
    return lambda device: _enrol(store, device)


def _enrol(store: Store, device: str) -> Reporter:
    reporter, secret = Reporter(device), device.encode().hex().ljust(64, "0")
    store.devices.preauthorize(Claim(device, secret, NOW + timedelta(hours=1)), tags={}, now=NOW)
    record = DeviceRecord(
        device_id=device, state=DeviceState.ACCEPTED, client_id=device, certificate="PEM",
        report_key=reporter.signer.public.raw, certificate_expires=NOW + timedelta(days=30),
        inventory=INVENTORY, enrolled_at=NOW,
    )  # fmt: skip
    assert store.devices.enrol(secret, record)
    return reporter


@pytest.fixture
def fleet(store: Store, enrol: Callable[..., Reporter]) -> Fleet:
    return Fleet(store, enrol(DEVICE))


def signed(device: Reporter, payload: bytes, kind: str = "telemetry") -> Message:
    """A payload as a device that has turned hostile signs it: the signature is right."""
    data = to_msgpack([payload, device.signer.key_id, device.signer.sign(wire.UP_DOMAIN + payload)])
    return Message(topics.up(FLEET, SHARDS, device.device, kind), data)


def payload(body: bytes, kind: str = "telemetry") -> bytes:
    up = wire.Up(
        v=1, dev=DEVICE, boot="b00t", seq=1, ts=1.0, mono=1.0, type=kind, body=msgspec.Raw(body)  # type: ignore[arg-type]
    )  # fmt: skip
    return to_msgpack(up)


@contextmanager
def cheap(peak_bytes: int = 16 << 20, seconds: float = 1.0) -> Iterator[None]:
    """What is done inside takes little memory and little time."""
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < peak_bytes
    assert time.process_time() - began < 4 * seconds  # tracing costs three parts of it


# --- row 43: MessagePack that lies about itself --------------------------------------------

LIES = {
    "array of 2^32-1": b"\xdd\xff\xff\xff\xff",
    "map of 2^32-1": b"\xdf\xff\xff\xff\xff",
    "array of 2^32-1 in a batch": b"\x82\xa5first\x01\xa5items\xdd\xff\xff\xff\xff",
    "bytes of 4 GB": b"\xc6\xff\xff\xff\xff",
    "text of 4 GB": b"\xdb\xff\xff\xff\xff",
    "100,000 deep": b"\x91" * 100_000,
    "100,000 deep in an unknown key": b"\x81\xa1x" + b"\x91" * 100_000 + b"\x90",
    "maps 60,000 deep": b"\x81\xa1a" * 40_000,
    "keys that are no text": b"\x82\x01\x02\x90\x03",
    "an extension type": b"\xc9\x00\x00\x00\x04\x01abcd",
    "a time": b"\xd6\xff\x00\x00\x00\x00",
    "a reserved byte": b"\xc1",
    "nothing": b"",
    "text that is not UTF-8": b"\x81\xa5first\xa2\xff\xfe",
    "two values": b"\x80\x80",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_row_43_messagepack_that_lies_about_itself(fleet: Fleet, lie: bytes) -> None:
    with cheap():
        fleet.take(
            Message(topics.up(FLEET, SHARDS, DEVICE, "telemetry"), lie),  # as the message itself
            signed(fleet.device, lie),  # as its payload
            signed(fleet.device, payload(lie)),  # as its body
        )
    assert fleet.refused == {(DEVICE, "malformed"): 3}
    assert fleet.answered == []
    fleet.take(fleet.device.predictions(1, 3))
    assert (fleet.stored, fleet.answered) == (3, [DEVICE])


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_row_43_a_device_refuses_it_too(fleet: Fleet, lie: bytes) -> None:
    signer = fleet.device.signer
    keys = {signer.key_id: signer.public}
    sealed = to_msgpack([lie, signer.key_id, signer.sign(wire.DOWN_DOMAIN + lie)])
    for data in (lie, sealed):
        with cheap(), pytest.raises(FormatError) as refused:
            wire.open_down(data, keys, device=DEVICE, now=1.0)
        assert refused.value.code == "format"
    whole = wire.seal_down(signer, dev=DEVICE, type="ack", body=wire.Ack({"b": 1}))
    assert wire.open_down(whole, keys, device=DEVICE, now=1.0)[1] == wire.Ack({"b": 1})


# --- row 44: few bytes, much memory ----------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        EMPTY_MAPS,
        b"\x83\xa5first\x01\xa8contexts\x90\xa5items" + EMPTY_MAPS,
        b"\x83\xa5first\x01\xa5items\x90\xa8contexts" + EMPTY_MAPS,
        b"\x84\xa5first\x01\xa5items\x90\xa8contexts\x90\xa7unknown" + EMPTY_MAPS,
        b"\x83\xa5first\x01\xa8contexts\x90\xa5items\xdd\x00\x00\x9c\x40"
        + b"\x92\xa1k\x01" * 30_000,
    ],
    ids=["alone", "as items", "as contexts", "as what nobody knows", "as records"],
)
def test_row_44_many_empty_things_cost_no_memory(fleet: Fleet, body: bytes) -> None:
    with cheap(peak_bytes=24 << 20):
        fleet.take(signed(fleet.device, payload(body)))
    assert fleet.stored == 0
    assert set(fleet.refused) <= {(DEVICE, "malformed")}
    fleet.take(fleet.device.predictions(1, 3))
    assert fleet.stored == 3


def test_row_44_a_megabyte_is_not_even_looked_at(fleet: Fleet) -> None:
    maps = b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x80" * 1_000_000
    with cheap(peak_bytes=8 << 20):
        fleet.take(signed(fleet.device, payload(maps)))
    assert fleet.refused == {(DEVICE, "malformed"): 1}
    with pytest.raises(FormatError) as refused:
        from_msgpack(maps, list[Any])
    assert refused.value.code == "format"
    assert "at most 131072 bytes" in str(refused.value)


# --- row 45: poisoned sketches -----------------------------------------------------------------

SPEC = NumericSpec([0.0, 0.25, 0.5, 0.75, 1.0])
SOUND = count_numeric(np.array([0.1, 0.3, 0.3, 0.9, 2.0, np.nan]), SPEC)
KINDS = CategoricalSpec(["a", "b"])
POISON: dict[str, Column] = {
    "cells that do not add up": msgspec.structs.replace(SOUND, n=7),
    "a negative cell": msgspec.structs.replace(SOUND, bins=[2, 2, -1, 1]),
    "a negative cell made good elsewhere": msgspec.structs.replace(SOUND, below=-1, missing=1),
    "too few cells": msgspec.structs.replace(SOUND, bins=[1, 2, 1]),
    "too many cells": msgspec.structs.replace(SOUND, bins=[1, 2, 0, 1] + [0] * 5000),
    "no cells": NumericCounts(0, []),
    "an extreme that is no number": msgspec.structs.replace(SOUND, min=float("nan")),
    "an infinite extreme": msgspec.structs.replace(SOUND, max=float("inf")),
    "one extreme": msgspec.structs.replace(SOUND, max=None),
    "extremes the wrong way round": msgspec.structs.replace(SOUND, min=3.0, max=-3.0),
    "a sum of a kilobyte": msgspec.structs.replace(SOUND, sum=b"\x7f" * 1024),
    "a negative sum of squares": msgspec.structs.replace(SOUND, sum_sq=b"\x80"),
    "a negative run": msgspec.structs.replace(SOUND, run=-1),
    "another kind": CategoricalCounts(6, [3, 3]),
    "2^64 rows": NumericCounts((1 << 64) - 1, [(1 << 64) - 1, 0, 0, 0]),
}  # fmt: skip


def window(column: Column) -> SketchWindow:
    return SketchWindow(0, 60.0, 60.0, 6, 0, {"level": column})


def sound(column: Column) -> bool:
    context = Context("camera", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")
    return bool(sound_items([(1, window(column))], [context], lambda _: {"level": SPEC}))


@pytest.mark.parametrize("name", POISON)
def test_row_45_a_poisoned_sketch(name: str) -> None:
    assert not sound(POISON[name])
    if name != "2^64 rows":  # it adds up, and is more than any device sees
        with pytest.raises(FormatError) as refused:
            check_column(POISON[name], SPEC)
        assert refused.value.code == "sketch"
    check_column(SOUND, SPEC)
    assert sound(SOUND)


def test_row_45_a_poisoned_sketch_stops_no_other_record(fleet: Fleet) -> None:
    device = fleet.device
    poison = CategoricalCounts(5, [9, -4])
    records = [window(poison), wire.Prediction("r-1", 1.0, 0, 1, 0.5, 100, [])]
    fleet.take(device.records(1, records))
    assert fleet.refused == {(DEVICE, "unsound_record"): 1}
    assert (fleet.stored, fleet.answered) == (1, [DEVICE])


@pytest.mark.parametrize(
    "spec",
    [
        NumericSpec([1.0, 0.0]), NumericSpec([0.0, 0.0, 1.0]), NumericSpec([0.0, float("nan"), 1.0]),
        NumericSpec([0.0, float("inf")]), NumericSpec([]), NumericSpec([1.0]), NumericSpec([0.0, 1.0], scale=0),
        NumericSpec([float(n) for n in range(1000)]), CategoricalSpec(["a", "a"]), CategoricalSpec([str(n) for n in range(999)]),
    ],
)  # fmt: skip
def test_row_45_a_baseline_that_nothing_can_be_counted_on(
    spec: NumericSpec | CategoricalSpec,
) -> None:
    with pytest.raises(FormatError) as refused:
        check_spec(spec)
    assert refused.value.code == "sketch"
    good = Baseline({"level": BaselineColumn(SPEC, SOUND)}, 6)
    assert parse_baseline(to_msgpack(good)) == good
    for slices in (
        {"site": {"a": BaselineGroup(6, {"other": SOUND})}},
        {"site": {"a": BaselineGroup(6, {"level": NumericCounts(6, [1])})}},
        {"site": {"a\n": BaselineGroup(6, {})}},
        {"": {}},
        {str(n): {} for n in range(9)},
        {"site": {str(n): BaselineGroup(0, {}) for n in range(65)}},
    ):
        with pytest.raises(FormatError):
            parse_baseline(to_msgpack(msgspec.structs.replace(good, slices=slices)))
    counts: Column = (
        CategoricalCounts(0, []) if isinstance(spec, CategoricalSpec) else NumericCounts(0, [])
    )
    with pytest.raises(FormatError) as refused:
        parse_baseline(to_msgpack(Baseline({"level": BaselineColumn(spec, counts)}, 6)))
    assert refused.value.code == "baseline"


# --- row 47: floods --------------------------------------------------------------------------------


@pytest.fixture(
    params=[
        pytest.param(NatsServer, id="nats"),
        pytest.param(Mosquitto, id="mosquitto", marks=pytest.mark.mosquitto),
    ]
)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    started: Server = request.param(tmp_path / "broker")
    started.accept(DEVICE)
    yield started
    started.stop()


def test_row_47_a_publish_of_two_megabytes_ends_the_connection(server: Server) -> None:
    fleet = MqttClient(server.port, server.pki.context(FLEET_USER), FLEET_USER)
    topic = topics.up(FLEET, SHARDS, DEVICE, "telemetry")
    fleet.subscribe(topics.up_filter(FLEET, topics.shard_of(DEVICE, SHARDS)))
    honest = MqttClient(server.port, context_for(server, DEVICE), DEVICE)
    try:
        honest.publish(topic, b"x" * wire.MAX_MESSAGE_BYTES)
        until("the largest message that is allowed", lambda: fleet.payloads())
        assert honest.connected
        honest.publish(topic, b"x" * (2 << 20))
        until("the end of the connection", lambda: not honest.connected)
        assert [len(data) for data in fleet.payloads()] == [wire.MAX_MESSAGE_BYTES]
        again = MqttClient(server.port, context_for(server, DEVICE), DEVICE)
        assert again.connected
        again.close()
    finally:
        honest.close()
        fleet.close()


def test_row_47_a_message_larger_than_any_is_refused_by_ingest(fleet: Fleet) -> None:
    topic = topics.up(FLEET, SHARDS, DEVICE, "telemetry")
    fleet.take(Message(topic, b"x" * (2 << 20)), fleet.device.predictions(1, 2))
    assert fleet.refused == {(DEVICE, "malformed"): 1}
    assert fleet.stored == 2


def test_row_47_unknown_topics_and_devices_make_no_series_of_their_own(fleet: Fleet) -> None:
    good = fleet.device.predictions(1, 1)
    shard = topics.shard_of(DEVICE, SHARDS)
    strange = [
        replace(good, topic=f"skerry/v1/{FLEET}/up/{shard}/{DEVICE}/kind-{n}") for n in range(300)
    ]
    others = [
        replace(good, topic=f"skerry/v1/fleet-{n}/up/{shard}/{DEVICE}/telemetry")
        for n in range(300)
    ]
    unknown = [
        replace(good, topic=topics.up(FLEET, SHARDS, f"dev-x{n}", "telemetry")) for n in range(300)
    ]
    fleet.take(*strange, *others, *unknown, good)
    assert fleet.refused == {
        ("", "foreign_topic"): 300, ("", "foreign_fleet"): 300, ("", "unknown_device"): 300,
    }  # fmt: skip
    assert fleet.stored == 1


def test_row_47_a_device_that_floods_is_heard_up_to_its_rate(
    store: Store, enrol: Callable[..., Reporter]
) -> None:
    fleet = Fleet(store, enrol(DEVICE), rate=Rate(bytes_per_s=20_480, burst_bytes=204_800))
    other = enrol("dev-02")
    flood = [fleet.device.hello() for _ in range(1000)]
    fleet.take(*flood, other.predictions(1, 5))
    assert fleet.refused == {(DEVICE, "too_fast"): 900}
    assert fleet.stored == 5  # who does not flood is heard
    fleet.take(fleet.device.predictions(1, 5), now=1001.0)
    assert fleet.stored == 10  # and so is who did, a second later


def test_row_47_an_honest_device_never_comes_near_its_rate() -> None:
    """Ten times its credit in full batches every second, for an hour after a week away."""
    rate, now = Rate(), 0.0
    for _ in range(3600):
        now += 1.0
        assert all(rate.allows(DEVICE, 48_000, now) for _ in range(80))


def test_row_47_many_messages_of_as_many_names_are_forgotten() -> None:
    rate = Rate(max_devices=100)
    with cheap(peak_bytes=4 << 20, seconds=3.0):
        for number in range(200_000):
            rate.allows(f"dev-{number}", 100, 1.0)
    assert len(rate._buckets) == 100
