"""The fleet and the clients of a pocket device: they remember what was said, and hold it against it."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import msgspec

from skerry.records import Context, Item, Loss, Prediction, SketchWindow, Skip
from skerry.wire import Batch
from tests.crash.shop import models


@dataclass
class Ledger:
    """Everything that one device has said in all of its lives."""

    answered: dict[str, tuple[str, bool, bool]] = field(default_factory=dict)  # boot, safe, kept
    stored: dict[tuple[str, int], Item] = field(default_factory=dict)
    contexts: dict[str, list[Context]] = field(default_factory=dict)
    upto: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    phase: str = "start"
    serves: str = ""
    bound: int = 0  # rows that devices said a power cut may have taken
    lost: int = 0  # rows that it did take

    def take(self, message: bytes) -> bytes | None:
        """Take what a device said; the answer, if it waits for one."""
        kind, *rest = msgspec.msgpack.decode(message)
        match kind:
            case "phase":
                self.phase = rest[0]
            case "serves":
                self.serves = rest[0]
            case "answer":
                id, model, boot, safe, kept = rest
                if model not in models(400):
                    self.wrong.append(f"{id}: answered by a model that nobody released")
                self.answered[id] = (boot, safe, kept)
            case "fault":
                self.faults.append(rest[0])
            case "broken" | "gave_up":
                self.broken.append(f"{kind}: {rest[0]}")
            case "batch":
                return self._store(rest[0], msgspec.convert(rest[1], Batch))
        return None

    def _store(self, boot: str, batch: Batch) -> bytes:
        seq = batch.first
        known = self.contexts.setdefault(boot, batch.contexts)
        if known != batch.contexts:
            self.wrong.append(f"{boot}: other contexts than before")
        for item in batch.items:
            if isinstance(item, Skip):
                self.wrong.append(f"{boot}: {item.count} records from {seq} could not be read")
                seq += item.count
                continue
            if self.stored.setdefault((boot, seq), item) != item:
                self.wrong.append(f"{boot}: record {seq} is another one than before")
            seq += 1
        while (boot, self.upto[boot] + 1) in self.stored:
            self.upto[boot] += 1
        return msgspec.msgpack.encode({boot: self.upto[boot]})

    def account(self) -> list[str]:
        """Return what is wrong, once a device is at rest and has told everything."""
        wrong = list(self.wrong)
        place: dict[str, tuple[str, int]] = {}
        spans: dict[tuple[str, Context], list[tuple[int, int]]] = defaultdict(list)
        bound: Counter[str] = Counter()
        rows = unrecorded = counted = 0
        for (boot, seq), item in self.stored.items():
            if isinstance(item, Prediction):
                if item.id in place:
                    wrong.append(f"{item.id} is stored twice")
                place[item.id] = (boot, seq)
            elif isinstance(item, Loss):
                bound[item.boot] += item.at_most
                unrecorded += item.at_most if item.reason == "no_room" else 0
            elif isinstance(item, SketchWindow):
                counted += item.n
                for name, span in item.covers.items():
                    spans[name, self.contexts[boot][item.ctx]].append(span)
        for id, (boot, seq) in place.items():
            item = self.stored[boot, seq]
            assert isinstance(item, Prediction)
            context = self.contexts[boot][item.ctx]
            times = sum(first <= seq <= last for first, last in spans[boot, context])
            rows += 1
            if times != 1:
                wrong.append(f"{id} ({boot}, {seq}) is counted {times} times")
        lost: Counter[str] = Counter()
        for id, (boot, safe, kept) in self.answered.items():
            if id not in place and kept:
                lost[boot] += 1
                if safe:
                    wrong.append(f"{id} was power-safe and is lost")
        wrong += [
            f"{boot}: {n} answered are lost, at most {bound[boot]} were reported"
            for boot, n in lost.items()
            if n > bound[boot]
        ]
        self.lost, self.bound = sum(lost.values()), sum(bound.values())
        if not rows <= counted <= rows + unrecorded:
            wrong.append(f"{rows} rows are stored, {unrecorded} without room, {counted} counted")
        return wrong
