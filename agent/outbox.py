"""What of a device's records is sent next, sent again, and forgotten.

Records lie in boots, numbered from 1 without a gap. Per boot the fleet acknowledges every
number up to one, so a cursor per boot says it all:

    forgotten ... kept_from ... acked | under way ... | next ... upto (on disk, durable)

The rules, in order:

1. Only `acked` lets a record be forgotten; that a broker took it means nothing.
2. At most `credit` batches are under way, over all boots; 0 is a pause.
3. Numbers go out in order, older boots first.
4. What has no answer after a while goes out again, from the first number that is not
   acknowledged, and each time later than the last. So it does after every connect.
5. Acknowledgements may be repeated, late and in any order: a cursor never sinks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Cursor", "Outbox", "Span", "may_forget"]

DEFAULT_CREDIT: Final = 8
MAX_CREDIT: Final = 64
RESEND_S: Final = 20.0
MAX_RESEND_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers `first` to `last` of a boot, handed to the broker at `at` (monotonic seconds)."""

    boot: str
    first: int
    last: int
    at: float


@dataclass(slots=True)
class Cursor:
    """How far one boot has come."""

    kept_from: int = 1  # every number below is gone on this device
    acked: int = 0
    upto: int = 0  # last number that is on disk
    next: int = 1  # first number that is neither acknowledged nor under way

    @property
    def waiting(self) -> int:
        """How many records the fleet has not acknowledged."""
        return max(0, self.upto - max(self.acked, self.kept_from - 1))


class Outbox:
    """The cursors of every boot, and what is under way.

    Args:
        acked: cursors known from before, by boot.
        resend_s: how long an answer may take, at first.
    """

    def __init__(
        self, acked: Mapping[str, int] | None = None, *, resend_s: float = RESEND_S
    ) -> None:
        self.cursors: dict[str, Cursor] = {}
        self.credit = DEFAULT_CREDIT
        self._known = dict(acked or {})
        self._under_way: list[Span] = []
        self._resend_s = resend_s
        self._tries = 0

    @property
    def waiting(self) -> int:
        """How many records the fleet has not acknowledged."""
        return sum(cursor.waiting for cursor in self.cursors.values())

    @property
    def under_way(self) -> int:
        """How many batches have no answer yet."""
        return len(self._under_way)

    def found(self, boot: str, kept_from: int, upto: int) -> Cursor:
        """Note that the records of a boot from `kept_from` to `upto` are on disk.

        Boots are taken in the order in which they are first named: name the oldest first.
        """
        cursor = self.cursors.get(boot)
        if cursor is None:
            acked = self._known.pop(boot, 0)
            cursor = self.cursors[boot] = Cursor(acked=acked, next=acked + 1)
        cursor.kept_from = max(cursor.kept_from, kept_from)
        cursor.upto = max(cursor.upto, upto)
        cursor.next = max(cursor.next, cursor.kept_from)
        return cursor

    def next_send(self) -> tuple[str, int] | None:
        """Return boot and number of the first record to send now, or None."""
        if len(self._under_way) >= self.credit:
            return None
        for boot, cursor in self.cursors.items():
            if cursor.next <= cursor.upto:
                return boot, cursor.next
        return None

    def sent(self, boot: str, first: int, last: int, now: float) -> None:
        """Note that a batch was handed to the broker.

        Args:
            boot: of its records.
            first: their first number, as `next_send` gave it.
            last: their last number.
            now: monotonic seconds.
        """
        cursor = self.cursors[boot]
        if first != cursor.next or last < first:
            raise ValueError(f"expected numbers from {cursor.next}, got {first} to {last}")
        cursor.next = last + 1
        self._under_way.append(Span(boot, first, last, now))

    def acknowledged(self, upto: Mapping[str, int], credit: int) -> bool:
        """Take in an answer of the fleet; tell whether it moved a cursor.

        Args:
            upto: per boot, every number up to and including this one is stored.
            credit: how many batches may be under way from now on.
        """
        self.credit = max(0, min(credit, MAX_CREDIT))
        moved = False
        for boot, stored in upto.items():
            cursor = self.cursors.get(boot)
            if cursor is None or stored <= cursor.acked:
                continue
            # the fleet cannot have what was never written
            cursor.acked = min(stored, cursor.upto)
            cursor.next = max(cursor.next, cursor.acked + 1)
            moved = True
        if moved:
            self._tries = 0
            self._under_way = [
                span for span in self._under_way if span.last > self.cursors[span.boot].acked
            ]
        return moved

    def connected(self) -> None:
        """Begin again from the acknowledged numbers: a new connection knows nothing."""
        self._go_back({span.boot for span in self._under_way})

    def expire(self, now: float) -> bool:
        """Go back where an answer is overdue; tell whether one was.

        Args:
            now: monotonic seconds.
        """
        patience_s = min(self._resend_s * 2.0**self._tries, MAX_RESEND_S)
        late = {span.boot for span in self._under_way if now - span.at >= patience_s}
        if late:
            self._tries = min(self._tries + 1, 10)
            self._go_back(late)
        return bool(late)

    def forgotten(self, boot: str) -> None:
        """Note that nothing of a boot is left on disk."""
        self._under_way = [span for span in self._under_way if span.boot != boot]
        self.cursors.pop(boot, None)

    def _go_back(self, boots: set[str]) -> None:
        self._under_way = [span for span in self._under_way if span.boot not in boots]
        for boot in boots:
            cursor = self.cursors[boot]
            cursor.next = max(cursor.acked + 1, cursor.kept_from)


def may_forget(*, last: int, acked: int, settled: int, newest: bool, done: bool) -> bool:
    """Tell whether a segment may be removed: it is stored, counted, and written no more.

    Args:
        last: the last number in it.
        acked: the fleet has stored every number up to this one.
        settled: every prediction up to this one is in a window that was written.
        newest: whether it is the boot's last segment.
        done: whether the boot's writer has ended and all of it is counted.
    """
    return last <= acked and last <= settled and (done or not newest)
