"""Requests for predictions: read, run, recorded and answered.

The record is written first, then the reply leaves. A request may say within how many
microseconds it wants its answer (``parameters.timeout``); one that waited longer is answered
504 instead of being run. One that asks for it (``parameters.power_safe``) is answered once its
record is on the disk, as all that asked in the meantime are by the same sync.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent import oip
from agent.held import Holder
from agent.http import HttpError
from agent.http_types import Request, Response, error_response
from agent.inputs import Inputs
from agent.latency import Latencies
from agent.mirror import Mirror
from agent.observe import Observer
from agent.rows import Row
from agent.runner import Expired, Job, Runner
from agent.runtime import Model
from agent.serve_protocol import ServeSlot, SlotStats
from skerry.errors import UsageError

__all__ = ["Inference", "Served"]

JSON_LENGTH: Final = b"inference-header-content-length"
MAX_ROWS: Final = 4096  # of one request
_NO_ROOM: Final = (
    "there is no room to record the answer, so it cannot be power-safe; "
    "free disk or raise spool_max_bytes, or ask without power_safe"
)
_NOT_SAFE: Final = (
    "answered and recorded, but the disk refused to keep the record beyond a power cut; "
    "ask again with the same id, which counts it once"
)
Tensors = Mapping[str, NDArray[Any]]
Kept = Row | NDArray[np.float64]  # of one row, or of many as `RowReader.table` gives them


@dataclass(slots=True)
class Served:
    """One model in service, and what it did."""

    slot: ServeSlot
    model: Model
    ctx: int
    answered: int = 0
    repeated: int = 0
    errors: int = 0
    expired: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    mirror: Mirror | None = None
    holder: Holder | None = None  # where labels may come later

    def stats(self) -> SlotStats:
        """Return what control wants to know."""
        return SlotStats(
            self.answered,
            self.errors,
            self.latencies.quantile(0.5),
            self.latencies.quantile(0.99),
        )


class Inference:
    """Answers requests for predictions of the models in service.

    Args:
        models: in the order of the contexts.
        observer: records what was answered.
        before_look_up: called before an id is looked up (another process may have seen it).
        call: calls back in the loop's thread.
        workers: threads for each model that is too slow for the loop.
        max_wait_s: for requests that do not say how long they wait.
        inputs: reads raw inputs, where they are recorded.
        when_safe: calls back once what was recorded outlasts a power cut, or the disk refused.
    """

    def __init__(
        self,
        models: Sequence[Served],
        observer: Observer,
        *,
        before_look_up: Callable[[], None],
        call: Callable[[Callable[[], None]], None],
        workers: int,
        max_wait_s: float,
        inputs: Inputs,
        when_safe: Callable[[Callable[[bool], None]], None],
    ) -> None:
        self.models: Final = models
        self._observer = observer
        self._before_look_up = before_look_up
        self._max_wait_s = max_wait_s
        self._inputs = inputs
        self._when_safe = when_safe
        self._own_ids = secrets.token_hex(8)  # what names requests that have no name, and a number
        self._numbers = count()
        self.runners: Final = [
            Runner(
                served.model.run, served.model.pace, self._done_with(served), call, workers=workers
            )
            for served in models
        ]

    def __call__(self, served: Served, request: Request) -> Response | None:
        """Answer a request at once, or put it in line and answer it later."""
        try:
            job = self._read(served, request)
        except UsageError as error:
            raise HttpError(400, str(error)) from None
        runner = self.runners[served.ctx]
        connection = request.connection
        alone = connection is None or not connection.others_wait
        if not runner.inline or (runner.max_batch > 1 and not alone):
            runner.add(job)
            return None
        if job.deadline < perf_counter():
            return self._finish(served, job, Expired())
        try:
            outputs: Tensors | Exception = served.model.run(job.tensors)
        except Exception as error:  # whatever a model may do: it is the model's error
            outputs = error
        return self._in_time(job, self._finish(served, job, outputs))

    def flush(self) -> None:
        """Run what waits for the loop."""
        for runner in self.runners:
            if runner.inline:
                runner.flush()

    def longest_s(self) -> float:
        """Return for how long the oldest run in a thread has been under way."""
        return max((runner.longest_s() for runner in self.runners), default=0.0)

    def _read(self, served: Served, request: Request) -> Job:
        asked, raw = oip.decode_request(request.body, _json_length(request))
        tensors = oip.read_inputs(asked, raw, served.model.inputs)
        if served.model.manifest.needs:
            oip.check_texts(tensors)
        rows = max(map(len, tensors.values()))
        if rows > MAX_ROWS:
            raise UsageError(f"expected at most {MAX_ROWS} rows in a request, got {rows}")
        if asked.outputs:
            oip.check_wanted(asked, served.model.outputs)
        wait_s = self._max_wait_s
        timeout_us = asked.parameters.get("timeout")
        if timeout_us is not None:
            if not isinstance(timeout_us, int) or timeout_us < 0:
                raise UsageError(
                    f"expected a timeout in whole microseconds, got {str(timeout_us)[:40]!r}"
                )
            wait_s = min(wait_s, timeout_us / 1e6) if timeout_us else wait_s  # 0: none
        power_safe = asked.parameters.get("power_safe", False)
        if not isinstance(power_safe, bool):
            raise UsageError(f"expected power_safe true or false, got {str(power_safe)[:40]!r}")
        if power_safe and not self._observer.has_room:
            raise HttpError(503, _NO_ROOM)
        return Job(request, asked, tensors, rows, request.received + wait_s, power_safe)

    def _done_with(self, served: Served) -> Callable[[Job, Tensors | Exception], None]:
        def done(job: Job, result: Tensors | Exception) -> None:
            try:
                response = self._finish(served, job, result)
            except HttpError as error:
                response = error_response(error.status, str(error))
            else:
                if self._in_time(job, response) is None:
                    return
            job.request.reply(response)

        return done

    def _in_time(self, job: Job, response: Response) -> Response | None:
        """Return an answer, or None where it has to wait for the disk and is given later."""
        if not job.power_safe:
            return response

        def tell(safe: bool) -> None:
            job.request.reply(response if safe else error_response(503, _NOT_SAFE))

        self._when_safe(tell)
        return None

    def _finish(self, served: Served, job: Job, result: Tensors | Exception) -> Response:
        if isinstance(result, Expired):
            served.expired += 1
            raise HttpError(504, "the time in which the answer was wanted has passed; not run")
        kept = self._kept(served, job, result)
        assert not isinstance(result, Exception)
        asked, slot = job.asked, served.slot
        id = asked.id or f"{self._own_ids}{next(self._numbers):x}"
        said: dict[str, str | bool] = {"bundle": slot.bundle, "variant": slot.variant}
        if job.power_safe:
            said["power_safe"] = True
        answer = oip.Answer(slot.model, slot.model_version, id, said)
        parts, json_length = oip.encode_answer(answer, asked, result, served.model.outputs)
        self._keep(served, job, id, kept)
        if json_length is None:
            return Response(200, parts)
        head = {"Inference-Header-Content-Length": str(json_length)}
        return Response(200, parts, "application/octet-stream", head)

    def _kept(self, served: Served, job: Job, result: Tensors | Exception) -> Kept:
        """Return what is kept of an answer; what the model failed to give is counted and told."""
        try:
            if isinstance(result, Exception):
                raise result
            if job.rows > 1:
                return served.model.table(job.tensors, result)
            (row,) = served.model.rows(job.tensors, result)
            return row
        except Exception as error:
            served.errors += 1
            self._observer.error(served.ctx, time.time())
            raise HttpError(500, f"the model failed: {str(error)[:300]}") from None

    def _keep(self, served: Served, job: Job, id: str, kept: Kept) -> None:
        """Hold, record, count and show an answer that is about to leave."""
        observer = self._observer
        if job.asked.id:
            self._before_look_up()
        take = self._inputs.of(served.ctx, job.tensors, job.rows)
        unrecorded = observer.unrecorded
        at = time.time()
        took_us = (perf_counter() - job.request.received) * 1e6
        latency_us = int(took_us)
        served.latencies.add(took_us)
        if served.holder is not None:  # first: what is recorded is held, in the same window
            if isinstance(kept, Row):
                held = [(kept.prediction, kept.confidence)]
            else:
                held = kept[:, :2].tolist()
            served.holder.hold(id, at, observer.window_s, held, observer.recent)
        if isinstance(kept, Row):
            new = int(
                observer.record(
                    served.ctx,
                    id,
                    at=at,
                    prediction=kept.prediction,
                    confidence=kept.confidence,
                    latency_us=latency_us,
                    features=kept.features,
                    take=take,
                )
            )
        else:
            new = observer.record_table(
                served.ctx, id, at=at, latency_us=latency_us, table=kept, take=take
            )
        served.answered += new
        served.repeated += job.rows - new
        if served.mirror is not None:
            if isinstance(kept, Row):
                classes, confidences = [kept.prediction], [kept.confidence]
            else:
                classes, confidences = kept[:, 0].astype(int).tolist(), kept[:, 1].tolist()
            served.mirror.offer(job.tensors, classes, confidences)
        if job.power_safe and observer.unrecorded > unrecorded:
            raise HttpError(503, _NO_ROOM)


def _json_length(request: Request) -> int | None:
    text = request.headers.get(JSON_LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 12:
        raise UsageError(
            f"expected Inference-Header-Content-Length to be a number, got {text[:40]!r}"
        )
    return int(text)
