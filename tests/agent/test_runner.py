"""One model's line: alone, together, in threads, in time."""

import queue
import threading
import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.http_types import Request
from agent.measure import Pace, example, measure_pace
from agent.oip import InferRequest
from agent.runner import Expired, Job, Runner
from skerry.manifest import TensorSpec

Tensors = dict[str, NDArray[Any]]
SLOW = 10_000.0
SPECS = {"x": TensorSpec("x", "FP32", [-1, 2], range=(-3.0, 5.0))}
OUT = {"y": TensorSpec("y", "FP32", [-1, 2])}


def job(*values: float, width: int = 1, wait_s: float = 60.0) -> Job:
    rows = np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
    request = Request("POST", b"/", {}, b"", perf_counter())
    return Job(request, InferRequest([]), {"x": rows}, len(rows), perf_counter() + wait_s)


class Line:
    """A runner of a model that doubles, fails on a negative number, and notes what it ran."""

    def __init__(self, pace: Pace, *, workers: int = 1) -> None:
        self.ran: list[list[float]] = []
        self.done: list[tuple[Job, Any]] = []
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.gate = threading.Event()
        self.gate.set()
        self.runner = Runner(self.run, pace, self.take, self.calls.put, workers=workers)

    def run(self, tensors: Tensors) -> Tensors:
        self.gate.wait(5)
        self.ran.append(tensors["x"][:, 0].tolist())
        if (tensors["x"] < 0).any():
            raise ValueError("negative")
        return {"y": tensors["x"] * 2}

    def take(self, job: Job, result: Any) -> None:
        self.done.append((job, result))

    def results(self) -> list[Any]:
        return [r["y"][:, 0].tolist() if isinstance(r, dict) else r for _, r in self.done]


def test_what_waits_at_the_same_time_is_one_run_and_each_gets_its_rows() -> None:
    line = Line(Pace(5.0, max_batch=8))
    for values in ([1.0], [2.0, 3.0], [4.0]):
        line.runner.add(job(*values))
    line.runner.flush()
    assert line.ran == [[1.0, 2.0, 3.0, 4.0]]
    assert line.results() == [[2.0], [4.0, 6.0], [8.0]]
    assert (line.runner.batches, line.runner.batched) == (1, 3)


def test_a_batch_is_bounded_and_of_one_shape() -> None:
    line = Line(Pace(5.0, max_batch=2))
    for one in (job(1.0), job(2.0), job(3.0), job(4.0, width=3), job(5.0, 6.0, 7.0)):
        line.runner.add(one)
    line.runner.flush()
    assert line.ran == [[1.0, 2.0], [3.0], [4.0], [5.0, 6.0, 7.0]]


def test_without_a_gain_each_runs_alone() -> None:
    line = Line(Pace(5.0))
    line.runner.add(job(1.0))
    line.runner.add(job(2.0))
    line.runner.flush()
    assert line.ran == [[1.0], [2.0]]


def test_a_bad_request_fails_alone() -> None:
    line = Line(Pace(5.0, max_batch=8))
    for value in (1.0, -1.0, 3.0):
        line.runner.add(job(value))
    line.runner.flush()
    good, bad, also_good = line.results()
    assert (good, also_good) == ([2.0], [6.0])
    assert isinstance(bad, ValueError)


def test_what_waited_too_long_is_not_run() -> None:
    line = Line(Pace(5.0, max_batch=8))
    line.runner.add(job(1.0, wait_s=-1.0))
    line.runner.add(job(2.0))
    line.runner.flush()
    assert line.ran == [[2.0]]
    assert sorted(type(r).__name__ for r in line.results()) == ["Expired", "list"]
    assert any(isinstance(r, Expired) for r in line.results())


def test_a_slow_model_runs_in_threads_and_answers_in_the_loop() -> None:
    line = Line(Pace(SLOW), workers=2)
    line.gate.clear()
    for value in (1.0, 2.0):
        line.runner.add(job(value))
    line.runner.flush()  # the loop runs nothing of it
    assert line.done == []
    end = time.monotonic() + 5
    while line.runner.longest_s() < 0.05 and time.monotonic() < end:
        time.sleep(0.01)
    assert line.runner.longest_s() >= 0.05  # whoever watches sees a run that hangs
    line.gate.set()
    for _ in range(2):
        line.calls.get(timeout=5)()
    assert sorted(line.results()) == [[2.0], [4.0]]
    assert line.runner.longest_s() == 0.0


def test_examples_lie_within_the_range_of_the_manifest() -> None:
    many = example(SPECS, 400, seed=1)["x"]
    assert many.shape == (400, 2)
    assert many.dtype == np.float32
    assert -3.0 <= many.min() < -2.5
    assert 4.5 < many.max() <= 5.0
    assert not example(SPECS, 1)["x"].any()


def busy(us: float) -> None:
    end = perf_counter() + us / 1e6
    while perf_counter() < end:
        pass


def by_call(x: Tensors) -> Tensors:
    busy(500)
    return {"y": x["x"] * 2}


def by_row(x: Tensors) -> Tensors:
    busy(300 * len(x["x"]))
    return {"y": x["x"] * 2}


def mixed(x: Tensors) -> Tensors:
    busy(500)
    return {"y": x["x"] / np.abs(x["x"]).max()}  # as dynamic int8: the scale is the batch's


@pytest.mark.parametrize(
    ("run", "batched"), [(by_call, True), (by_row, False), (mixed, False)], ids=lambda v: str(v)
)
def test_batches_are_for_models_that_gain_and_keep_rows_apart(
    run: Callable[[Tensors], Tensors], batched: bool
) -> None:
    with np.errstate(all="ignore"):
        pace = measure_pace(run, SPECS, OUT)
    assert pace.run_us > 250
    assert (pace.max_batch > 1) is batched


def test_a_fixed_batch_axis_is_never_batched() -> None:
    fixed = {"x": TensorSpec("x", "FP32", [1, 2])}
    assert measure_pace(by_call, fixed, OUT).max_batch == 1
