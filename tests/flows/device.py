"""A simulated device: the real update machine and outbox, over a disk and a link in memory.

Both of its processes die together, at once or at a point that was armed before: at a save,
between save and act, or between an act and the word of it. What is on the disk stays.
"""

from collections.abc import Callable
from random import Random
from typing import Protocol

import msgspec

from agent.device_state import Doing, Host, State, doing, reported, serving
from agent.facts import (
    Acknowledged,
    DesiredArrived,
    Discard,
    EffectItem,
    Event,
    Failed,
    FleetTimeHeard,
    Held,
    Observe,
    ProbationObserved,
    Report,
    Restarted,
    Restore,
    ServeCrashed,
    ServeUnable,
    Ticked,
    Verify,
    Wait,
)
from agent.outbox import Outbox
from agent.update import Machine
from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import FormatError, TrustError
from skerry.profile import Inventory
from skerry.records import Context, Item, Prediction
from skerry.topics import up
from skerry.wire import (
    Ack,
    Batch,
    Desired,
    Hello,
    LiveStats,
    Reported,
    UpType,
    open_down,
    seal_up,
)
from tests.fakes.clock import Clock
from tests.fakes.disk import Crash, Disk, DiskFullError
from tests.fakes.link import Link
from tests.fakes.signing import FakeKey, FakeSigner
from tests.flows.acts import outcome_of
from tests.flows.catalog import HW_CLASS, VARIANTS, ReleaseTruth
from tests.flows.central import FLEET_ID, SHARDS
from tests.flows.leave import Leave
from tests.flows.spool import Spool

TICK_S = 5.0
BATCH = 12  # records
INVENTORY = Inventory(agent="0.1.0", platform="linux-x86_64", isa=["avx2"])


class Witness(Protocol):
    """Who watches a device and raises where a law is broken."""

    def saved(self, device: "Device", state: State) -> None: ...
    def activated(self, device: "Device", slot: str, bundle: str) -> None: ...
    def permitted(self, device: "Device", assignment_id: str) -> None: ...
    def said(self, device: "Device", body: Reported) -> None: ...
    def forgot(self, device: "Device", boot: str, records: dict[int, Item]) -> None: ...


class Device:
    """One device for its whole life, over many lives of its processes."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        link: Link,
        rng: Random,
        fleet_key: FakeKey,
        releases: dict[str, ReleaseTruth],
        witness: Witness,
        note: Callable[[str], None],
    ) -> None:
        self.name = name
        self.signer = FakeSigner(name)
        self.disk = Disk()
        self.bundles: dict[str, None] = {}  # on disk, by digest
        self.smoked: dict[str, None] = {}  # those that ran against the golden set here
        self.spool = Spool()
        self.answered: dict[str, tuple[str, int]] = {}  # request id -> where its record is
        self.up = False
        self.connected = False
        self.crashes = 0
        self.refused = 0  # requests that nobody answered
        self.turned_away = 0  # messages damaged, or meant for others
        self.leave = Leave(name)
        self.armed = ""  # at_save, after_save or after_act
        self.every_row = True  # the record policy: predictions leave, or only windows do
        self.lost: set[tuple[str, int]] = set()  # records that the disk has lost
        self.bad_network = 0.0  # chance that a fetch fails
        self.running: dict[str, str] = {}  # slot -> bundle that serves
        self.boot = ""
        self._lives = self._boots = self._messages = self._requests = 0
        self._clock, self._link, self.rng = clock, link, rng
        self._fleet_keys = {fleet_key.key_id: fleet_key}
        self.by_path = releases
        self.by_bundle = {truth.bundle: truth for truth in releases.values()}
        self.witness, self._note = witness, note
        self._acked: dict[str, int] = {}  # durable cursors, now and then
        self.disk.before_write = lambda: self._die_if_armed("at_save")
        self.start()

    # --- the processes ------------------------------------------------------------

    def start(self) -> None:
        """Both processes start from what is on the disk."""
        if self.up:
            return
        self.up = True
        self._lives += 1
        self._mark = ""  # of this life's latest ack
        saved = self.disk.read("state")
        host = Host(self.name, HW_CLASS, "0.1.0")
        state = from_msgpack(saved, State, limit=1 << 20) if saved else State(host)
        self.machine = Machine(state, self, self)
        self.outbox = Outbox(dict(self._acked), resend_s=8.0)
        for boot_id, boot in self.spool.boots.items():
            self.outbox.found(boot_id, boot.kept_from, boot.upto)
        self.running = {slot: r.ref.bundle for slot, r in serving(state).items()}
        self._live: dict[str, LiveStats] = {}
        self._start_serve()
        self.feed(Restarted())
        if not self.up:
            return
        self._guard(self.machine.resume)
        self.connect()
        self._soon(TICK_S * self.rng.random(), "ticks", self._tick)

    def die(self, why: str) -> None:
        """Both processes end without a word."""
        if not self.up:
            return
        self._note(f"{self.name} dies {why}")
        self.up, self.armed = False, ""
        self.crashes += 1
        self.disconnect()
        self._clock.after(0.5 + 4 * self.rng.random(), f"{self.name} starts", self.start)

    def crash_serve(self) -> None:
        """The serving process ends by itself, and is started again."""
        if self.up and self.running:
            self._note(f"{self.name} loses its serving process")
            self._start_serve()
            self.feed(ServeCrashed())

    def serve_unable(self) -> None:
        """The serving process does not start, three times in a row."""
        if self.up and self.running:
            self._note(f"{self.name} cannot serve")
            self.feed(ServeUnable("it ended 3 times before it was ready"))

    def lose_segment(self) -> None:
        """The disk loses the oldest records of a process; later ones are still there."""
        for boot_id in self.spool.boots:
            gone = self.spool.lose_segment(boot_id)
            if gone:
                self._note(f"{self.name} has lost {boot_id} {gone[0]} to {gone[-1]}")
                self.lost |= {(boot_id, seq) for seq in gone}
                return

    def feed(self, event: Event) -> None:
        """Hand a fact to the update machine; again later where the disk is full."""
        if not self.up:
            return
        try:
            self.machine.handle(event, self._clock.now)
        except DiskFullError:
            self._soon(1.0, "feeds again", lambda: self.feed(event))
        except Crash as crash:
            self.die(str(crash))

    def _start_serve(self) -> None:
        self._boots += 1
        self.boot = f"{self.name}-b{self._boots}"
        contexts = []
        for slot, bundle in sorted(self.running.items()):
            truth = self.by_bundle[bundle]
            contexts.append(Context(slot, truth.model, truth.model_version, bundle, VARIANTS[0]))
        self.spool.start(self.boot, contexts, self._clock.now)
        self._live = dict.fromkeys(self.running, LiveStats())
        for boot_id, boot in self.spool.boots.items():
            self.outbox.found(boot_id, boot.kept_from, boot.upto)

    def swap(self, slot: str, bundle: str | None) -> None:
        if self.running.get(slot) == bundle:
            return
        if bundle is None:
            del self.running[slot]
        else:
            self.running[slot] = bundle
        self._start_serve()

    def request(self, slot: str) -> None:
        """A client asks for a prediction."""
        bundle = self.running.get(slot)
        if not self.up or bundle is None:
            self.refused += 1
            return
        manner = self.by_bundle[bundle].manner
        live = self._live[slot]
        if manner == "crashes" and self.rng.random() < 0.5:
            self.crash_serve()
            return
        if manner == "errors" and self.rng.random() < 0.3:
            self._live[slot] = msgspec.structs.replace(live, errors=live.errors + 1)
            return
        self._requests += 1
        request_id = f"{self.name}-q{self._requests}"
        context = sorted(self.running).index(slot)
        prediction = Prediction(request_id, self._clock.now, context, 3, 0.9, 800, [])
        seq = self.spool.predict(self.boot, prediction)
        self.answered[request_id] = (self.boot, seq)
        self._live[slot] = msgspec.structs.replace(live, answered=live.answered + 1)

    # --- journal and installer, for the machine -------------------------------------

    def save(self, state: State) -> None:
        self.disk.write("state", to_msgpack(state))
        self.witness.saved(self, state)

    def carry_out(self, effect: EffectItem) -> None:
        self._die_if_armed("after_save")
        match effect:
            case Report():
                self._report()
            case Discard(keep=keep):
                wanted = set(keep)
                self.bundles = {bundle: None for bundle in self.bundles if bundle in wanted}
            case Restore(slot=slot, release=release):
                self.swap(slot, release.ref.bundle)
            case Wait():
                self._soon(self.leave.patience(), "waits", lambda: self._wait(effect))
            case Observe():
                self._soon(1.0, "observes", lambda: self._observe(effect))
            case _:
                self._soon(0.2 + self.rng.random(), type(effect).__name__, lambda: self._do(effect))

    def _do(self, effect: EffectItem) -> None:
        outcome = outcome_of(self, effect)
        self._die_if_armed("after_act")
        if outcome is not None:
            self.feed(outcome)

    def _wait(self, effect: Wait) -> None:
        slot, key = effect.slot, effect.assignment_id
        if not self.is_under_way(slot, key, Doing.WAITING):
            return
        if self.leave.refuses(key):
            hold = self.leave.kind()
            self.feed(Held(slot, key, hold, hold, "not now"))
        else:
            director = self.machine.state.director
            outcome = outcome_of(self, Verify(slot, key, effect.want, director))
            if outcome is not None and not isinstance(outcome, Failed):
                self.feed(outcome)
                return
        self._soon(self.leave.patience(), "waits", lambda: self._wait(effect))

    def _observe(self, effect: Observe) -> None:
        if not self.is_under_way(effect.slot, effect.assignment_id, Doing.PROBATION):
            return
        live = self._live.get(effect.slot, LiveStats())
        since = self.machine.state.slots[effect.slot].work
        seconds = self._clock.now - since.since if since else 0.0
        live = msgspec.structs.replace(live, seconds=seconds)
        self.feed(ProbationObserved(effect.slot, effect.assignment_id, live))
        self._soon(2.0, "observes", lambda: self._observe(effect))

    def is_under_way(self, slot: str, assignment_id: str, activity: Doing) -> bool:
        known = self.machine.state.slots.get(slot)
        work = known and known.work
        return bool(
            known and work and work.want.assignment_id == assignment_id and doing(known) is activity
        )

    # --- the link -------------------------------------------------------------------

    def connect(self) -> None:
        if not self.up or self.connected:
            return
        self.connected = True
        self._link.listen(self.name, self.receive)
        self.outbox.connected()
        state = self.machine.state
        hello = Hello("0.1.0", state.desired_version, state.reported_version)
        self._send("hello", hello)
        kept = self._link.retained(f"desired/{self.name}")
        if kept is not None:
            self._soon(0.1, "retained desired", lambda: self.receive("desired", kept))
        if state.reported_version > state.acked_version:
            self._report()
        self._pump()

    def disconnect(self) -> None:
        self.connected = False
        self._link.listen(self.name, None)

    def _send(
        self, kind: UpType, body: Hello | Reported | Batch, boot: str = "", seq: int = 0
    ) -> None:
        self._messages += 1
        data = seal_up(
            self.signer, dev=self.name, boot=boot or f"{self.name}-c{self._lives}",  # type: ignore[arg-type]
            seq=seq or self._messages, ts=self._clock.now, mono=self._clock.now, type=kind, body=body,
            mark="" if kind == "telemetry" else self._mark,
        )  # fmt: skip
        if self.connected:
            self._link.send("fleet", up(FLEET_ID, SHARDS, self.name, kind), data)

    def _report(self) -> None:
        body = reported(self.machine.state, INVENTORY)
        self.witness.said(self, body)
        self._send("reported", body)

    def receive(self, topic: str, payload: bytes) -> None:
        if not self.up:
            return
        keys, now = self._fleet_keys, self._clock.now
        try:
            down, body = open_down(payload, keys, device=self.name, now=now)  # type: ignore[arg-type]
        except (TrustError, FormatError):
            self.turned_away += 1
            return
        match body:
            case Desired():
                self.feed(DesiredArrived(down.version, body))
            case Ack():
                self._acknowledged(body)
            case _:
                raise AssertionError(body)

    def _acknowledged(self, ack: Ack) -> None:
        self.outbox.acknowledged(ack.upto, ack.credit)
        self._mark = ack.mark or self._mark
        for boot_id in [boot for boot in ack.upto if boot in self.spool.boots]:
            cursor = self.outbox.cursors[boot_id]
            gone = self.spool.forget(boot_id, cursor.acked)
            if gone:
                self.witness.forgot(self, boot_id, gone)
                self.outbox.found(boot_id, self.spool.boots[boot_id].kept_from, cursor.upto)
            if self.spool.is_empty(boot_id):
                del self.spool.boots[boot_id]
                self.outbox.forgotten(boot_id)
                self._acked.pop(boot_id, None)
            elif self.rng.random() < 0.3:
                self._acked[boot_id] = cursor.acked
        self.feed(FleetTimeHeard(ack.now))
        if ack.reported:
            self.feed(Acknowledged(ack.reported))
        if self.up:
            self._pump()

    def _pump(self) -> None:
        for boot_id, boot in self.spool.boots.items():
            self.outbox.found(boot_id, boot.kept_from, boot.upto)
        while self.connected and (following := self.outbox.next_send()) is not None:
            boot_id, first = following
            boot, cursor = self.spool.boots[boot_id], self.outbox.cursors[boot_id]
            items = self.spool.batch(boot_id, first, BATCH, self.every_row)
            if items:
                dropped_before = cursor.kept_from if cursor.kept_from > 1 else 0
                body = Batch(first, boot.contexts, items, dropped_before)
                self._send("telemetry", body, boot_id, first)
                self.outbox.sent(boot_id, first, body.last, self._clock.now)
            elif max(cursor.acked, cursor.kept_from - 1) >= first - 1:
                # the disk has lost what comes next, and all before it is stored
                boot.kept_from = min(seq for seq in boot.items if seq > first)
                self.outbox.found(boot_id, boot.kept_from, boot.upto)
            else:
                return

    def _tick(self) -> None:
        self._soon(TICK_S, "ticks", self._tick)
        self.feed(Ticked())
        if not self.up or not self.connected:
            return
        self.outbox.expire(self._clock.now)
        self._pump()
        state = self.machine.state
        if state.reported_version > state.acked_version:
            self._report()

    # --- dying ------------------------------------------------------------------------

    def _die_if_armed(self, point: str) -> None:
        if self.armed == point:
            self.armed = ""
            raise Crash(point.replace("_", " "))

    def _soon(self, seconds: float, label: str, call: Callable[[], None]) -> None:
        life = self._lives

        def run() -> None:
            if self.up and self._lives == life:
                self._guard(call)

        self._clock.after(seconds, f"{self.name} {label}", run)

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Crash as crash:
            self.die(str(crash))

    def idle(self) -> bool:
        """Tell whether the device has nothing left to do or to say."""
        state = self.machine.state
        return (
            self.up
            and self.connected
            and all(slot.work is None for slot in state.slots.values())
            and state.acked_version == state.reported_version
            and all(
                (cursor := self.outbox.cursors.get(boot_id)) is not None
                and cursor.acked == boot.upto
                for boot_id, boot in self.spool.boots.items()
            )
        )
