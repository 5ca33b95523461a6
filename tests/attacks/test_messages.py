"""A broker in the wrong hands: it forges, drops, reorders, repeats and swaps messages, both ways.

Down: the device refuses and counts; it forgets no data, runs no command, takes no order. Up: the
fleet refuses, counts by device and reason, and stores nothing of it; what it stores is counted once.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select

from agent.facts import Verified
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
    Cmd,
    Desired,
    DownBody,
    DownType,
    Hello,
    Policy,
    Reported,
    Result,
    Up,
    UpBody,
    UpType,
)
from tests.attacks.harness import DEVICE, NEW, OLD, SLOT, Site, committed
from tests.fakes.records import prediction, write, writer
from tests.fakes.reporter import FLEET, SHARDS, Reporter

# --- down ---------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    """One bit of the payload is another."""
    payload, key_id, signature = msgspec.msgpack.decode(data)
    return to_msgpack([payload[:-1] + bytes([payload[-1] ^ 1]), key_id, signature])


def unsigned(data: bytes) -> bytes:
    payload, key_id, _ = msgspec.msgpack.decode(data)
    return to_msgpack([payload, key_id, b""])


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


class Hearing:
    """What a device did with messages: what it would forget, run, and hold to."""

    def __init__(self, site: Site) -> None:
        self.site, self.device = site, site.device
        spool = writer(self.device.layout.spool)
        for number in (1, 2, 3):
            write(spool, prediction(number))
        spool.close()
        self.device.control._ship()
        (self.boot,) = self.device.control._outbox.cursors

    @property
    def kept(self) -> int:
        """Records that the device still holds, since nobody has acknowledged them."""
        return self.device.control._outbox.waiting

    @property
    def results(self) -> list[str]:
        """Commands that were run, and whose results wait."""
        return [result.id for result in self.device.database.results()]

    @property
    def window_s(self) -> float:
        return self.device.supervisor.window_s

    def facts(self) -> tuple[object, ...]:
        state = self.device.control._machine.state
        return (self.kept, self.results, self.window_s, state, self.device.serves)

    def body(self, type: DownType) -> tuple[DownBody, dict[str, Any]]:
        """A message with an effect: the device would forget, run, change, or install."""
        match type:
            case "ack":
                return Ack(upto={self.boot: 3}, reported=99, credit=0), {}
            case "cmd":
                return Cmd("c-1", "ping"), {"id": "c-1"}
            case "policy":
                return Policy(version=9, window_s=7.0), {"dev": "all", "version": 9}
            case "desired":
                return Desired({}, {}), {"version": 99}

    def had_effect(self, type: DownType) -> bool:
        match type:
            case "ack":
                return self.kept == 0
            case "cmd":
                return self.results == ["c-1"]
            case "policy":
                return self.window_s == 7.0
            case "desired":
                return self.device.control._machine.state.desired_version == 99


@pytest.fixture
def hearing(site: Site) -> Hearing:
    hearing = Hearing(site)
    assert hearing.kept == 3
    return hearing


DOWN: list[DownType] = ["ack", "cmd", "policy", "desired"]
FORGERIES: dict[str, tuple[str, Callable[[Site, DownType, Any, dict[str, Any]], bytes]]] = {
    "forged by a stranger": (
        "unknown_key",
        lambda site, type, body, rest: site.seal(type, body, signer=Signer.generate(), **rest),
    ),
    "forged by another of the fleet's keys": (
        "unknown_key",
        lambda site, type, body, rest: site.seal(
            type, body, signer=site.trusted.keys.director, **rest
        ),
    ),
    "forged by the device itself": (
        "unknown_key",
        lambda site, type, body, rest: site.seal(type, body, signer=site.device.signer, **rest),
    ),
    "another device's": (
        "wrong_device",
        lambda site, type, body, rest: site.seal(type, body, **(rest | {"dev": "cam-2"})),
    ),
    "expired": (
        "expired",
        lambda site, type, body, rest: site.seal(
            type, body, exp=site.now.timestamp() - 1.0, **rest
        ),
    ),
    "altered": (
        "signature_invalid",
        lambda site, type, body, rest: flipped(site.seal(type, body, **rest)),
    ),
    "unsigned": (
        "signature_invalid",
        lambda site, type, body, rest: unsigned(site.seal(type, body, **rest)),
    ),
    "cut short": ("malformed", lambda site, type, body, rest: cut(site.seal(type, body, **rest))),
}


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("type", DOWN)
async def test_row_26_a_broker_forges_what_goes_down(
    site: Site, hearing: Hearing, type: DownType, forgery: str
) -> None:
    code, forge = FORGERIES[forgery]
    body, rest = hearing.body(type)
    before, count = hearing.facts(), site.device.refused
    site.device.hear(forge(site, type, body, rest))
    assert hearing.facts() == before
    assert site.device.refused == count + 1
    assert code in site.device.refusals
    assert site.device.serves == OLD
    site.device.hear(site.seal(type, body, **rest))
    assert hearing.had_effect(type)
    assert site.device.refused == count + 1


@pytest.mark.parametrize("type", DOWN)
async def test_row_26_a_message_of_one_kind_passed_off_as_another(
    site: Site, hearing: Hearing, type: DownType
) -> None:
    """What a device said itself, sent back to it: other domain, other key."""
    said = [data for _, data in site.device.link.said]
    before, count = hearing.facts(), site.device.refused
    for data in said:
        site.device.hear(data)
    assert hearing.facts() == before
    assert site.device.refused == count + len(said) > count
    body, rest = hearing.body(type)
    site.device.hear(site.seal(type, body, **rest))
    assert hearing.had_effect(type)


async def test_row_26_a_replayed_ack_forgets_nothing_more(site: Site, hearing: Hearing) -> None:
    first = site.seal("ack", Ack(upto={hearing.boot: 1}))
    site.device.hear(first)
    assert hearing.kept == 2
    site.device.hear(first)
    assert hearing.kept == 2
    site.device.hear(site.seal("ack", Ack(upto={"another-boot": 3})))
    assert hearing.kept == 2
    site.device.hear(site.seal("ack", Ack(upto={hearing.boot: 2})))
    assert hearing.kept == 1
    site.device.hear(first)
    assert hearing.kept == 1


async def test_row_26_a_replayed_command_runs_once(site: Site, hearing: Hearing) -> None:
    message = site.seal("cmd", Cmd("c-1", "report"), id="c-1", exp=site.now.timestamp() + 60.0)
    site.device.hear(message)
    said = len(site.device.link.said)
    site.device.hear(message)
    await site.device.restart()
    site.device.hear(message)
    assert len(site.device.link.said) == 0
    assert said > 0
    assert hearing.results == ["c-1"]
    site.device.hear(site.seal("cmd", Cmd("c-2", "report"), id="c-2"))
    assert hearing.results == ["c-1", "c-2"]


async def test_row_26_a_replayed_command_that_is_long_forgotten_has_expired(site: Site) -> None:
    message = site.seal("cmd", Cmd("c-0", "ping"), id="c-0", exp=site.now.timestamp() + 60.0)
    site.device.hear(message)
    for n in range(1, 300):
        site.device.hear(site.seal("cmd", Cmd(f"c-{n}", "ping"), id=f"c-{n}"))
    site.wait(timedelta(minutes=2))
    count = site.device.refused
    site.device.hear(message)
    assert site.device.refused == count + 1
    assert "expired" in site.device.refusals
    assert "c-0" not in [result.id for result in site.device.database.results()]
    assert site.device.serves == OLD


async def test_row_26_a_replayed_policy_changes_nothing(site: Site, hearing: Hearing) -> None:
    old = site.seal("policy", Policy(version=1, window_s=5.0), dev="all")
    site.device.hear(old)
    site.device.hear(site.seal("policy", Policy(version=2, window_s=6.0), dev="all"))
    site.device.hear(old)
    assert hearing.window_s == 6.0
    site.device.hear(site.seal("policy", Policy(version=3, window_s=5.0), dev="all"))
    assert hearing.window_s == 5.0


async def test_row_26_a_replayed_desired_changes_nothing(site: Site) -> None:
    first = site.order(site.publish())
    message = site.desired(site.signed(first), first)
    site.device.hear(message)
    assert await site.device.outcome(first.nonce) == committed()
    second = site.order(site.publish("1.2.0"))
    assert await site.tell(site.signed(second), second) == committed("1.2.0")
    before = site.device.control._machine.state
    site.device.hear(message)
    await site.device.restart()
    site.device.hear(message)
    assert site.device.control._machine.state == before
    assert site.device.serves == "1.2.0"


async def test_row_26_desired_out_of_order_and_twice(site: Site) -> None:
    first, second = site.order(site.publish()), site.order(site.publish("1.2.0"))
    early = site.desired(site.signed(first), first)
    late = site.desired(site.signed(second), second)
    for message in (late, early, late):
        site.device.hear(message)
    assert await site.device.outcome(second.nonce) == committed("1.2.0")
    third = site.order(site.trusted.catalog.release(first.path))
    assert await site.tell(site.signed(third), third) == committed(NEW)


async def test_row_26_a_verified_outcome_cannot_be_sent(site: Site) -> None:
    """Facts of the machine come from its installer alone: bytes of one are no message."""
    before = site.device.control._machine.state
    site.device.hear(to_msgpack({"type": Verified.__name__, "slot": SLOT}))
    assert site.device.control._machine.state == before
    assert await site.install(site.publish()) == committed()


# --- up -------------------------------------------------------------------------------------------

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
    central.hears(message)
    central.hears(message, message)
    central.hears(later, message, later)
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
    central.hears(old)
    central.hears(new)
    central.hears(old)
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
    # the assignment was made by no rollout of this fleet's database: that alone is left out
    assert set(central.hears(*heard, *heard)) <= {"unknown_assignment"}
    with central.store.telemetry.transaction() as tx:
        assert tx.reported_version(DEVICE) == site.device.control._machine.state.reported_version
    assert site.device.serves == OLD
