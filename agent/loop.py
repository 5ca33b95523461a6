"""Waits for sockets, for moments and for other threads: the event loop of the serve process.

One request to a small model takes less time than asyncio's own work around it
(`docs/decisions/0030-serve-waits-by-itself.md`), so serve waits by itself: level-triggered
epoll, a few timers, and calls from other threads.
"""

import contextlib
import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final

__all__ = ["READ", "WRITE", "Loop"]

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
MAX_EVENTS: Final = 256
OnReady = Callable[[int], None]


class Loop:
    """Calls back; everything but `call` belongs to the thread that runs it."""

    def __init__(self) -> None:
        self._epoll: Final = select.epoll()
        self._handlers: Final[dict[int, OnReady]] = {}
        self._timers: Final[list[tuple[float, int, Callable[[], None]]]] = []
        self._order: Final = count()
        self._calls: Final[deque[Callable[[], None]]] = deque()
        self._running = True
        self._work: Callable[[], bool] = _nothing
        self._wake: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, self._on_wake)

    @staticmethod
    def time() -> float:
        """Return the clock of timers and deadlines, seconds."""
        return time.monotonic()

    def watch(self, fd: int, on_ready: OnReady, events: int = READ) -> None:
        """Call `on_ready` with the events whenever a descriptor is ready.

        Args:
            fd: not watched yet.
            on_ready: takes a bit mask of `READ`, `WRITE` and what epoll adds for errors.
            events: to wait for.
        """
        self._handlers[fd] = on_ready
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a watched descriptor; for none but errors by 0."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no longer; to be called before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once, after so many seconds."""
        heapq.heappush(self._timers, (self.time() + seconds, next(self._order), callback))

    def call(self, callback: Callable[[], None]) -> None:
        """Call back from the loop's own thread soon; from any thread or signal handler."""
        self._calls.append(callback)
        os.eventfd_write(self._wake, 1)

    def set_work(self, work: Callable[[], bool]) -> None:
        """Set what is done after each look at the descriptors; it returns whether more waits."""
        self._work = work

    def stop(self) -> None:
        """Let `run` return."""
        self._running = False

    def run(self) -> None:
        """Wait and call back until `stop`."""
        poll, handlers, timers = self._epoll.poll, self._handlers, self._timers
        more = False
        while self._running:
            wait = 0.0 if more else -1.0
            if timers and not more:
                wait = max(0.0, timers[0][0] - self.time())
            for fd, events in poll(wait, MAX_EVENTS):
                handler = handlers.get(fd)  # gone where an earlier one of these closed it
                if handler is not None:
                    handler(events)
            if timers and timers[0][0] <= self.time():
                heapq.heappop(timers)[2]()
            more = self._work()

    def close(self) -> None:
        """Give the descriptors back."""
        self._epoll.close()
        os.close(self._wake)

    def _on_wake(self, _: int) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._calls)):
            self._calls.popleft()()


def _nothing() -> bool:
    return False
