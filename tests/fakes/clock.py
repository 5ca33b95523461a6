"""Virtual time: a queue of what happens when, and a clock that jumps from one to the next."""

import heapq
from collections.abc import Callable
from typing import Final

EPOCH: Final = 1_700_000_000.0  # Unix seconds at which virtual time begins


class Clock:
    """Runs callables in the order of their times; equal times in the order of their asking."""

    def __init__(self) -> None:
        self.now = EPOCH
        self._queue: list[tuple[float, int, str, Callable[[], None]]] = []
        self._asked = 0

    def after(self, seconds: float, label: str, call: Callable[[], None]) -> None:
        """Have something happen so many seconds from now."""
        self._asked += 1
        heapq.heappush(self._queue, (self.now + max(0.0, seconds), self._asked, label, call))

    def next(self) -> tuple[str, Callable[[], None]] | None:
        """Go to the next moment at which something happens; None if nothing ever will."""
        if not self._queue:
            return None
        at, _, label, call = heapq.heappop(self._queue)
        self.now = max(self.now, at)
        return label, call

    def __len__(self) -> int:
        return len(self._queue)
