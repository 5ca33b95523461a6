"""A variant is compared sample by sample, and its drop has an honest interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.evaluate import compare, drop_interval, samples_needed, sqnr_db
from compiler.recipe import Metric
from skerry.errors import RefusedError

ACCURACY = Metric("y")


def one_hot(classes: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[classes]


def test_only_samples_on_which_one_of_the_two_is_right_count_as_a_drop() -> None:
    labels = np.array([0, 1, 2, 0])
    quality = compare(ACCURACY, one_hot([0, 1, 0, 1]), one_hot([0, 0, 2, 0]), labels)
    assert quality.value == 0.5
    assert quality.drop == 0.25  # fp32 has three right, this one two
    assert quality.agreement == 0.25
    assert quality.drop_low < 0.25 < quality.drop_high


def test_two_that_never_differ_still_have_an_interval() -> None:
    low, high = drop_interval(0, 0, 300)
    assert low == -high
    assert 0.004 < high < 0.01


@given(st.integers(0, 50), st.integers(0, 50), st.integers(100, 1000))
def test_the_interval_holds_the_drop_and_turns_with_the_sides(a: int, b: int, n: int) -> None:
    low, high = drop_interval(a, b, n)
    assert -1 <= low <= (a - b) / n <= high <= 1
    assert drop_interval(b, a, n) == pytest.approx((-high, -low))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    cells = rng.multinomial(300, [0.05, 0.02, 0.93], size=2000)
    covered = [low <= 0.03 <= high for low, high in (drop_interval(a, b, 300) for a, b, _ in cells)]
    assert 0.93 < np.mean(covered) < 0.98


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    mae, covered = Metric("y", name="mae"), []
    for _ in range(120):
        truth = rng.normal(size=200)
        fp32 = truth + rng.normal(0, 0.1, 200)
        other = fp32 + rng.choice([-1, 1], 200) * 0.0 + rng.normal(0.0, 0.1, 200)
        quality = compare(mae, other[:, None], fp32[:, None], truth)
        expected = np.sqrt(2 / np.pi) * (np.sqrt(0.02) - 0.1)
        covered.append(quality.drop_low <= expected <= quality.drop_high)
    assert 0.88 < np.mean(covered) < 0.99


def test_a_drop_is_worse_whichever_way_a_metric_points() -> None:
    labels, fp32 = np.zeros(50), np.full((50, 1), 0.1)
    for name in ("mae", "rmse"):
        worse = compare(Metric("y", name=name), fp32 + 0.2, fp32, labels)
        assert worse.drop == pytest.approx(0.2)
        assert worse.drop_low == pytest.approx(0.2)
        assert compare(Metric("y", name=name), fp32 * 0, fp32, labels).drop == pytest.approx(-0.1)


def test_groups_are_compared_each_by_itself() -> None:
    labels = np.array([0, 1] * 20)
    output = one_hot([0, 0] * 20)  # every second is wrong
    groups = np.array(["a", "b"] * 20)
    quality = compare(ACCURACY, output, one_hot([0, 1] * 20), labels, slices={"side": groups})
    assert [(s.group, s.n, s.value, s.drop) for s in quality.slices] == [
        ("a", 20, 1.0, 0.0), ("b", 20, 0.0, 1.0),
    ]  # fmt: skip


def test_noise_is_told_in_decibels() -> None:
    signal = np.ones((10, 4), np.float32)
    assert sqnr_db(signal + 0.1, signal) == pytest.approx(20.0, abs=1e-3)
    assert sqnr_db(signal, signal) == 120.0
    assert sqnr_db(signal, signal * 0) is None


def test_the_samples_needed_shrink_the_interval_to_the_limit() -> None:
    labels = np.zeros(100, int)
    quality = compare(ACCURACY, one_hot([0] * 100), one_hot([0] * 100), labels)
    needed = samples_needed(quality, 0.01)
    assert needed is not None
    assert drop_interval(0, 0, needed)[1] <= 0.01
    assert samples_needed(quality, 0.0) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_refused(bad: float) -> None:
    output = one_hot([0, 1])
    output[1, 2] = bad
    with pytest.raises(RefusedError, match="NaN or infinity"):
        compare(ACCURACY, output, one_hot([0, 1]), np.array([0, 1]))
