"""A fleet with a past: twelve devices, three rollouts, two smudged lenses, on a clock of its own.

    python -m tests.fakes.busy          serve the console over it, to look at

Real store, ingest, engine, analyses and drift watch; only the devices are made up.
"""

import itertools
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fleet.analysis import AnalysisPlan
from fleet.ingest import Ingest
from fleet.plan import Plan, StagePlan
from fleet.registry import Claim, DeviceRecord
from skerry.feedback import ErrorSketch
from skerry.records import Context, Errors, SketchWindow
from skerry.states import DeviceState
from skerry.wire import AssignmentReport, Batch, Hello, ReleaseRef, Reported, Step
from tests.fakes.backend import TOKEN, FakeBackend, listening, new_store, with_commands
from tests.fakes.releases import readable_bundle
from tests.fakes.reporter import FLEET, INVENTORY, SHARDS, Reporter
from tests.fakes.rollouts import GOOD_WAY
from tests.fakes.trusted import make_fleet
from tests.fakes.windows import BASELINE, FakeDevice, names

__all__ = ["SMUDGED", "Play", "busy_backend"]

SMUDGED: Final = ("airport-02", "airport-05")
CANARY: Final = StagePlan("canary", count=3, bake_s=4.0, analysis=AnalysisPlan())
BEFORE: Final = 24  # windows, so that an analysis has its twenty
LENGTH_S: Final = 150  # of the whole play, with room to spare


class _Silent:
    """What the fleet says to devices is read from its tables here."""

    def ack(self, *_: object) -> None: ...

    def hello(self, *_: object) -> None: ...


class Play:
    """A fleet whose devices do as they are told, second by second."""

    def __init__(self, folder: Path, now: datetime) -> None:
        self.now = now
        self.trusted = make_fleet(folder / "trust", now=now)
        store = new_store(folder)
        self.backend = with_commands(FakeBackend(store), self.trusted, lambda: self.now)
        self.ingest = Ingest(store.telemetry, _Silent(), fleet_id=FLEET, shards=SHARDS)
        self.voices = {name: Reporter(name) for name in names()}
        self.lenses = {name: FakeDevice(name, 7, wobble=0.03) for name in names()}
        self.changed: dict[str, dict[str, Any]] = {}  # device or version -> what its windows do
        self._runs: dict[str, ReleaseRef] = {}
        self._done: dict[str, str] = {}  # device -> assignment carried out
        self._numbers = {name: itertools.count(1) for name in names()}
        for name, voice in self.voices.items():
            self._enrol(name, voice)

    def _enrol(self, name: str, voice: Reporter) -> None:
        secret = name.encode().hex().ljust(64, "0")[:64]
        claim = Claim(name, secret, self.now + timedelta(hours=1))
        tags = {"site": name.split("-")[0]}
        self.backend.store.devices.preauthorize(claim, tags=tags, now=self.now)
        record = DeviceRecord(
            device_id=name,
            state=DeviceState.ACCEPTED,
            client_id=f"{name}_x",
            report_key=voice.signer.public.raw,
            certificate="PEM",
            certificate_expires=self.now + timedelta(days=30),
            inventory=INVENTORY,
            enrolled_at=self.now,
        )
        assert self.backend.store.devices.enrol(secret, record)
        self.ingest.take([voice.say("hello", Hello("0.1.0", 0, 0))], self.now.timestamp())

    def publish(self, version: str) -> None:
        self.trusted.publish(readable_bundle(version, baseline=BASELINE), now=self.now)
        self.backend.commands.reconcile()

    def roll_out(self, version: str, *stages: StagePlan) -> str:
        plan = Plan("reader", version, "acme", "reader", stages=(*stages, StagePlan("all")))
        made: str = self.backend.commands.create_rollout(plan, "anna")
        return made

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += timedelta(seconds=1)
            self.backend.engine.tick(self.now)
            self._carry_out()
            self._see()

    def until(self, rollout: str, *states: str) -> None:
        for _ in range(60):
            self.run(1)
            if self.backend.store.rollouts.get(rollout).state in states:
                return
        found = self.backend.store.rollouts.get(rollout)
        raise AssertionError(f"{rollout} is {found.state}: {found.reason}")

    def _carry_out(self) -> None:
        at, messages = self.now.timestamp(), []
        for row in self.backend.store.rollouts.all_desired():
            for slot in row.slots.values():
                if self._done.get(row.device) == slot.assignment_id:
                    continue
                self._done[row.device] = slot.assignment_id
                version = slot.target.rpartition("@")[2]
                ref = ReleaseRef("reader", version, slot.bundle, "fp32-cpu", at)
                self._runs[row.device] = ref
                path = [Step(state, at + 0.1 * n) for n, state in enumerate(GOOD_WAY)]
                told = AssignmentReport(
                    slot.assignment_id, "reader", GOOD_WAY[-1], path, variant="fp32-cpu"
                )
                body = Reported(row.version, {"reader": ref}, [told], INVENTORY, row.version)
                messages.append(self.voices[row.device].say("reported", body))
        if messages:
            self.ingest.take(messages, at)

    def _see(self) -> None:
        at, messages = self.now.timestamp(), []
        for name, ref in self._runs.items():
            how = self.changed.get(ref.model_version, {}) | self.changed.get(name, {})
            made = self.lenses[name].window(float(int(at)), **how)
            item = SketchWindow(0, made.start, 1.0, made.n, made.errors, dict(made.columns))
            context = Context("reader", "reader", ref.model_version, ref.bundle, ref.variant)
            batch = Batch(next(self._numbers[name]), [context], [item])
            messages.append(self.voices[name].say("telemetry", batch))
        if messages:
            self.ingest.take(messages, at)

    def label(self, seconds: int) -> None:
        """Let labels come for what was predicted in the last so many seconds."""
        begin = float(int(self.now.timestamp()) - seconds)
        for place, (name, ref) in enumerate(sorted(self._runs.items())):
            context = Context("reader", "reader", ref.model_version, ref.bundle, ref.variant)
            wrong = [3 if name in SMUDGED else place % 2, 1]
            sketches = [
                ErrorSketch(0, begin + i, 1.0, 20 + sum(wrong), 20,
                            [0, 0, 12, *([0, 1, wrong[0]] if wrong[0] else []), 1, 0, 1, 1, 1, 8])
                for i in range(seconds)
            ]  # fmt: skip
            batch = Batch(next(self._numbers[name]), [], [Errors([context], sketches)])
            self.ingest.take([self.voices[name].say("telemetry", batch)], self.now.timestamp())


def busy_backend(folder: Path) -> Play:
    """Play three rollouts, of which the last is bad, and smudge two lenses; ends about now."""
    play = Play(folder, datetime.now(UTC) - timedelta(seconds=LENGTH_S))
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        play.publish(version)
    play.changed["1.2.0"] = {"collapse": 0.35}
    play.until(play.roll_out("1.0.0"), "completed")
    play.run(BEFORE)
    play.until(play.roll_out("1.1.0", CANARY), "completed")
    play.run(BEFORE)
    play.until(play.roll_out("1.2.0", CANARY), "rolled_back")
    play.run(14)
    play.changed |= {name: {"shift": -1.4} for name in SMUDGED}
    play.run(4)
    play.label(10)
    return play


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        listening(busy_backend(Path(folder)).backend) as url,
    ):
        sys.stdout.write(f"{url}/login?token={TOKEN}\n")
        sys.stdout.flush()
        threading.Event().wait()
