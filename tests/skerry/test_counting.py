"""Sums of a sketch are whole numbers, exact however large."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.counting import CHUNK, TableCounter, count_numeric, quantile_spec
from skerry.sketch import NumericSpec, big_to_int, total


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


ODD = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 0.25, 1.0, 1e300, -5e-324]


def test_a_table_is_counted_as_its_columns_are_by_hand() -> None:
    rng = np.random.default_rng(7)
    specs = [
        NumericSpec([-1.0, 0.0, 0.5, 1.0], scale=1000),
        NumericSpec([0.0, 0.25], scale=1),
        NumericSpec([-1e9, 0.0, 1e9], scale=1_000_000),
        NumericSpec([1e12, 2e12], scale=10**12),
    ]
    table = np.stack(
        [rng.normal(size=2500), rng.integers(0, 2, 2500), rng.normal(size=2500) * 1e9,
         rng.uniform(0, 3e12, 2500)]
    )  # fmt: skip
    table[0, rng.integers(0, 2500, 300)] = rng.choice(ODD, 300)
    table[1, 900:1800] = 1.0  # one run over the end of a chunk
    counter = TableCounter(specs)
    for start, end in ((0, 1), (1, 1), (1, CHUNK + 7), (CHUNK + 7, 2500)):
        counter.add(table[:, start:end])
    for spec, values, found in zip(specs, table, counter.columns(), strict=True):
        finite = values[np.isfinite(values)]
        bins = np.histogram(finite, spec.edges)[0].tolist()
        assert found.bins == bins
        assert (found.below, found.above) == (
            int((finite < spec.edges[0]).sum()), int((finite > spec.edges[-1]).sum()),
        )  # fmt: skip
        assert total(found) == found.n == 2500
        assert (found.min, found.max) == (finite.min(), finite.max())
        assert (big_to_int(found.sum), big_to_int(found.sum_sq)) == by_hand(values, spec)
        assert found == count_numeric(values, spec)
    assert [found.run for found in counter.columns()[1:]] == [
        max(len(run) for run in "".join(str(int(x)) for x in table[1]).replace("01", "0 1")
            .replace("10", "1 0").split()),
        1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("extent", [1e-9, 3e-3, 1.0, 7.0, 1e6, 1e15])
def test_sums_have_the_steps_that_a_column_needs(extent: float) -> None:
    values = np.random.default_rng(1).uniform(-extent / 2, extent / 2, 1000)
    spec = quantile_spec(values)
    found = count_numeric(values, spec)
    mean = big_to_int(found.sum) / spec.scale / 1000
    assert abs(mean - values.mean()) < 1e-3 * extent
