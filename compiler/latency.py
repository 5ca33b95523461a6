"""How fast a variant is against fp32, so that a busy machine cannot decide it.

CPU time of this thread, not wall time; one thread, no spinning; both in turn within
every round, the order changing; the ratio within each round, then the median of the
rounds with a bootstrap interval. Neighbours, clock changes and caches hit both alike.
The verdict compares the interval, not the median, with the limit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compiler.recipe import Gate

__all__ = ["Latency", "Verdict", "judge", "measure"]

ROUNDS: Final = 40
MIN_ROUNDS: Final = 12
MAX_RUNS: Final = 100  # of each, per round
ROUND_S: Final = 0.004  # CPU time to fill with a round: far above the clock's step
RESAMPLES: Final = 2000

# what was measured, and cannot be computed again: it is kept in the lock
Verdict = Literal["faster", "slower", "undecided", "too_large", "too_slow"]


@dataclass(frozen=True, slots=True)
class Latency:
    """CPU time of one row, as a ratio to fp32.

    Attributes:
        ratio: median over rounds.
        low: lower end of its 95 % interval.
        high: upper end.
        median_us: of the variant.
        reference_us: of fp32.
        rounds: how many.
        runs: of each model, per round.
    """

    ratio: float
    low: float
    high: float
    median_us: float
    reference_us: float
    rounds: int
    runs: int


def measure(
    variant: ort.InferenceSession,
    reference: ort.InferenceSession,
    feed: dict[str, NDArray[Any]],
    *,
    budget_s: float = 1.2,
) -> Latency:
    """Time a variant against fp32 on one row.

    Args:
        variant: its session, one thread.
        reference: fp32's session, one thread.
        feed: one row.
        budget_s: wall time to spend; a slow model gets fewer rounds, at least 12.
    """
    for _ in range(3):
        variant.run(None, feed)
        reference.run(None, feed)
    once_s = _cpu_s(variant, feed, 1) + _cpu_s(reference, feed, 1)
    runs = max(1, min(MAX_RUNS, round(ROUND_S / max(once_s, 1e-6))))
    times: list[tuple[float, float]] = []
    deadline = time.monotonic() + budget_s
    for index in range(ROUNDS):
        if index >= MIN_ROUNDS and time.monotonic() > deadline:
            break
        if index % 2:
            mine = _cpu_s(variant, feed, runs)
            theirs = _cpu_s(reference, feed, runs)
        else:
            theirs = _cpu_s(reference, feed, runs)
            mine = _cpu_s(variant, feed, runs)
        times.append((mine / runs, theirs / runs))
    array = np.asarray(times)
    ratio, low, high = ratio_interval(array[:, 0] / array[:, 1])
    median = np.median(array, axis=0) * 1e6
    return Latency(ratio, low, high, float(median[0]), float(median[1]), len(times), runs)


def ratio_interval(ratios: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the median of per-round ratios and its 95 % bootstrap interval.

    Args:
        ratios: float [rounds].
    """
    rng = np.random.default_rng(0)  # the same rounds have the same interval
    samples = rng.choice(ratios, size=(RESAMPLES, ratios.size))
    low, high = np.quantile(np.median(samples, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def judge(latency: Latency, gate: Gate) -> Verdict:
    """Return whether a variant is proven within the gate's limits, proven beyond, or neither.

    Args:
        latency: as measured.
        gate: the recipe's.
    """
    if gate.max_latency_us is not None and latency.median_us > gate.max_latency_us:
        return "too_slow"
    limit = gate.latency_ratio
    if latency.high <= limit:
        return "faster"
    return "slower" if latency.low > limit else "undecided"


def _cpu_s(session: ort.InferenceSession, feed: dict[str, NDArray[Any]], runs: int) -> float:
    run: Callable[..., Any] = session.run
    start = time.thread_time_ns()
    for _ in range(runs):
        run(None, feed)
    return (time.thread_time_ns() - start) / 1e9
