"""The fleet's MQTT against a real broker: acks after commits, and nothing lost on the way."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from fleet import schema
from fleet.broker_config import FLEET_USER
from fleet.ingest import Ingest, Message
from fleet.mqtt import FleetMqtt, IngestWorker, Sender
from fleet.store import Store
from skerry.keys import Signer
from skerry.wire import Ack, Cmd, Desired, Health, Hello, Policy
from tests.fakes.brokers import NatsServer, context_for
from tests.fakes.mqtt_device import MqttDevice, until
from tests.fakes.reporter import FLEET, SHARDS, Reporter

Enrol = Callable[..., Reporter]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """What the database is makes no difference here."""
    return f"sqlite:///{tmp_path / 'fleet.db'}"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    running = NatsServer(tmp_path / "broker")
    running.accept("dev-01")
    yield running
    running.stop()


class Wired:
    """One fleet process: ingest, worker, sender, on one store."""

    def __init__(self, store: Store, broker: NatsServer, signer: Signer) -> None:
        self.sender = Sender(FLEET, signer)
        self.hellos: list[str] = []
        self.ingest = Ingest(store.telemetry, self, fleet_id=FLEET, shards=SHARDS)
        worker = IngestWorker(self.ingest, time.time, commit_every_s=0.02, commit_at_most=64)
        self.mqtt = FleetMqtt(
            fleet_id=FLEET, shards=SHARDS, host="127.0.0.1", port=broker.port,
            context=broker.pki.context(FLEET_USER), worker=worker, sender=self.sender,
        )  # fmt: skip
        self.mqtt.start()

    def ack(self, device: str, ack: Ack) -> None:
        self.sender.ack(device, ack)

    def hello(self, device: str, hello: Hello) -> None:
        self.hellos.append(device)


@pytest.fixture
def signer() -> Signer:
    return Signer.generate()


@pytest.fixture
def wired(store: Store, broker: NatsServer, signer: Signer) -> Iterator[Wired]:
    made = Wired(store, broker, signer)
    assert made.mqtt.wait_connected(10)
    yield made
    made.mqtt.stop()


@pytest.fixture
def device(broker: NatsServer, signer: Signer) -> Iterator[MqttDevice]:
    made = MqttDevice("dev-01", broker.port, signer.public, context_for(broker, "dev-01"))
    yield made
    made.close()


def stored(store: Store) -> int:
    query = select(func.count()).select_from(schema.predictions)
    with store.database.read() as connection:
        return int(connection.execute(query).scalar_one())


def test_what_a_device_sends_is_stored_then_acknowledged(
    store: Store, wired: Wired, device: MqttDevice, enrol: Enrol
) -> None:
    voice = enrol("dev-01")
    device.send(voice.hello())
    for first in range(1, 100, 10):
        device.send(voice.predictions(first, first + 9))
    until("an ack of 100", lambda: device.upto.get("boot-1") == 100)
    assert stored(store) == 100
    assert wired.hellos == ["dev-01"]


def test_no_ack_leaves_before_the_commit(
    store: Store,
    wired: Wired,
    device: MqttDevice,
    enrol: Enrol,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voice, full = enrol("dev-01"), threading.Event()
    real = wired.ingest.take

    def take(messages: list[Message], now: float) -> None:
        if not full.is_set():
            raise OperationalError("insert", {}, OSError("disk full"))
        real(messages, now)

    monkeypatch.setattr(wired.ingest, "take", take)
    device.send(voice.predictions(1, 5))
    time.sleep(0.5)
    assert (device.upto, stored(store)) == ({}, 0)
    full.set()
    until("an ack", lambda: device.upto == {"boot-1": 5})
    assert stored(store) == 5


def test_one_message_that_cannot_be_stored_does_not_stop_the_others(
    store: Store, wired: Wired, device: MqttDevice, enrol: Enrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = enrol("dev-01")
    poison = voice.predictions(1, 1, boot="boot-x")
    real = wired.ingest.take

    def take(messages: list[Message], now: float) -> None:
        if any(message.payload == poison.payload for message in messages):
            raise ValueError("a bug that only this message meets")
        real(messages, now)

    monkeypatch.setattr(wired.ingest, "take", take)
    for message in (voice.predictions(1, 2), poison, voice.predictions(3, 4)):
        device.send(message)
    until("an ack", lambda: device.upto == {"boot-1": 4})
    assert stored(store) == 4


def test_what_arrives_while_the_fleet_is_down_waits_for_it(
    store: Store, broker: NatsServer, device: MqttDevice, enrol: Enrol, signer: Signer
) -> None:
    voice = enrol("dev-01")
    first = Wired(store, broker, signer)
    assert first.mqtt.wait_connected(10)
    device.send(voice.predictions(1, 2))
    until("an ack", lambda: device.upto == {"boot-1": 2})
    first.mqtt.stop()
    device.send(voice.predictions(3, 4))
    second = Wired(store, broker, signer)
    until("an ack", lambda: device.upto == {"boot-1": 4})
    second.mqtt.stop()
    assert stored(store) == 4


def test_a_killed_broker_costs_nothing_but_time(
    store: Store, wired: Wired, broker: NatsServer, device: MqttDevice, enrol: Enrol
) -> None:
    voice = enrol("dev-01")
    device.send(voice.predictions(1, 5))
    until("an ack", lambda: device.upto == {"boot-1": 5})
    broker.kill()
    until("a second broker", lambda: len(broker.pids) == 2)
    message = voice.predictions(6, 10)
    device.send(message)
    device.send(message)
    until("an ack after the restart", lambda: device.upto == {"boot-1": 10})
    assert stored(store) == 10


def test_desired_and_policy_are_retained_and_commands_are_not(
    wired: Wired, broker: NatsServer, signer: Signer
) -> None:
    wired.sender.desired("dev-01", 3, Desired({}, {"timestamp.json": b"{}"}))
    wired.sender.desired("dev-01", 2, Desired({}, {}))  # late, and older: never sent
    wired.sender.cmd("dev-01", Cmd("c-1", "restart"), time.time() + 60)
    wired.sender.policy(Policy(4))
    time.sleep(0.3)
    late = MqttDevice("dev-01", broker.port, signer.public, context_for(broker, "dev-01"))
    until("desired", lambda: late.desired)
    time.sleep(0.2)
    assert [(down.type, down.version) for down, _ in late.heard] == [("desired", 3)]
    wired.sender.cmd("dev-01", Cmd("c-2", "restart"), time.time() + 60)
    until("a command", lambda: late.heard[-1][0].id == "c-2")
    late.close()


def test_health_without_quality_of_service_is_heard_and_not_acknowledged(
    store: Store, wired: Wired, device: MqttDevice, enrol: Enrol
) -> None:
    voice = enrol("dev-01")
    device.send(voice.say("health", Health(outbox_records=7)), qos=0)
    until("the news", lambda: store.devices.views()[0].outbox_records == 7)
    device.send(voice.predictions(1, 2))
    until("an ack", lambda: device.upto == {"boot-1": 2})
    assert wired.mqtt.connected


def test_acks_that_wait_are_merged(signer: Signer) -> None:
    sender = Sender(FLEET, signer)
    sender.ack("dev-01", Ack(upto={"a": 5, "b": 1}, reported=2, results=["x"], now=1.0))
    sender.ack("dev-01", Ack(upto={"a": 7, "c": 3}, reported=1, results=["y"], credit=2, now=2.0))
    waiting: Any = sender._acks
    assert waiting == {
        "dev-01": Ack(
            upto={"a": 7, "b": 1, "c": 3}, reported=2, results=["x", "y"], credit=2, now=2.0
        )
    }
