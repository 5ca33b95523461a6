"""A simulated device's segments, and the process that serves and writes them.

What is appended survives the death of both processes, as a mapped file does. Eight records
make a segment, and a segment goes only when `agent.outbox.may_forget` says so.
"""

from dataclasses import dataclass, field

from agent.outbox import may_forget
from skerry.records import Context, Item, Prediction, SketchWindow, Skip

SEGMENT = 8  # records
WINDOW = 10  # predictions


@dataclass
class Boot:
    """The records of one serving process."""

    contexts: list[Context]
    items: dict[int, Item] = field(default_factory=dict)  # seq -> record, those still kept
    upto: int = 0
    kept_from: int = 1
    settled: int = 0
    done: bool = False

    def append(self, item: Item) -> int:
        self.upto += 1
        self.items[self.upto] = item
        return self.upto


class Spool:
    """All boots of a device, oldest first."""

    def __init__(self) -> None:
        self.boots: dict[str, Boot] = {}

    def predict(self, boot_id: str, prediction: Prediction) -> int:
        """Append a prediction, and now and then the window that counts it."""
        boot = self.boots[boot_id]
        seq = boot.append(prediction)
        if seq - boot.settled >= WINDOW:
            self._close(boot_id, boot, boot, prediction.at)
        return seq

    def start(self, boot_id: str, contexts: list[Context], now: float) -> None:
        """A new process writes; it counts what dead ones had not counted."""
        boot = self.boots[boot_id] = Boot(contexts)
        for dead_id, dead in self.boots.items():
            if dead is not boot and not dead.done:
                self._close(dead_id, dead, boot, now)
                dead.done = True

    def batch(self, boot_id: str, first: int, at_most: int, every_row: bool) -> list[Item]:
        """Return the run of records from `first`, as the record policy lets them leave."""
        boot, items = self.boots[boot_id], list[Item]()
        for seq in range(first, min(boot.upto, first + at_most - 1) + 1):
            item = boot.items.get(seq)
            if item is None:
                break
            if every_row or not isinstance(item, Prediction):
                items.append(item)
            elif items and isinstance(items[-1], Skip):
                items[-1] = Skip(items[-1].count + 1)
            else:
                items.append(Skip(1))
        return items

    def lose_segment(self, boot_id: str) -> list[int]:
        """The disk loses the oldest segment of a boot that has another; return its seqs."""
        boot = self.boots[boot_id]
        last = self._last_of_oldest(boot)
        if last >= boot.upto:
            return []
        return [seq for seq in range(boot.kept_from, last + 1) if boot.items.pop(seq, None)]

    def forget(self, boot_id: str, acked: int) -> dict[int, Item]:
        """Remove whole segments that may go; return their records."""
        boot = self.boots[boot_id]
        gone: dict[int, Item] = {}
        while boot.kept_from <= boot.upto:
            last = self._last_of_oldest(boot)
            newest = last >= boot.upto
            if not may_forget(
                last=last, acked=acked, settled=boot.settled, newest=newest, done=boot.done
            ):
                break
            for seq in range(boot.kept_from, last + 1):
                if seq in boot.items:
                    gone[seq] = boot.items.pop(seq)
            boot.kept_from = last + 1
        return gone

    def is_empty(self, boot_id: str) -> bool:
        boot = self.boots[boot_id]
        return boot.done and not boot.items

    @staticmethod
    def _last_of_oldest(boot: Boot) -> int:
        return min((boot.kept_from - 1) // SEGMENT * SEGMENT + SEGMENT, boot.upto)

    @staticmethod
    def _close(boot_id: str, boot: Boot, into: Boot, now: float) -> None:
        first, last = boot.settled + 1, boot.upto
        if last >= first:
            seqs = range(first, last + 1)
            counted = sum(isinstance(boot.items.get(seq), Prediction) for seq in seqs)
            if into is not boot:
                into.contexts.append(boot.contexts[0])
            ctx = 0 if into is boot else len(into.contexts) - 1
            into.append(SketchWindow(ctx, now // 1, 1.0, counted, 0, {}, {boot_id: (first, last)}))
        boot.settled = boot.upto if into is boot else last
