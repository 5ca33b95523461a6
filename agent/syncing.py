"""The disk is waited for on one thread; answers that must outlast a power cut wait with it."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

from agent.loop import Loop

__all__ = ["Syncer"]

_LOG: Final = logging.getLogger("agent.serve")
Job = Callable[[], None]
WhenSafe = Callable[[bool], None]


class Syncer:
    """Makes what was recorded power-safe, one job at a time.

    Args:
        loop: in whose thread callers are called back.
        take: returns the job that makes everything recorded so far power-safe.
    """

    def __init__(self, loop: Loop, take: Callable[[], Job]) -> None:
        self._loop = loop
        self._take = take
        self._waiting: list[WhenSafe] = []
        self._jobs: queue.SimpleQueue[tuple[Job, list[WhenSafe]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()
        self.busy = False
        self.failures = 0

    def do(self, job: Job) -> None:
        """Do a job; only while not `busy`."""
        self._put(job, [])

    def when_safe(self, told: WhenSafe) -> None:
        """Call back once everything recorded so far is power-safe, or the disk has refused.

        Callers that come while the disk is busy wait for the next job, all together.
        """
        self._waiting.append(told)
        self._begin()

    def close(self) -> None:
        """Wait for what is under way."""
        self._jobs.put(None)
        self._thread.join()

    def _begin(self) -> None:
        if self._waiting and not self.busy:
            told, self._waiting = self._waiting, []
            self._put(self._take(), told)

    def _put(self, job: Job, told: list[WhenSafe]) -> None:
        self.busy = True
        self._jobs.put((job, told))

    def _run(self) -> None:
        while (following := self._jobs.get()) is not None:
            job, told = following
            safe = True
            try:
                job()
            except OSError as error:  # a sick disk: what is answered is still kill-safe
                safe = False
                self.failures += 1
                _LOG.error("records are not power-safe, the disk refused to sync: %s", error)
            self.busy = False
            if told or self._waiting:
                self._loop.call(lambda told=told, safe=safe: self._end(told, safe=safe))  # type: ignore[misc]

    def _end(self, told: list[WhenSafe], *, safe: bool) -> None:
        for tell in told:
            tell(safe)
        self._begin()
