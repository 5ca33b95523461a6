"""Latencies: quantiles within the width of a bucket."""

import random

import pytest

from agent.latency import Latencies


def test_without_any_there_is_no_quantile() -> None:
    assert Latencies().quantile(0.5) is None


@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_right_within_five_percent(q: float) -> None:
    rng = random.Random(7)
    values = sorted(rng.lognormvariate(6, 1) for _ in range(5000))
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    assert latencies.n == 5000
    assert latencies.sum_us == pytest.approx(sum(values))
    assert latencies.quantile(q) == pytest.approx(values[int(q * 5000) - 1], rel=0.05)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e12, -1.0])
def test_no_value_is_out_of_range(value: float) -> None:
    latencies = Latencies()
    latencies.add(value)
    assert latencies.quantile(0.5) is not None
