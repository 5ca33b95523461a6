"""What goes up through a broker in the wrong hands: forged, altered, repeated, and others' reports.

The fleet refuses, counts by device and reason, and stores nothing of it; what it stores counts once.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select

from fleet import schema
from fleet.ingest import Ingest, Message
from fleet.registry import Claim, DeviceRecord
from fleet.store import Store, open_store
from skerry.canonical import from_msgpack, to_msgpack
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.states import DeviceState
from skerry.topics import up
from skerry.wire import (
    UP_DOMAIN,
    Ack,
    Hello,
    Reported,
    Result,
    Up,
    UpBody,
    UpType,
)
from tests.attacks.harness import DEVICE, OLD, Site, cut, flipped, unsigned
from tests.fakes.reporter import FLEET, SHARDS, Reporter

WHEN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


class Central:
    """The fleet's ingest on a real store, with what it answers."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(f"sqlite:///{folder / 'fleet.db'}")
        self.acks: list[tuple[str, Ack]] = []
        self.ingest = Ingest(self.store.telemetry, self, fleet_id=FLEET, shards=SHARDS)

    def ack(self, device: str, ack: Ack) -> None:
        self.acks.append((device, ack))

    def hello(self, device: str, hello: Hello) -> None:
        pass

    def enrol(self, device: str) -> Reporter:
        reporter = Reporter(device)
        enrol(self.store, device, reporter.signer)
        return reporter

    def hears(self, *messages: Message) -> dict[str, int]:
        """Take messages in; return what was refused of them, by reason."""
        before = self.refused()
        self.ingest.take(messages, 1000.0)
        after = self.refused()
        return {why: n - before.get(why, 0) for why, n in after.items() if n > before.get(why, 0)}

    def refused(self) -> dict[str, int]:
        t = schema.refused.c
        with self.store.database.read() as connection:
            rows = connection.execute(select(t.reason, func.sum(t.count)).group_by(t.reason))
            return {reason: int(count) for reason, count in rows}

    def stored(self) -> tuple[int, dict[str, int]]:
        """How many predictions there are, and the version of each device's report."""
        with self.store.database.read() as connection:
            count = connection.scalar(select(func.count()).select_from(schema.predictions))
        with self.store.telemetry.transaction() as tx:
            return int(count or 0), {d: tx.reported_version(d) for d in ("dev-01", "dev-02")}


def enrol(store: Store, device: str, signer: Signer) -> None:
    secret = device.encode().hex().ljust(64, "0")[:64]
    store.devices.preauthorize(Claim(device, secret, WHEN + timedelta(hours=1)), tags={}, now=WHEN)
    record = DeviceRecord(
        device_id=device, state=DeviceState.ACCEPTED, client_id=device,
        report_key=signer.public.raw, certificate="PEM",
        certificate_expires=WHEN + timedelta(days=30),
        inventory=Inventory("0.1.0", "linux-x86_64"), enrolled_at=WHEN,
    )  # fmt: skip
    assert store.devices.enrol(secret, record)


@pytest.fixture
def central(tmp_path: Path) -> Iterator[Central]:
    central = Central(tmp_path)
    yield central
    central.store.close()


def said(reporter: Reporter, kind: UpType, signer: Signer | None = None) -> Message:
    bodies: dict[str, UpBody] = {
        "hello": Hello("0.1.0", 0, 0),
        "reported": Reported(1, {}, [], Inventory("0.1.0", "linux-x86_64")),
        "result": Result("c-1", ok=True),
    }
    if kind == "telemetry":
        return reporter.predictions(1, 3)
    return reporter.say(kind, bodies[kind], signer=signer)


UP: list[UpType] = ["hello", "reported", "telemetry", "result"]


@pytest.mark.parametrize("kind", UP)
@pytest.mark.parametrize("forge", [flipped, unsigned, cut])
def test_row_26_a_broker_alters_what_goes_up(
    central: Central, kind: UpType, forge: Callable[[bytes], bytes]
) -> None:
    device = central.enrol("dev-01")
    central.enrol("dev-02")
    honest = said(device, kind)
    before = central.stored()
    code = "malformed" if forge is cut else "signature_invalid"
    assert central.hears(Message(honest.topic, forge(honest.payload))) == {code: 1}
    assert central.stored() == before
    assert central.acks == []
    assert central.hears(honest) == {}
    assert [device for device, _ in central.acks] == ["dev-01"]


@pytest.mark.parametrize("kind", UP)
@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("a stranger's key", "unknown_key"),
        ("another device's key", "unknown_key"),
        ("another device's topic", "unknown_key"),
        ("another name, own key", "wrong_device"),
        ("an unknown device", "unknown_device"),
        ("another kind's topic", "malformed"),
        ("a foreign fleet", "foreign_fleet"),
        ("no topic of ours", "foreign_topic"),
    ],
)
def test_row_26_a_report_of_somebody_else(
    central: Central, kind: UpType, attack: str, code: str
) -> None:
    device, other = central.enrol("dev-01"), central.enrol("dev-02")
    honest = said(device, kind)
    message = {
        "a stranger's key": lambda: resigned(honest, Signer.generate()),
        "another device's key": lambda: resigned(honest, other.signer),
        "another device's topic": lambda: Message(
            up(FLEET, SHARDS, "dev-02", kind), honest.payload
        ),
        "another name, own key": lambda: Message(
            honest.topic, sealed_by(device, "dev-02", kind, honest)
        ),
        "an unknown device": lambda: Message(up(FLEET, SHARDS, "dev-99", kind), honest.payload),
        "another kind's topic": lambda: Message(
            up(FLEET, SHARDS, "dev-01", "health"), honest.payload
        ),
        "a foreign fleet": lambda: Message(up("other", SHARDS, "dev-01", kind), honest.payload),
        "no topic of ours": lambda: Message("skerry/v1/x", honest.payload),
    }[attack]()
    before = central.stored()
    assert central.hears(message) == {code: 1}
    assert central.stored() == before
    assert central.acks == []
    assert central.hears(honest) == {}


def resigned(message: Message, signer: Signer) -> Message:
    """The same payload under another key's signature."""
    payload, _, _ = msgspec.msgpack.decode(message.payload)
    sealed = [payload, signer.key_id, signer.sign(UP_DOMAIN + payload)]
    return Message(message.topic, to_msgpack(sealed))


def sealed_by(reporter: Reporter, dev: str, kind: UpType, honest: Message) -> bytes:
    """A message that names another device, signed with the reporter's own key."""
    payload, _, _ = msgspec.msgpack.decode(honest.payload)
    envelope = from_msgpack(payload, Up)
    named = to_msgpack(msgspec.structs.replace(envelope, dev=dev))
    return resigned(Message("", to_msgpack([named, "", b""])), reporter.signer).payload


def test_row_26_replayed_telemetry_counts_once(central: Central) -> None:
    device = central.enrol("dev-01")
    message, later = device.predictions(1, 3), device.predictions(4, 5)
    assert central.hears(message) == {}
    assert central.hears(message, message) == {"repeated": 2}
    assert central.hears(later, message, later) == {"repeated": 2}
    assert central.stored()[0] == 5


def test_row_26_reordered_and_dropped_telemetry_leaves_no_gap(central: Central) -> None:
    device = central.enrol("dev-01")
    first, second = device.predictions(1, 3), device.predictions(4, 5)
    central.hears(second)
    assert central.stored()[0] == 0
    assert central.acks[-1][1].upto == {"boot-1": 0}
    central.hears(first, second)
    assert central.stored()[0] == 5


def test_row_26_a_replayed_report_does_not_take_the_fleet_back(central: Central) -> None:
    device = central.enrol("dev-01")
    old, new = device.reported(1), device.reported(2)
    assert central.hears(old) == {}
    assert central.hears(new) == {}
    assert central.hears(old) == {"repeated": 1}
    assert central.stored()[1]["dev-01"] == 2
    assert central.acks[-1][1].reported == 2


async def test_row_26_a_real_device_and_a_broker_that_alters_everything(
    site: Site, central: Central
) -> None:
    """What a real device said, through a broker that first alters and then repeats it."""
    enrol(central.store, DEVICE, site.device.signer)
    site.device.control._connected()
    heard = [Message(topic, data) for topic, data in site.device.link.said if "/up/" in topic]
    assert len(heard) > 1
    for message in heard:
        assert central.hears(Message(message.topic, flipped(message.payload))) == {
            "signature_invalid": 1
        }
    # the assignment was made by no rollout of this fleet; the device said its last report twice
    assert set(central.hears(*heard)) <= {"unknown_assignment", "repeated"}
    assert set(central.hears(*heard)) == {"repeated"}
    with central.store.telemetry.transaction() as tx:
        assert tx.reported_version(DEVICE) == site.device.control._machine.state.reported_version
    assert site.device.serves == OLD
