"""A verdict on speed is proven, or it is undecided."""

import numpy as np
import pytest

from compiler.latency import MIN_ROUNDS, Latency, Verdict, judge, measure, ratio_interval
from compiler.recipe import Gate
from compiler.runtime import open_session
from tests.fakes.models import Task, linear

EVEN = Gate(max_latency_ratio=1.0)


def measured(low: float, ratio: float, high: float) -> Latency:
    return Latency(ratio, low, high, 10.0, 10.0, rounds=40, runs=10)


@pytest.mark.parametrize(
    ("latency", "verdict"),
    [
        (measured(0.5, 0.6, 0.7), "faster"),
        (measured(0.9, 0.93, 0.95), "faster"),
        (measured(0.9, 0.93, 0.96), "undecided"),
        (measured(0.94, 1.0, 1.1), "undecided"),
        (measured(0.96, 1.0, 1.1), "slower"),
        (measured(1.3, 1.4, 1.5), "slower"),
    ],
)
def test_the_interval_decides_and_not_the_median(latency: Latency, verdict: Verdict) -> None:
    assert judge(latency, Gate()) == verdict


def test_an_absolute_limit_is_a_limit_too() -> None:
    fast = measured(0.5, 0.6, 0.7)
    assert judge(fast, Gate(max_latency_us=9.0)) == "too_slow"
    assert judge(fast, Gate(max_latency_us=10.0)) == "faster"


def test_where_bytes_were_asked_for_it_need_not_be_faster() -> None:
    assert judge(measured(0.98, 1.0, 1.04), Gate(max_size_ratio=0.5)) == "faster"
    assert judge(measured(1.06, 1.1, 1.2), Gate(max_size_ratio=0.5)) == "slower"


def test_few_and_scattered_rounds_have_a_wide_interval() -> None:
    rng = np.random.default_rng(2)
    calm = ratio_interval(rng.normal(0.8, 0.01, 40))
    noisy = ratio_interval(rng.normal(0.8, 0.30, 12))
    assert calm[2] - calm[1] < 0.02 < noisy[2] - noisy[1]


def test_one_wild_round_does_not_move_the_median() -> None:
    ratios = np.full(40, 0.8)
    ratios[7] = 100.0
    assert ratio_interval(ratios) == (0.8, 0.8, 0.8)


def test_the_same_rounds_have_the_same_interval() -> None:
    ratios = np.random.default_rng(3).normal(1, 0.1, 40)
    assert ratio_interval(ratios) == ratio_interval(ratios)


def test_a_model_against_itself_is_about_as_fast(shapes_task: Task) -> None:
    session = open_session(shapes_task.model.SerializeToString())
    feed = {"image": shapes_task.sets["evaluation"][0][:1]}
    latency = measure(session, session, feed, budget_s=0.3)
    assert latency.rounds >= MIN_ROUNDS
    assert 0.7 < latency.ratio < 1.4


def test_a_much_larger_model_is_proven_slower() -> None:
    small, large = (open_session(linear(np.ones((4, n))).SerializeToString()) for n in (2, 200_000))
    feed = {"x": np.ones((1, 4), np.float32)}
    assert judge(measure(large, small, feed, budget_s=0.3), EVEN) == "slower"
    assert judge(measure(small, large, feed, budget_s=0.3), EVEN) == "faster"
