"""Runs one model's requests: in the event loop, or in threads, alone or several as one batch.

A hand-over to a thread costs more than a small model's run, so that a model runs in the loop
where it is fast (`INLINE_US`). Requests that wait at the same time are run as one where that
was measured to pay when the model was loaded (`agent.measure`); none waits for another to come.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.http_types import Request
from agent.measure import Pace
from agent.oip import InferRequest

__all__ = ["INLINE_US", "Expired", "Job", "Runner"]

INLINE_US: Final = 2000.0
Tensors = Mapping[str, NDArray[Any]]
Run = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
Done = Callable[["Job", "Tensors | Exception"], None]


class Expired(Exception):  # noqa: N818 - a past fact
    """The time in which a request was to be answered passed while it waited."""


@dataclass(slots=True, eq=False)
class Job:
    """One request that is to be run."""

    request: Request
    asked: InferRequest
    tensors: dict[str, NDArray[Any]]
    rows: int
    deadline: float  # on perf_counter's clock
    power_safe: bool = False  # it is answered once its record outlasts a power cut

    def shape(self) -> tuple[tuple[int, ...], ...]:
        """Return what must be equal for two jobs to be one batch."""
        return tuple(tensor.shape[1:] for tensor in self.tensors.values())


class Runner:
    """The line before one model.

    Args:
        run: the model.
        pace: as measured when it was loaded.
        done: called in the loop's thread with each job and its outputs, or what was raised.
        call: calls back in the loop's thread.
        workers: threads that run the model, where it does not run in the loop.
    """

    def __init__(
        self,
        run: Run,
        pace: Pace,
        done: Done,
        call: Callable[[Callable[[], None]], None],
        *,
        workers: int,
    ) -> None:
        self._run = run
        self._done = done
        self._call = call
        self.inline: Final = pace.run_us < INLINE_US
        self.max_batch: Final = pace.max_batch
        self._jobs: deque[Job] = deque()
        self._some = threading.Condition()
        self._began: dict[int, float] = {}
        self.batches = self.batched = 0  # runs of more than one request, and their requests
        for number in range(0 if self.inline else workers):
            threading.Thread(
                target=self._work, args=(number,), name=f"run-{number}", daemon=True
            ).start()

    def add(self, job: Job) -> None:
        """Take a job; it is run by `flush`, or by the next free thread."""
        if self.inline:
            self._jobs.append(job)
        else:
            with self._some:
                self._jobs.append(job)
                self._some.notify()

    def flush(self) -> None:
        """Run what waits for the loop."""
        while self.inline and self._jobs:
            jobs = self._next()
            for job, result in self._results(jobs):
                self._done(job, result)

    def longest_s(self) -> float:
        """Return for how long the oldest run in a thread has been under way."""
        now = perf_counter()
        return max((now - began for began in list(self._began.values())), default=0.0)

    def _next(self) -> list[Job]:
        jobs = [self._jobs.popleft()]
        rows, shape = jobs[0].rows, jobs[0].shape()
        while self._jobs and rows < self.max_batch:
            other = self._jobs[0]
            if rows + other.rows > self.max_batch or other.shape() != shape:
                break
            jobs.append(self._jobs.popleft())
            rows += other.rows
        return jobs

    def _results(self, jobs: Sequence[Job]) -> list[tuple[Job, Tensors | Exception]]:
        now = perf_counter()
        alive = [job for job in jobs if job.deadline >= now]
        late: list[tuple[Job, Tensors | Exception]] = [
            (job, Expired()) for job in jobs if job.deadline < now
        ]
        if len(alive) > 1:
            with contextlib.suppress(Exception):  # one of them is bad: it shall fail alone
                return late + self._batch(alive)
        return late + [(job, self._alone(job)) for job in alive]

    def _alone(self, job: Job) -> Tensors | Exception:
        try:
            return self._run(job.tensors)
        except Exception as error:  # whatever a model may do: it is the model's error
            return error

    def _batch(self, jobs: Sequence[Job]) -> list[tuple[Job, Tensors | Exception]]:
        tensors = {
            name: np.concatenate([job.tensors[name] for job in jobs]) for name in jobs[0].tensors
        }
        outputs = self._run(tensors)
        self.batches += 1
        self.batched += len(jobs)
        results: list[tuple[Job, Tensors | Exception]] = []
        first = 0
        for job in jobs:
            last = first + job.rows
            results.append((job, {name: value[first:last] for name, value in outputs.items()}))
            first = last
        return results

    def _work(self, number: int) -> None:
        while True:
            with self._some:
                while not self._jobs:
                    self._some.wait()
                jobs = self._next()
            self._began[number] = perf_counter()
            results = self._results(jobs)
            del self._began[number]
            self._call(lambda results=results: self._deliver(results))  # type: ignore[misc]

    def _deliver(self, results: Sequence[tuple[Job, Tensors | Exception]]) -> None:
        for job, result in results:
            self._done(job, result)
