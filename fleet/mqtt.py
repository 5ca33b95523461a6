"""The fleet on MQTT: takes what devices say, shard by shard, and sends what they shall know.

Each shard slot has a persistent session ``ingest-{slot}``, so that what arrives while the
fleet is down waits at the broker. A message is acknowledged to the broker only when
ingest is done with it. What is to be sent waits in a table with one place for each topic
(acks are merged, a newer `desired` replaces an older one), so a broker that is away
cannot make it grow.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final

import paho.mqtt.client as paho
from sqlalchemy.exc import OperationalError

from fleet.ingest import Ingest, Message
from fleet.mqtt_loop import Link, MqttLoop
from skerry import topics
from skerry.keys import Signer
from skerry.wire import Ack, Cmd, Desired, Policy, seal_down

__all__ = ["FleetMqtt", "IngestWorker", "Sender"]

log = logging.getLogger(__name__)

MAX_UNDER_WAY: Final = 256  # messages sent and not yet taken by the broker
MAX_WAITING: Final = 8192  # messages received and not yet stored; the broker bounds it too
RETRY_CAP_S: Final = 5.0
MAX_RESULTS: Final = 256
CMD_EXPIRES_S: Final = 300.0

Maker = Callable[[], bytes]


class Sender:
    """Sends down; every method may be called from any thread."""

    def __init__(self, fleet_id: str, signer: Signer) -> None:
        self._fleet_id = fleet_id
        self._signer = signer
        self._lock = threading.Lock()
        self._acks: dict[str, Ack] = {}
        self._others: dict[str, tuple[bool, Maker]] = {}  # topic (and id) -> retained, payload
        self._versions: dict[str, int] = {}
        self._under_way = 0
        self._loop: MqttLoop | None = None
        self.link: Final = Link(f"fleet-{fleet_id}", on_ready=self._drain_anew, on_sent=self._sent)

    def sign_with(self, signer: Signer) -> None:
        """Sign with another key from now on."""
        self._signer = signer

    def attach(self, loop: MqttLoop) -> None:
        """Name the loop that drives the link."""
        self._loop = loop

    def ack(self, device: str, ack: Ack) -> None:
        """Send an ack, merged with one that still waits."""
        with self._lock:
            waiting = self._acks.get(device)
            self._acks[device] = ack if waiting is None else _merged(waiting, ack)
        self._wake()

    def desired(self, device: str, version: int, body: Desired) -> None:
        """Send, retained, what a device shall run; never an older version after a newer."""
        with self._lock:
            if version < self._versions.get(device, 0):
                return
            self._versions[device] = version
        topic = topics.down(self._fleet_id, device, "desired")
        self._put(topic, True, lambda: seal_down(
            self._signer, dev=device, type="desired", body=body, version=version
        ))  # fmt: skip

    def policy(self, policy: Policy) -> None:
        """Send, retained, what holds for every device."""
        self._put(topics.policy(self._fleet_id), True, lambda: seal_down(
            self._signer, dev="all", type="policy", body=policy, version=policy.version
        ))  # fmt: skip

    def cmd(self, device: str, cmd: Cmd, expires_at: float) -> None:
        """Send a command; the device runs it at most once, and not after it has expired."""
        topic = topics.down(self._fleet_id, device, "cmd")
        self._put(f"{topic}#{cmd.id}", False, lambda: seal_down(
            self._signer, dev=device, type="cmd", body=cmd, id=cmd.id, exp=expires_at
        ))  # fmt: skip

    def _put(self, topic: str, retain: bool, make: Maker) -> None:
        with self._lock:
            self._others[topic] = (retain, make)
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            self._loop.post(self._drain)

    def _drain_anew(self) -> None:
        self._drain()

    def _sent(self) -> None:
        self._under_way = max(0, self._under_way - 1)
        self._drain()

    def _drain(self) -> None:
        while self.link.ready and self._under_way < MAX_UNDER_WAY:
            with self._lock:
                if self._others:
                    topic = next(iter(self._others))
                    retain, make = self._others.pop(topic)
                elif self._acks:
                    device = next(iter(self._acks))
                    body = self._acks.pop(device)
                    topic, retain = topics.down(self._fleet_id, device, "ack"), False
                    make = _maker(self._signer, device, body)
                else:
                    return
            payload = make()
            self._under_way += 1
            self.link.publish(topic.partition("#")[0], payload, retain=retain)


@dataclass(slots=True)
class _Delivery:
    link: Link
    generation: int
    mid: int | None  # None for QoS 0, which nobody acknowledges
    message: Message


@dataclass(slots=True)
class IngestWorker:
    """The thread that hands messages to ingest in batches, and acknowledges them."""

    ingest: Ingest
    clock: Callable[[], float]
    commit_every_s: float
    commit_at_most: int
    _queue: "SimpleQueue[_Delivery | None]" = field(default_factory=SimpleQueue)
    _loop: MqttLoop | None = None
    _thread: threading.Thread | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self, loop: MqttLoop) -> None:
        """Begin."""
        self._loop = loop
        self._thread = threading.Thread(target=self._run, name="fleet-ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish what is under way and end; the rest is delivered again next time."""
        self._stopping.set()
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(10.0)

    def receive(self, link: Link, message: paho.MQTTMessage) -> None:
        """Take a message from a link; called in the loop's thread."""
        if self._queue.qsize() >= MAX_WAITING:
            link.drop()  # unacknowledged, so the broker keeps it and delivers it again
            return
        taken = Message(message.topic, bytes(message.payload))
        mid = message.mid if message.qos else None
        self._queue.put(_Delivery(link, link.generation, mid, taken))

    def _run(self) -> None:
        while not self._stopping.is_set():
            batch = self._gather()
            if batch:
                self._store(batch)

    def _gather(self) -> list[_Delivery]:
        first = self._queue.get()
        if first is None:
            return []
        batch, until = [first], time.monotonic() + self.commit_every_s
        while len(batch) < self.commit_at_most:
            try:
                more = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if more is None:
                break
            batch.append(more)
        return batch

    def _store(self, batch: list[_Delivery]) -> None:
        tries = 0
        while not self._stopping.is_set():
            try:
                self.ingest.take([delivery.message for delivery in batch], self.clock())
            except OperationalError as error:
                # the disk is full or the database away: nothing is acknowledged, devices keep all
                tries += 1
                if tries == 1:
                    log.exception("messages cannot be stored; trying on", exc_info=error)
                self._stopping.wait(min(RETRY_CAP_S, 0.1 * 2.0 ** min(tries, 10)))
            except Exception:
                if len(batch) > 1:
                    for delivery in batch:
                        self._store([delivery])
                    return
                # no application ack: the device keeps it, and will send it again
                log.exception("a message on %s cannot be stored", batch[0].message.topic)
                self._done(batch)
                return
            else:
                if tries:
                    log.info("messages are stored again")
                self._done(batch)
                return

    def _done(self, batch: list[_Delivery]) -> None:
        def acknowledge() -> None:
            for delivery in batch:
                if delivery.mid is not None:
                    delivery.link.ack(delivery.generation, delivery.mid)

        if self._loop is not None:
            self._loop.post(acknowledge)


class FleetMqtt:
    """All MQTT of a fleet process: the shard sessions, the worker behind them, the sender."""

    def __init__(
        self,
        *,
        fleet_id: str,
        shards: int,
        host: str,
        port: int,
        context: ssl.SSLContext,
        worker: IngestWorker,
        sender: Sender,
    ) -> None:
        """Wire the connections; nothing is started yet.

        Args:
            fleet_id: in every topic.
            shards: one connection takes each.
            host: of the broker; its certificate must name it.
            port: of the broker.
            context: the fleet's client certificate, and whom it trusts.
            worker: takes what arrives.
            sender: sends.
        """
        self._worker = worker
        slots = [f"{slot:02x}" for slot in range(shards)]
        self._links = [
            Link(
                f"ingest-{fleet_id}-{slot}",
                subscribe=topics.up_filter(fleet_id, slot),
                on_message=worker.receive,
            )
            for slot in slots
        ]
        self._sender = sender
        self._loop = MqttLoop(host, port, [sender.link, *self._links], context)
        sender.attach(self._loop)

    @property
    def connected(self) -> bool:
        """Whether every connection stands."""
        return self._sender.link.ready and all(link.ready for link in self._links)

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until every connection stands; tell whether that was in time."""
        until = time.monotonic() + timeout_s
        while not self.connected and time.monotonic() < until:
            time.sleep(0.01)
        return self.connected

    def start(self) -> None:
        """Begin to connect, receive and send."""
        self._worker.start(self._loop)
        self._loop.start()

    def stop(self) -> None:
        """Store what is under way, then end the connections."""
        self._worker.stop()
        self._loop.stop()


def _maker(signer: Signer, device: str, body: Ack) -> Maker:
    return lambda: seal_down(signer, dev=device, type="ack", body=body)


def _merged(old: Ack, new: Ack) -> Ack:
    boots = {**old.upto, **new.upto}
    return Ack(
        upto={boot: max(old.upto.get(boot, 0), new.upto.get(boot, 0)) for boot in boots},
        reported=max(old.reported, new.reported),
        results=[*dict.fromkeys([*old.results, *new.results])][-MAX_RESULTS:],
        credit=new.credit,
        now=new.now,
        nonce=new.nonce or old.nonce,  # its time is the later one, which holds for both
    )
