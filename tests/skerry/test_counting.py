"""Sums of a sketch are whole numbers, exact however large."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.counting import count_numeric
from skerry.sketch import NumericSpec, big_to_int


def by_hand(values: np.ndarray, spec: NumericSpec) -> tuple[int, int]:
    fixed = [round(float(x) * spec.scale) for x in values if spec.edges[0] <= x <= spec.edges[-1]]
    return sum(fixed), sum(x * x for x in fixed)


@given(
    st.lists(st.floats(-1e12, 1e12, allow_nan=False), max_size=60),
    st.sampled_from([1, 1000, 1_000_000]),
    st.sampled_from([1.0, 1e3, 1e9, 1e12]),
)
def test_sums_are_those_of_whole_numbers(values: list[float], scale: int, edge: float) -> None:
    spec = NumericSpec([-edge, 0.0, edge], scale=scale)
    found = count_numeric(values, spec)
    array = np.array(values, dtype=np.float64)
    assert (big_to_int(found.sum), big_to_int(found.sum_sq)) == by_hand(array, spec)


@pytest.mark.parametrize("size", [0, 1, 8192, 100_000])
def test_many_of_the_largest_do_not_run_over(size: int) -> None:
    spec = NumericSpec([-1e6, 1e6], scale=1_000_000)
    found = count_numeric(np.full(size, -1e6), spec)
    assert big_to_int(found.sum) == -(10**12) * size
    assert big_to_int(found.sum_sq) == 10**24 * size


def test_halves_go_to_even_as_round_does() -> None:
    spec = NumericSpec([0.0, 10.0], scale=1)
    values = np.array([0.5, 1.5, 2.5, 3.5])
    assert big_to_int(count_numeric(values, spec).sum) == 0 + 2 + 2 + 4
