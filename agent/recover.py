"""What a new serve process takes over from others: their ids, and windows left open.

A process that died left predictions whose window it never wrote. They are in its
segments, each with everything that is counted, so the windows are rebuilt from them
and written into the new process's boot; `covers` names the dead boot and the range
of seqs. A prediction is counted already if a window of its context covers it, in
whichever boot that window stands. Afterwards the dead boot is marked as settled for
good. All of it may be cut short at any point and done again, because

1. what a dead boot's `settled` includes is counted; only records behind it are read,
2. a boot that holds windows of another is settled after that other one.

A process that still lives (the old one, during a swap) is followed: the ids that it
records are known here before the next request is looked at.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from agent.labels import Entry as LabelEntry
from agent.labels import Label, Labels
from agent.observe import Failure, Observer, WindowRows, window_start
from agent.segments import (
    DONE,
    CountPlan,
    Header,
    SegmentReader,
    boots,
    cut_tail,
    lock_boot,
    read_header,
    read_marks,
    segments,
    settle,
    settled_upto,
)
from agent.spool import Spool
from skerry.canonical import to_msgpack
from skerry.errors import FormatError, NotFoundError
from skerry.records import Context, Errors, Item, Loss, Prediction, SketchWindow

__all__ = ["Recovery", "foreign_contexts"]

Record = Item | Label | Failure  # labels and failures stay on the device
_RECORD: Final[msgspec.msgpack.Decoder[Record]] = msgspec.msgpack.Decoder(Record)
Covered = dict[tuple[str, Context | None], list[tuple[int, int]]]  # None: labels
Entry = tuple[Header, int, Record]


def foreign_contexts(root: Path) -> dict[Context, CountPlan]:
    """Return the contexts of all boots that may have to be rebuilt."""
    found: dict[Context, CountPlan] = {}
    for boot in boots(root):
        if settled_upto(root / boot) == DONE:
            continue
        for path in segments(root / boot):
            try:
                with SegmentReader(path) as reader:
                    header = reader.header
            except (FormatError, NotFoundError):
                continue
            found.update(zip(header.contexts, header.plans, strict=False))
    return found


@dataclass
class _Dead:
    """What the unsettled part of a dead boot holds."""

    entries: list[Entry]
    last_seq: int = 0
    os_boot: str = ""
    covers: set[str] = field(default_factory=set)  # other boots whose windows stand here


class Recovery:
    """Takes over from the other boots of a spool.

    Args:
        root: the spool directory.
        spool: this process's own boot in it.
        observer: where rebuilt windows are written.
        contexts: of the spool's header; those of `foreign_contexts` are among them.
        os_boot: the machine's boot id.
        labels: counts labels that others took.
    """

    def __init__(
        self,
        root: Path,
        spool: Spool,
        observer: Observer,
        contexts: list[Context],
        os_boot: str,
        labels: Labels | None = None,
    ) -> None:
        self._labels = labels or Labels(spool, observer.window_s)
        self._root = root
        self._spool = spool
        self._observer = observer
        self._position = {context: ctx for ctx, context in enumerate(contexts)}
        self._os_boot = os_boot
        self._followed: dict[str, _Follower] = {}
        self._written: Covered = {}  # by windows that this process has rebuilt

    def start(self) -> int:
        """Remember recent ids, rebuild dead boots, follow living ones.

        Returns:
            How many windows were rebuilt.
        """
        self._remember()
        return self.look()

    def look(self, *, rebuild: bool = True) -> int:
        """Look for boots that died or appeared since the last call; see `start`."""
        locks: dict[str, int] = {}
        try:
            for boot in boots(self._root):
                directory = self._root / boot
                if boot == self._spool.boot or settled_upto(directory) == DONE:
                    self._unfollow(boot)
                elif (lock := lock_boot(directory)) is None:
                    self._followed.setdefault(boot, _Follower(directory))
                else:
                    locks[boot] = lock
            self.catch_up()
            for boot in locks:
                self._unfollow(boot)
            return self._take_over(sorted(locks)) if rebuild and locks else 0
        finally:
            for lock in locks.values():
                os.close(lock)

    def catch_up(self) -> None:
        """Take over the ids that living boots recorded since the last call."""
        for follower in self._followed.values():
            for _, _, item in follower.poll():
                if isinstance(item, Prediction):
                    self._observer.recent.add(item.id)
                elif isinstance(item, Label):
                    self._labels.seen(item)

    @property
    def follows(self) -> bool:
        """Whether another process records at the same time."""
        return bool(self._followed)

    def _unfollow(self, boot: str) -> None:
        follower = self._followed.pop(boot, None)
        if follower is not None:
            follower.close()

    def _remember(self) -> None:
        """Take the newest ids of the spool, oldest first, as many as are kept."""
        recent = self._observer.recent
        newest: list[list[str]] = []
        room = recent.capacity
        files = [path for boot in boots(self._root) for path in segments(self._root / boot)]
        for path in sorted(files, key=_modified, reverse=True):
            ids = [item.id for _, _, item in _entries(path) if isinstance(item, Prediction)]
            newest.append(ids)
            room -= len(ids)
            if room <= 0:
                break
        for ids in reversed(newest):
            for id in ids:
                recent.add(id)

    def _take_over(self, names: list[str]) -> int:
        covered: Covered = {key: list(spans) for key, spans in self._written.items()}
        dead = {boot: self._read_dead(boot, covered) for boot in names}
        rebuilt = 0
        finished: set[str] = set()
        for boot in names:
            windows = _uncounted(boot, dead[boot].entries, covered)
            counted = all(self._write(boot, context, window) for context, window in windows)
            left = _uncounted_labels(boot, dead[boot].entries, covered)
            if counted and self._labels.rebuild(boot, left):
                finished.add(boot)
                rebuilt += len(windows)
                self._say_loss(boot, dead[boot])
        # the windows must outlast what they were made from
        self._spool.take_sync()()
        while ready := [b for b in names if b in finished and not dead[b].covers & set(names)]:
            for boot in ready:
                for path in segments(self._root / boot):
                    cut_tail(path)
                settle(self._root / boot)
                names.remove(boot)
        return rebuilt

    def _read_dead(self, boot: str, covered: Covered) -> _Dead:
        """Read what stands behind `settled`, and note which predictions windows cover."""
        directory = self._root / boot
        settled = settled_upto(directory)
        dead = _Dead([])
        for path in segments(directory):
            with contextlib.suppress(FormatError, NotFoundError):
                # also where a power cut has left no record to read
                header = read_header(path)
                dead.last_seq, dead.os_boot = header.first_seq - 1, header.os_boot
            for header, seq, item in _entries(path):
                dead.last_seq = seq
                if seq <= settled:
                    continue
                dead.entries.append((header, seq, item))
                if isinstance(item, SketchWindow) and item.ctx < len(header.contexts):
                    for name, span in item.covers.items():
                        covered.setdefault((name, header.contexts[item.ctx]), []).append(span)
                        dead.covers.add(name)
                elif isinstance(item, Errors):
                    for name, span in item.covers.items():
                        covered.setdefault((name, None), []).append(span)
                        dead.covers.add(name)
        dead.covers.discard(boot)
        return dead

    def _write(self, boot: str, context: Context, window: WindowRows) -> bool:
        ctx = self._position.get(context)
        # without room it is tried again later; a context that is not ours, by the next process
        if ctx is None or not self._observer.write_rebuilt(ctx, boot, window):
            return False
        self._written.setdefault((boot, context), []).append((window.first, window.last))
        return True

    def _say_loss(self, boot: str, dead: _Dead) -> None:
        """Say what a power cut may have taken: numbers reserved and not readable."""
        if dead.os_boot in ("", self._os_boot):
            return
        reserved = max((read_marks(p)[0] for p in segments(self._root / boot)), default=0)
        if reserved > dead.last_seq:
            self._spool.append(to_msgpack(Loss(boot, reserved - dead.last_seq, "power_cut")))


class _Follower:
    """Reads what a living boot records from now on; it starts with its newest segment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen = {path.name for path in segments(directory)[:-1]}
        self._reader: SegmentReader | None = None

    def poll(self) -> Iterator[Entry]:
        """Yield what was recorded since the last call."""
        while True:
            if self._reader is not None:
                yield from _drain(self._reader)
            following = self._next()
            if following is None:
                return
            if self._reader is not None:
                # what came between the last read and the new segment's name
                yield from _drain(self._reader)
                self._reader.close()
            self._reader = following

    def close(self) -> None:
        """Give the file back."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _next(self) -> SegmentReader | None:
        for path in segments(self._directory):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                return SegmentReader(path)
            except (FormatError, NotFoundError):
                continue
        return None


def _uncounted(
    boot: str, entries: list[Entry], covered: Covered
) -> list[tuple[Context, WindowRows]]:
    """Put every prediction, and every failure, that no window covers into a window.

    A context's windows take runs of seqs that do not overlap, also where the clock
    was set back: one that was written must not seem to cover another's rows.
    """
    windows: list[tuple[Context, WindowRows]] = []
    current: dict[Context, WindowRows] = {}
    for header, seq, item in entries:
        if not isinstance(item, Prediction | Failure) or item.ctx >= len(header.plans):
            continue
        context = header.contexts[item.ctx]
        if any(first <= seq <= last for first, last in covered.get((boot, context), ())):
            continue
        start = window_start(item.at, header.window_s)
        window = current.get(context)
        if window is None or (window.start, window.length_s) != (start, header.window_s):
            window = WindowRows(header.plans[item.ctx], start, header.window_s)
            current[context] = window
            windows.append((context, window))
        if isinstance(item, Failure):
            window.fail(seq)
        else:
            window.add((item.prediction, item.confidence, item.latency_us, *item.features), seq)
    return windows


def _uncounted_labels(boot: str, entries: list[Entry], covered: Covered) -> list[LabelEntry]:
    spans = covered.get((boot, None), ())
    return [
        (seq, item)
        for _, seq, item in entries
        if isinstance(item, Label) and not any(first <= seq <= last for first, last in spans)
    ]


def _entries(path: Path) -> Iterator[Entry]:
    try:
        with SegmentReader(path) as reader:
            yield from _drain(reader)
    except (FormatError, NotFoundError):
        return  # torn before its first record, or forgotten by control


def _drain(reader: SegmentReader) -> Iterator[Entry]:
    while batch := reader.read():
        for seq, payload in batch:
            try:
                item = _RECORD.decode(payload)
            except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: no UTF-8
                continue  # written by another version; control reports it
            if isinstance(item, Prediction) and item.aside is not None:
                item = msgspec.structs.replace(item, aside=None)  # whole boots are held in memory
            yield reader.header, seq, item


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
