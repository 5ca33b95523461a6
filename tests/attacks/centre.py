"""A fleet without sockets on a real database, and machines that hold a device's report key."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select

from fleet import schema
from fleet.certificates import serial_of
from fleet.ingest import Ingest, Message
from fleet.quarantine import KIND, Quarantine
from fleet.registry import Registry
from fleet.store import open_store
from fleet.store_alerts import Alert
from skerry.enrolment import EnrolRequest
from skerry.keys import Signer
from skerry.states import DeviceState
from skerry.token import parse_token
from skerry.topics import up
from skerry.wire import Ack, Health, Hello, UpBody, UpType, seal_up
from tests.attacks.identity import signed
from tests.fakes.reporter import FLEET, SHARDS
from tests.fakes.trusted import NOW, make_fleet

DEVICE = "dev-01"


class Centre:
    """A fleet without sockets, and what it did."""

    def __init__(self, folder: Path) -> None:
        self.trusted = make_fleet(folder / "fleet")
        self.url = f"sqlite:///{folder / 'fleet.db'}"
        self.cut: list[str] = []
        self.at_cut: list[object] = []
        self.look: Callable[[], object] = lambda: None
        self.now = NOW
        self.acks: list[Ack] = []
        self.greeted = 0
        self.start()

    def start(self) -> None:
        """Begin, or begin again with what is in the database."""
        self.store = open_store(self.url)
        self.registry = Registry(
            self.store.devices,
            self.trusted.authority,
            lambda: (self.trusted.catalog.root, self.trusted.director.root),
            on_cut=self._cut,
        )
        self.quarantine = Quarantine(self.registry, self.store, lambda: self.now)
        self.ingest = Ingest(
            self.store.telemetry,
            self,
            fleet_id=FLEET,
            shards=SHARDS,
            on_fork=self.quarantine.heard_fork,
            on_stranger=self.quarantine.heard_stranger,
        )

    def _cut(self, device: str) -> None:
        self.cut.append(device)
        self.at_cut.append(self.look())

    def ack(self, device: str, ack: Ack) -> None:
        self.acks.append(ack)

    def hello(self, device: str, hello: Hello) -> None:
        self.greeted += 1

    def enrol(self, device: str = DEVICE, *, again: bool = False) -> "Machine":
        token = self.registry.preauthorize(
            device, tags={}, fleet_url="https://127.0.0.1:8441", now=self.now, again=again
        )
        signer, secret = Signer.generate(), parse_token(token).secret
        request = EnrolRequest(secret, signed(device), signer.public.raw)
        self.registry.enrol(request, self.now)
        return Machine(signer)

    def hears(self, *messages: Message) -> dict[str, int]:
        """Take messages in one after the other; return what was refused of them, by reason."""
        before = self.refused()
        for message in messages:
            self.now += timedelta(seconds=1)
            self.ingest.take([message], self.now.timestamp())
        after = self.refused()
        return {why: n - before.get(why, 0) for why, n in after.items() if n > before.get(why, 0)}

    def refused(self) -> dict[str, int]:
        t = schema.refused.c
        with self.store.database.read() as connection:
            rows = connection.execute(select(t.reason, func.sum(t.count)).group_by(t.reason))
            return {reason: int(count) for reason, count in rows}

    def talk(self, process: "Process", kind: UpType = "hello") -> dict[str, int]:
        """A process says something, and hears the answer."""
        before = len(self.acks)
        refused = self.hears(process.says(kind))
        if len(self.acks) > before:
            process.mark = self.acks[-1].mark
        return refused

    @property
    def alerts(self) -> list[Alert]:
        return self.store.alerts.live_alerts(KIND)

    @property
    def last_seen(self) -> float | None:
        return self.store.devices.views([DEVICE])[0].last_seen

    def may_connect(self) -> bool:
        record = self.store.devices.record(DEVICE)
        assert record is not None
        return self.registry.may_connect(DEVICE, serial_of(record.certificate))

    def is_shut_out(self) -> bool:
        (view,) = self.store.devices.views([DEVICE])
        if view.state == DeviceState.ACCEPTED:
            assert (view.state_reason, self.cut, self.alerts) == ("", [], [])
            assert self.may_connect()
            return False
        assert view.state == DeviceState.PENDING
        assert view.state_reason.startswith("two machines with one identity: ")
        assert self.cut == [DEVICE]
        assert [(alert.subject, alert.severity) for alert in self.alerts] == [(DEVICE, "critical")]
        assert not self.may_connect()
        return True


@dataclass
class Process:
    """One run of an agent, as `agent.uplink` numbers and signs."""

    signer: Signer
    boot: str
    clock: float = NOW.timestamp()
    seq: int = 0
    mark: str = ""
    said: list[Message] = field(default_factory=list)

    def says(self, kind: UpType = "hello", body: UpBody | None = None) -> Message:
        self.seq += 1
        self.clock += 1.0
        payload = seal_up(
            self.signer, dev=DEVICE, boot=self.boot, seq=self.seq, ts=self.clock, mono=1.0,
            type=kind, body=body or (Hello("0.1.0", 0, 0) if kind == "hello" else Health()),
            mark=self.mark,
        )  # fmt: skip
        self.said.append(Message(up(FLEET, SHARDS, DEVICE, kind), payload))
        return self.said[-1]


@dataclass
class Machine:
    """Whoever holds a device's report key; each start is a new boot."""

    signer: Signer
    boots: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def starts(self, clock: float = NOW.timestamp()) -> Process:
        return Process(self.signer, f"boot-{next(self.boots)}-{random.randrange(1 << 32):x}", clock)
