"""A device in one process: the agent's own parts on a real disk, with a stub for the session.

Real are the update machine, its database and final net, slots and downloads, spool, windows,
recovery and outbox. Not real are TUF, TLS, onnxruntime and the broker: what they would say
comes from `tests.crash.shop`, and what would travel goes to the parent through a socket, which
plays the fleet (`tests.crash.ledger`). Whatever was said there before a death was said.
"""

import os
import random
import secrets
import socket
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.config import Layout
from agent.device_state import Doing, Host, State, doing, pending, serving
from agent.facts import (
    Acknowledged,
    Activate,
    Activated,
    DesiredArrived,
    Discard,
    Download,
    Downloaded,
    EffectItem,
    Event,
    Observe,
    ProbationObserved,
    Release,
    Report,
    Restarted,
    RollBack,
    RolledBack,
    Stage,
    Staged,
    Verify,
)
from agent.last_good import open_database
from agent.observe import Observer, RecentIds
from agent.outbox import Outbox
from agent.recover import Recovery, foreign_contexts
from agent.segments import CountPlan, Header
from agent.slots import Slots, serving_files
from agent.spool import Spool
from agent.spooler import Spooler
from agent.update import Machine
from skerry.canonical import sha256, to_msgpack
from skerry.errors import SkerryError
from skerry.records import Context
from skerry.sketch import CategoricalSpec, NumericSpec
from skerry.wire import Desired, LiveStats, Policy
from tests.crash.shop import SLOT, ShopFetcher, goods, verified, want

EDGES: Final = NumericSpec([0.0, 0.25, 0.5, 0.75, 1.0])
PLAN: Final = CountPlan(
    ["brightness"],
    [0, 1],
    {"brightness": EDGES, "prediction": CategoricalSpec(["a", "b"]), "confidence": EDGES},
)
VARIANT: Final = "fp32-cpu"
POLICY: Final = Policy(1, window_s=1.0, records="all")
SEGMENT_BYTES: Final = 4096
SAFE_EVERY: Final = 4  # each fourth request asks for power-safe
FAULTS: Final = (OSError, sqlite3.Error, SkerryError)
MAX_FAULTS: Final = 60


class Recorder:
    """What a serving process holds: its boot, and what it took over."""

    def __init__(self, root: Path, release: Release, os_boot: str, max_bytes: int) -> None:
        ref = release.ref
        mine = Context(SLOT, ref.model, ref.model_version, ref.bundle, ref.variant)
        contexts = {mine: PLAN}
        contexts |= {c: p for c, p in foreign_contexts(root).items() if c not in contexts}
        boot = secrets.token_hex(8)
        header = Header(boot, 1, os_boot, 1.0, list(contexts), list(contexts.values()))
        self.spool = Spool(root, header, segment_bytes=SEGMENT_BYTES, max_bytes=max_bytes)
        self.observer = Observer(self.spool, header.plans, 1.0, RecentIds(10_000))
        self.recovery = Recovery(root, self.spool, self.observer, header.contexts, os_boot)
        self.recovery.start()

    def end(self) -> None:
        self.observer.close_all()
        self.spool.close(counted=self.observer.all_written)


class Pocket:
    """One life of the device.

    Args:
        root: its state directory.
        line: to the parent; each message whole.
        seed: of what happens when.
        os_boot: another one than before means that power was cut.
        last: the last release to be wanted; None for no end.
        now: Unix seconds.
    """

    def __init__(
        self,
        root: Path,
        line: socket.socket,
        *,
        seed: int,
        os_boot: str = "os-1",
        last: int | None = None,
        now: Callable[[], float] = time.time,
        spool_bytes: int = 1 << 20,
    ) -> None:
        self._line, self._last, self._now, self._os_boot = line, last, now, os_boot
        self._rng = random.Random(seed)
        self._spool, self._spool_bytes = root / "spool", spool_bytes
        self._faults = 0
        self._n = 0
        self._life = secrets.token_hex(4)
        self._queue: deque[EffectItem] = deque()
        root.mkdir(parents=True, exist_ok=True)
        self._slots = Slots(root / "slots")
        self._database = self._insist(lambda: open_database(Layout(root)))
        state = self._database.load() or State(Host("cam-1", "linux-x86_64-vnni", "0.1.0"))
        self._machine = Machine(state, self._database, self)
        self._answers: Recorder | None = None
        self._model = ""
        outbox = Outbox(resend_s=1e9)
        self._outbox, self._spooler = outbox, Spooler(self._spool, outbox, batch_bytes=8 << 10)
        self._say("phase", "start")
        if serving(state):
            self._insist(self._serve)
        self._insist(lambda: self._take(Restarted()))
        self._machine.resume()

    def carry_out(self, effect: EffectItem) -> None:
        """Remember what is to be done (the machine's installer)."""
        self._queue.append(effect)

    def live(self) -> None:
        """Go on until death, or until the last release has ended and all is told."""
        while not self._at_rest():
            try:
                self._turn()
            except FAULTS as error:
                self._faulty(error)
        if self._answers is not None:
            self._insist(self._answers.end)
        while self._spooler.look() or self._outbox.waiting:
            self._insist(self._upload)
        self._insist(self._upload)
        self._database.close()
        self._say("done", self._faults)

    # --- one turn -----------------------------------------------------------------------

    def _turn(self) -> None:
        for _ in range(self._rng.randint(1, 3)):
            self._answer()
        if self._queue:
            effect = self._queue[0]
            self._say("phase", type(effect).__name__.lower())
            self._act(effect)
            self._queue.popleft()
        elif self._slot_is_idle():
            version = self._machine.state.desired_version + 1
            self._take(DesiredArrived(version, Desired({SLOT: want(version)}, {})))
        else:
            self._machine.resume()
        if self._rng.random() < 0.3:
            self._say("phase", "upload")
            self._upload()

    def _at_rest(self) -> bool:
        state = self._machine.state
        over = self._last is not None and state.desired_version >= self._last
        return over and self._slot_is_idle() and not self._queue

    def _slot_is_idle(self) -> bool:
        slot = self._machine.state.slots.get(SLOT)
        return slot is None or doing(slot) is Doing.IDLE

    def _act(self, effect: EffectItem) -> None:
        match effect:
            case Verify(_, id):
                self._take(verified(_counter(id)))
            case Download(_, id, release):
                self._fetch(goods(_counter(id)).counter, release)
                self._take(Downloaded(SLOT, id, [VARIANT]))
            case Stage(_, id, release, variant):
                self._slots.check(release.ref.bundle, variant)
                self._take(Staged(SLOT, id, variant))
            case Activate(_, id):
                self._serve()
                self._take(Activated(SLOT, id))
            case Observe(_, id):
                for _ in range(4):
                    self._answer()
                errors = 4 if goods(_counter(id)).is_bad else 0
                live = LiveStats(4, errors, 900.0, 2_000.0, 10.0)
                self._take(ProbationObserved(SLOT, id, live))
            case RollBack(_, id):
                if serving(self._machine.state):
                    self._serve()
                self._take(RolledBack(SLOT, id))
            case Discard(keep):
                self._slots.keep_only(keep)
            case Report(version):
                self._take(Acknowledged(version))

    def _fetch(self, counter: int, release: Release) -> None:
        ware, bundle = goods(counter), release.ref.bundle
        fetcher = ShopFetcher(ware)
        try:
            manifest = self._slots.manifest(bundle)
        except SkerryError:
            data = fetcher.small(f"/v2/reader/manifests/{bundle}", release.length)
            config = self._slots.put_oci(bundle, data).config
            blob = fetcher.small(f"/v2/reader/blobs/{config.digest}", config.size)
            manifest = self._slots.put_manifest(bundle, blob)
        for file in (manifest.variants[0].file, manifest.golden, manifest.baseline):
            target = self._slots.path(bundle, file.digest)
            fetcher.blob(
                f"/v2/reader/blobs/{file.digest}", target,
                digest=file.digest, size_bytes=file.size_bytes,
            )  # fmt: skip

    def _serve(self) -> None:
        """Serve what the state says, by a new boot beside the old one."""
        release = serving(self._machine.state)[SLOT]
        bundle, variant = release.ref.bundle, release.ref.variant
        try:
            self._slots.check(bundle, variant)
            model = serving_files(self._slots.manifest(bundle), variant)[0]
            loaded = sha256(self._slots.path(bundle, model).read_bytes())
        except SkerryError as error:
            self._say("broken", f"{error}")
            raise
        old = self._answers
        new = Recorder(self._spool, release, self._os_boot, self._spool_bytes)
        self._answers, self._model = new, loaded
        if old is not None:
            old.end()
        self._say("serves", release.ref.model_version)
        self._answer()

    def _answer(self) -> None:
        """Answer one request; the reply leaves last."""
        at, recorder = self._now(), self._answers
        if recorder is None:
            return
        self._n += 1
        id = f"{self._life}-{self._n}"
        before = recorder.spool.lost_total
        recorder.recovery.catch_up()
        recorder.observer.record(
            0, id, at=at, prediction=0, confidence=0.5, latency_us=9, features=[0.3]
        )
        safe = self._n % SAFE_EVERY == 0
        if safe or recorder.spool.unsynced >= 32:
            recorder.spool.take_sync()()
        kept = recorder.spool.lost_total == before
        self._say("answer", id, self._model, recorder.spool.boot, safe, kept)
        recorder.observer.close_due(at)

    def _upload(self) -> None:
        self._spooler.look()
        while (found := self._spooler.batch(POLICY)) is not None:
            boot, batch = found
            self._say("batch", boot, batch)
            acked = msgspec.msgpack.decode(self._line.recv(1 << 16), type=dict[str, int])
            self._outbox.sent(boot, batch.first, batch.last, time.monotonic())
            self._outbox.acknowledged(acked, 8)
            self._spooler.forget()
        self._spooler.forget()

    # --- what may fail --------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        self._machine.handle(event, self._now())

    def _insist(self, work: Callable[[], Any]) -> Any:
        while True:
            try:
                return work()
            except FAULTS as error:
                self._faulty(error)

    def _faulty(self, error: Exception) -> None:
        self._faults += 1
        self._say("fault", f"{type(error).__name__}: {error}"[:300])
        if self._faults > MAX_FAULTS:
            self._say("gave_up", f"{error}"[:300])
            os._exit(3)
        if self._faults > 3:
            time.sleep(0.05)
        if hasattr(self, "_machine") and not self._queue:
            self._queue.extend(pending(self._machine.state))

    def _say(self, kind: str, *rest: object) -> None:
        self._line.send(to_msgpack([kind, *rest]))


def _counter(id: str) -> int:
    return int(id.removeprefix("a-"))
