"""What serve keeps of every answered prediction: a record at once, counts per window.

`record` appends to the spool before the reply leaves, and puts the row into the open
window of its context. A window is closed once it is over: its rows are counted
(vectorised, by `skerry.counting`) and written as a `SketchWindow`. A row belongs to
the window of the moment at which it was recorded, so that another process can rebuild
the same counts from the records alone (`agent.recover`).
"""

import math
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.inputs import Take
from agent.segments import CountPlan
from agent.spool import NO_ROOM, Spool
from skerry.canonical import to_msgpack
from skerry.counting import CHUNK, CodeCounter, TableCounter
from skerry.manifest import Baseline, Manifest
from skerry.records import Prediction, SketchWindow
from skerry.sketch import CategoricalSpec, Column, NumericSpec

__all__ = [
    "GRACE_S",
    "Failure",
    "Observer",
    "RecentIds",
    "WindowRows",
    "count_plan",
    "window_start",
]

GRACE_S: Final = 0.2  # after a window's end, before it is closed without traffic
FOLD_ROWS: Final = CHUNK  # rows held before they become counts
MAX_WAITING: Final = 256  # counted windows that wait for room in the spool
ROOM_BYTES: Final = 4096  # of a record, before it is known
FIXED_COLUMNS: Final = ("prediction", "confidence", "latency_us")


def count_plan(manifest: Manifest, baseline: Baseline) -> CountPlan:
    """Return how a release's predictions are counted."""
    columns = {name: column.spec for name, column in baseline.columns.items()}
    outputs = {output.name: output for output in manifest.outputs}
    names = outputs[manifest.prediction.output].class_names
    classes: list[int] = []
    spec = columns.get("prediction")
    if isinstance(spec, CategoricalSpec):
        position = {value: place for place, value in enumerate(spec.values)}
        named = names or [str(i) for i in range(len(spec.values))]
        classes = [position.get(name, -1) for name in named]
    return CountPlan(
        [feature.name for feature in manifest.features],
        classes,
        columns,
        [feature.input for feature in manifest.features],
    )


def window_start(at: float, window_s: float) -> float:
    """Return the start of the window that a moment lies in, a multiple of its length."""
    return math.floor(at / window_s) * window_s


class Failure(msgspec.Struct, frozen=True, array_like=True, tag="f"):
    """A request that the model failed to answer; it is counted here, and never leaves the device."""

    ctx: int
    at: float  # Unix seconds


class RecentIds:
    """The last request ids, oldest forgotten first."""

    def __init__(self, capacity: int) -> None:
        self.capacity: Final = capacity
        self._ids: set[str] = set()
        self._order: deque[str] = deque()  # a dict alone is slow to find its oldest key

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str) -> None:
        """Remember an id; the oldest goes where there is no room."""
        if id in self._ids:
            return
        self._ids.add(id)
        self._order.append(id)
        if len(self._order) > self.capacity:
            self._ids.discard(self._order.popleft())


class WindowRows:
    """The rows of one window of one context, until they become counts."""

    def __init__(self, plan: CountPlan, start: float, length_s: float) -> None:
        self._plan = plan
        names = (*FIXED_COLUMNS, *plan.features)
        specs = [plan.columns.get(name) for name in names]
        places = [i for i, spec in enumerate(specs) if isinstance(spec, NumericSpec)]
        self._width: Final = len(names)
        self._numeric: Final = [names[i] for i in places]
        # as a rule all columns but the class of a prediction: then they are looked at, not copied
        together = places and places == list(range(places[0], places[-1] + 1))
        self._places: Final = slice(places[0], places[-1] + 1) if together else places
        self._table: Final = TableCounter([s for s in specs if isinstance(s, NumericSpec)])
        self._classes: Final = {
            i: CodeCounter(spec)
            for i, spec in enumerate(specs)
            if isinstance(spec, CategoricalSpec)
        }
        self._rows = array("d")
        self.start = start
        self.length_s = length_s
        self.n = 0
        self.errors = 0
        self.first = self.last = NO_ROOM  # seqs of the boot that recorded the rows and errors

    def add(self, row: Sequence[float], seq: int) -> None:
        """Take one row: prediction, confidence, latency_us, then the features."""
        self._rows.extend(row)
        self.n += 1
        self._cover(seq, seq)
        if len(self._rows) >= FOLD_ROWS * self._width:
            self._fold()

    def add_table(self, table: NDArray[np.float64], first: int, last: int) -> None:
        """Take many rows, float64 [rows, columns], whose seqs run from first to last."""
        if len(table) >= FOLD_ROWS:
            self._fold()
            self._count(table.T)
        else:
            self._rows.frombytes(table.tobytes())
        self.n += len(table)
        self._cover(first, last)
        if len(self._rows) >= FOLD_ROWS * self._width:
            self._fold()

    def fail(self, seq: int) -> None:
        """Take one request that the model failed to answer."""
        self.errors += 1
        self._cover(seq, seq)

    def columns(self) -> dict[str, Column]:
        """Return the counts of all rows, by column."""
        self._fold()
        names = (*FIXED_COLUMNS, *self._plan.features)
        found: dict[str, Column] = dict(zip(self._numeric, self._table.columns(), strict=True))
        found |= {names[i]: counter.column() for i, counter in self._classes.items()}
        return {name: found[name] for name in self._plan.columns if name in found}

    def _cover(self, first: int, last: int) -> None:
        self.first = self.first or first
        self.last = last or self.last

    def _fold(self) -> None:
        if not self._rows:
            return
        table = np.frombuffer(self._rows, dtype=np.float64).reshape(-1, self._width).T
        self._count(table)
        del table  # the array is in use, and cannot be emptied, while it is looked at
        del self._rows[:]

    def _count(self, table: NDArray[np.float64]) -> None:
        self._table.add(table[self._places])
        for place, counter in self._classes.items():
            counter.add(self._codes(table[place]))

    def _codes(self, classes: NDArray[np.float64]) -> NDArray[np.int64]:
        known = np.array([*self._plan.classes, -1], np.int64)  # the last for classes without name
        named = (classes >= 0) & (classes < len(known) - 1)
        return known[np.where(named, classes, -1).astype(np.int64)]


class Observer:
    """Records predictions, closes windows.

    Args:
        spool: where records go.
        plans: one per context of the spool's header.
        window_s: length of a window.
        recent: ids that are answered again, but neither recorded nor counted again.
    """

    def __init__(
        self, spool: Spool, plans: Sequence[CountPlan], window_s: float, recent: RecentIds
    ) -> None:
        self._spool = spool
        self._plans = plans
        self._open: list[WindowRows | None] = [None] * len(plans)
        self._over: list[tuple[int, WindowRows]] = []
        self._waiting: list[bytes] = []
        self.window_s = window_s
        self.recent = recent
        self.windows = 0
        self.windows_lost = 0

    def record(
        self,
        ctx: int,
        id: str,
        *,
        at: float,
        prediction: int,
        confidence: float,
        latency_us: int,
        features: list[float],
        take: Take | None = None,
    ) -> bool:
        """Record and count one answered prediction, unless its id was seen before.

        Args:
            ctx: position of the context.
            id: of the request.
            at: when it was answered, Unix seconds.
            prediction: as `Prediction` has it, and what follows too.
            confidence: of it.
            latency_us: how long that took.
            features: in the plan's order.
            take: reads the raw inputs, where they are recorded.

        Returns:
            Whether it was new.
        """
        if id in self.recent:
            return False
        payload = to_msgpack(
            Prediction(
                id, at, ctx, prediction, confidence, latency_us, features,
                None if take is None else take(id, 0),
            )
        )  # fmt: skip
        seq = self._spool.append(payload)
        self.recent.add(id)
        self._window(ctx, at).add((prediction, confidence, latency_us, *features), seq)
        return True

    def record_table(
        self,
        ctx: int,
        id: str,
        *,
        at: float,
        latency_us: int,
        table: NDArray[np.float64],
        take: Take | None = None,
    ) -> int:
        """Record and count the rows of one answered batch, unless they were seen before.

        Args:
            ctx: position of the context.
            id: of the request; that of row i ends with ``#i``.
            at: when they were answered, Unix seconds.
            latency_us: how long that took.
            table: float64 [rows, columns], as `WindowRows.add` takes one; the latency is put in.
            take: reads the raw inputs of a row, where they are recorded.

        Returns:
            How many were new.
        """
        table[:, 2] = latency_us
        new: list[int] = []
        seqs = [NO_ROOM]
        for i, (prediction, confidence, _, *features) in enumerate(table.tolist()):
            name = f"{id}#{i}"
            if name in self.recent:
                continue
            payload = to_msgpack(
                Prediction(
                    name, at, ctx, int(prediction), confidence, latency_us, features,
                    None if take is None else take(name, i),
                )
            )  # fmt: skip
            if seq := self._spool.append(payload):
                seqs.append(seq)
            self.recent.add(name)
            new.append(i)
        if new:
            rows = table if len(new) == len(table) else table[new]
            self._window(ctx, at).add_table(rows, seqs[min(1, len(seqs) - 1)], seqs[-1])
        return len(new)

    def error(self, ctx: int, at: float) -> None:
        """Record and count one request that the model failed to answer."""
        seq = self._spool.append(to_msgpack(Failure(ctx, at)))
        self._window(ctx, at).fail(seq)

    @property
    def unrecorded(self) -> int:
        """How many records had no room."""
        return self._spool.lost_total

    @property
    def has_room(self) -> bool:
        """Whether a record can be kept now."""
        return self._spool.has_room(ROOM_BYTES)

    def close_due(self, now: float) -> None:
        """Close the windows that are over."""
        for ctx, window in enumerate(self._open):
            if window is not None and not (
                window.start <= now < window.start + window.length_s + GRACE_S
            ):
                self._end(ctx, window)
        self._write()

    @property
    def all_written(self) -> bool:
        """Whether no counted window waits for room."""
        return not self._waiting

    def close_all(self) -> None:
        """Close every window, over or not."""
        for ctx, window in enumerate(self._open):
            if window is not None:
                self._end(ctx, window)
        self._write()

    def set_window(self, window_s: float) -> None:
        """Count in windows of another length from the next prediction on."""
        if window_s != self.window_s:
            self.close_all()
            self.window_s = window_s
            self._spool.roll(window_s)

    def write_rebuilt(self, ctx: int, boot: str, window: WindowRows) -> bool:
        """Write the window of a dead process's boot; False where there is no room."""
        payload = self._sketch(ctx, boot, window)
        return self._spool.append(payload) != NO_ROOM

    def next_due(self, now: float) -> float:
        """Return the seconds until a window may be closed, at most the length of one."""
        return window_start(now, self.window_s) + self.window_s + GRACE_S - now

    def _window(self, ctx: int, at: float) -> WindowRows:
        window = self._open[ctx]
        if window is not None and window.start <= at < window.start + window.length_s:
            return window
        if window is not None:
            self._end(ctx, window)
        window = WindowRows(self._plans[ctx], window_start(at, self.window_s), self.window_s)
        self._open[ctx] = window
        return window

    def _end(self, ctx: int, window: WindowRows) -> None:
        # counted later, by the timer: a request does not wait for it
        self._over.append((ctx, window))
        self._open[ctx] = None

    def _write(self) -> None:
        over, self._over = self._over, []
        self._waiting += [self._sketch(ctx, self._spool.boot, window) for ctx, window in over]
        while self._waiting:
            if self._spool.append(self._waiting[0]) == NO_ROOM:
                break
            self.windows += 1
            del self._waiting[0]
        while len(self._waiting) > MAX_WAITING:
            self.windows_lost += 1
            del self._waiting[0]
        if not self._waiting:
            firsts = [w.first for w in self._open if w is not None and w.first]
            self._spool.settle(min(firsts, default=self._spool.next_seq) - 1)

    @staticmethod
    def _sketch(ctx: int, boot: str, window: WindowRows) -> bytes:
        covers = {boot: (window.first, window.last)} if window.first else {}
        return to_msgpack(
            SketchWindow(
                ctx, window.start, window.length_s, window.n, window.errors,
                window.columns(), covers,
            )
        )  # fmt: skip
