"""Accuracy is compared row by row, and the drop has an honest interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.evaluate import compare, drop_interval
from skerry.errors import RefusedError, UsageError


def one_hot(classes: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[classes]


def test_only_rows_on_which_one_of_the_two_is_right_count_as_a_drop() -> None:
    labels = np.array([0, 1, 2, 0])
    quality = compare(one_hot([0, 1, 0, 1]), one_hot([0, 0, 2, 0]), labels)
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


def test_a_label_without_a_class_is_named() -> None:
    with pytest.raises(UsageError, match="expected labels of 0 to 2"):
        compare(one_hot([0]), one_hot([0]), np.array([3]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_refused(bad: float) -> None:
    output = one_hot([0, 1])
    output[1, 2] = bad
    with pytest.raises(RefusedError, match="NaN or infinity"):
        compare(output, one_hot([0, 1]), np.array([0, 1]))
