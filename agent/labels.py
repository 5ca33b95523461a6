"""Labels that were joined: a record at once, error sketches a little later.

A label is appended to the spool before its answer leaves, with everything that is counted, as a
prediction is: so it survives the process, and who comes after counts what was not counted
(`agent.recover`). Once a window's length has passed, what came is counted into one `Errors`
record, by the windows in which the *predictions* were made; its `covers` says which labels
are in it, all or none. Label records themselves never leave the device.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from agent.spool import NO_ROOM, Spool
from skerry.canonical import to_msgpack
from skerry.counting import count_numeric
from skerry.feedback import MAX_CLASSES, ErrorSketch, error_spec
from skerry.records import Context, Errors
from skerry.sketch import int_to_big

__all__ = ["Label", "Labels", "count_labels"]

MAX_PENDING: Final = 2048  # labels, before they become counts
MAX_ERRORS_BYTES: Final = 32 << 10  # of one record
MAX_FIXED: Final = 2.0**200  # an error beyond that is no number


class Label(msgspec.Struct, frozen=True, array_like=True, tag="y"):
    """A label that was joined with its prediction, and all that is needed to count it."""

    key: bytes  # of the prediction, see `agent.held`
    context: Context
    start: float  # of the prediction's window, Unix seconds
    length_s: float
    classes: int  # how many there are; 0: the prediction is a value
    predicted: int
    label: int
    value: float = 0.0  # where the prediction is a value
    truth: float = 0.0
    span: float = 1.0
    scale: int = 1


Entry = tuple[int, Label]  # a seq, and what it is of


class Labels:
    """Takes labels, counts them.

    Args:
        spool: where records go.
        window_s: a label is counted after so long.
        seen: called with each label that another process has taken.
        sync: makes the marks at the held predictions durable; None: there are none.
    """

    def __init__(
        self,
        spool: Spool,
        window_s: float,
        *,
        seen: Callable[[Label], None] = lambda _: None,
        sync: Callable[[], None] | None = None,
    ) -> None:
        self._spool = spool
        self._seen = seen
        self._sync = sync
        self._pending: list[Entry] = []
        self._due = 0.0
        self._rebuilt: dict[str, int] = {}  # per dead boot: last seq that was written
        self._to_sync = self._syncing = self._synced = False
        self._boundary = 0  # what lies before it is counted, and durable once the sync is done
        self.window_s = window_s
        self.taken = 0

    def add(self, label: Label, now: float) -> bool:
        """Keep a label, so that it survives this process; False where there is no room.

        Args:
            label: joined.
            now: monotonic seconds.
        """
        if len(self._pending) >= MAX_PENDING and not self._count():
            return False
        payload = to_msgpack(label)
        # what is refused is not lost: it is not appended in vain, and counted as such
        if not self._spool.has_room(len(payload)):
            return False
        seq = self._spool.append(payload)
        if not self._pending:
            self._due = now + self.window_s
        self._spool.uncounted_from = self._spool.uncounted_from or seq
        self._pending.append((seq, label))
        self.taken += 1
        return True

    def seen(self, label: Label) -> None:
        """Note a label that another process has taken."""
        self._seen(label)

    def tick(self, now: float) -> None:
        """Count what has waited for long enough; let go what is counted and durable.

        Args:
            now: monotonic seconds.
        """
        if self._pending and now >= self._due:
            self._count()
            self._due = now + self.window_s
        if self._to_sync and self._sync is None:
            self._mark_boundary()
            self._synced = True
        if self._synced:
            self._synced = False
            waiting = self._pending or self._to_sync
            self._spool.uncounted_from = self._boundary if waiting else 0

    @property
    def to_sync(self) -> bool:
        """Whether `take_sync` has something to do."""
        return self._to_sync and not self._syncing and self._sync is not None

    def take_sync(self) -> Callable[[], None] | None:
        """Return the job that lets counted labels go, None where there is nothing to do.

        Before a label's record may be forgotten, the mark at its prediction has to be durable:
        else it would be taken a second time after a power cut.
        """
        sync = self._sync
        if sync is None or not self._to_sync or self._syncing:
            return None
        self._mark_boundary()
        self._syncing = True

        def job() -> None:
            try:
                sync()
                self._synced = True
            except OSError:
                self._to_sync = True
                raise
            finally:
                self._syncing = False

        return job

    def close(self) -> bool:
        """Count everything; tell whether there was room for it."""
        if not self._count():
            return False
        if self._to_sync and self._sync is not None:
            with contextlib.suppress(OSError):  # a sick disk; the process itself ends well
                self._sync()
        self._spool.uncounted_from = 0
        return True

    def rebuild(self, boot: str, labels: Sequence[Entry]) -> bool:
        """Count the labels that a dead process left; False where there is no room.

        Args:
            boot: its.
            labels: with their seqs, ascending; none of them in an `Errors` of another process.
        """
        for _, label in labels:
            self._seen(label)
        if labels and self._sync is not None:
            with contextlib.suppress(OSError):  # its records are about to go
                self._sync()
        done = self._rebuilt.get(boot, 0)
        return not self._write(boot, [entry for entry in labels if entry[0] > done])

    def _mark_boundary(self) -> None:
        self._to_sync = False
        self._boundary = self._pending[0][0] if self._pending else self._spool.next_seq

    def _count(self) -> bool:
        before = len(self._pending)
        self._pending = self._write(self._spool.boot, self._pending)
        self._to_sync |= len(self._pending) < before
        return not self._pending

    def _write(self, boot: str, labels: list[Entry]) -> list[Entry]:
        """Write labels as sketches, some to a record; return those without room."""
        parts = [labels] if labels else []
        while parts:
            part = parts.pop(0)
            payload = to_msgpack(count_labels(boot, part))
            if len(payload) > MAX_ERRORS_BYTES and len(part) > 1:
                half = len(part) // 2
                parts[:0] = [part[:half], part[half:]]
            elif self._spool.append(payload) == NO_ROOM:
                return [entry for rest in (part, *parts) for entry in rest]
            else:
                self._rebuilt[boot] = part[-1][0]
        return []


def count_labels(boot: str, labels: Sequence[Entry]) -> Errors:
    """Return the sketches of labels, by release and window of prediction.

    Args:
        boot: of their seqs.
        labels: with seqs, ascending; at least one.
    """
    grouped: dict[tuple[Any, ...], list[Label]] = {}
    for _, label in labels:
        how = (label.classes, label.span, label.scale)  # an agent may count otherwise than before
        grouped.setdefault((label.context, label.start, label.length_s, how), []).append(label)
    contexts = {context: None for context, *_ in grouped}
    position = {context: place for place, context in enumerate(contexts)}
    sketches = [
        _sketch(position[context], start, length_s, group)
        for (context, start, length_s, _), group in grouped.items()
    ]
    return Errors(list(contexts), sketches, {boot: (labels[0][0], labels[-1][0])})


def _sketch(ctx: int, start: float, length_s: float, labels: Sequence[Label]) -> ErrorSketch:
    first = labels[0]
    if not first.classes:
        return _value_sketch(ctx, start, length_s, labels)
    cells: dict[tuple[int, int], int] = {}
    if first.classes <= MAX_CLASSES and all(0 <= x.predicted < MAX_CLASSES for x in labels):
        for label in labels:
            pair = label.predicted, label.label
            cells[pair] = cells.get(pair, 0) + 1
    return ErrorSketch(
        ctx,
        start,
        length_s,
        n=len(labels),
        correct=sum(label.predicted == label.label for label in labels),
        confusion=[value for pair, n in sorted(cells.items()) for value in (*pair, n)],
    )


def _value_sketch(ctx: int, start: float, length_s: float, labels: Sequence[Label]) -> ErrorSketch:
    span, scale = labels[0].span, labels[0].scale
    errors = [label.value - label.truth for label in labels]
    errors = [e if abs(e) * scale < MAX_FIXED else e * float("inf") for e in errors]
    fixed = [round(e * scale) for e in errors if e - e == 0.0]
    return ErrorSketch(
        ctx,
        start,
        length_s,
        n=len(labels),
        errors=count_numeric(errors, error_spec(span, scale)),
        abs_sum=int_to_big(sum(map(abs, fixed))),
        sq_sum=int_to_big(sum(e * e for e in fixed)),
        span=span,
        scale=scale,
    )
