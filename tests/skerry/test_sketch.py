"""Sketches merge exactly: no split of the rows changes a byte."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.canonical import to_msgpack
from skerry.counting import count_categorical, count_numeric, quantile_spec
from skerry.errors import FormatError
from skerry.sketch import (
    CategoricalCounts,
    CategoricalSpec,
    Column,
    NumericCounts,
    NumericSpec,
    big_to_int,
    check_column,
    int_to_big,
    merge,
    merge_columns,
    total,
)

SPEC = NumericSpec(edges=[0.0, 0.25, 0.5, 0.75, 1.0])
WORDS = CategoricalSpec(values=["a", "b", "c"])
values = st.lists(st.floats(width=32) | st.just(math.nan), max_size=60)
codes = st.lists(st.integers(-1, 3), max_size=60)


def without_run(column: Column) -> bytes:
    """The merged part: `run` is one device's fact and depends on where rows are cut."""
    return to_msgpack([getattr(column, f) for f in column.__struct_fields__ if f != "run"])


@given(values, st.integers(0, 60))
def test_any_split_of_the_rows_gives_the_same_bytes(rows: list[float], cut: int) -> None:
    whole = count_numeric(rows, SPEC)
    halves = merge(count_numeric(rows[:cut], SPEC), count_numeric(rows[cut:], SPEC))
    assert without_run(halves) == without_run(whole)
    check_column(halves, SPEC)


@given(values, values, values)
def test_merge_is_associative_and_commutative(
    a: list[float], b: list[float], c: list[float]
) -> None:
    x, y, z = (count_numeric(rows, SPEC) for rows in (a, b, c))
    assert merge(merge(x, y), z) == merge(x, merge(y, z))
    assert merge(x, y) == merge(y, x)


@given(codes, codes)
def test_categories_merge_to_the_counts_of_all_rows(a: list[int], b: list[int]) -> None:
    merged = merge(count_categorical(a, WORDS), count_categorical(b, WORDS))
    assert without_run(merged) == without_run(count_categorical(a + b, WORDS))
    check_column(merged, WORDS)


@given(values)
def test_every_row_is_in_exactly_one_cell(rows: list[float]) -> None:
    counted = count_numeric(rows, SPEC, missing=2)
    assert counted.n == len(rows) + 2 == total(counted)
    assert counted.nan == sum(math.isnan(x) for x in rows)


def test_edges_belong_to_the_bin_on_their_right_and_the_last_to_the_last() -> None:
    counted = count_numeric([0.0, 0.25, 1.0, 1.0 + 1e-9, -1e-9], SPEC)
    assert counted.bins == [1, 1, 0, 1]
    assert (counted.below, counted.above) == (1, 1)


def test_sums_are_exact_beyond_64_bits() -> None:
    spec = NumericSpec(edges=[0.0, 1e15], scale=1_000_000)
    one = count_numeric([9.0e14], spec)
    many: Column = one
    for _ in range(9):
        many = merge(many, one)
    assert isinstance(many, NumericCounts)
    assert big_to_int(many.sum_sq) == 10 * (9 * 10**20) ** 2


@given(st.integers(-(2**200), 2**200))
def test_unbounded_integers_come_back(value: int) -> None:
    assert big_to_int(int_to_big(value)) == value


def test_a_stuck_input_shows_as_its_longest_run() -> None:
    assert count_numeric([0.5] * 7 + [0.6], SPEC).run == 7


def test_negative_zero_is_zero() -> None:
    assert str(count_numeric([-0.0], SPEC).min) == "0.0"


def test_a_constant_baseline_still_has_a_bin() -> None:
    assert len(quantile_spec(np.ones(10)).edges) == 2


@pytest.mark.parametrize(
    "column",
    [
        NumericCounts(n=1, bins=[1]),
        NumericCounts(n=3, bins=[1, 1, 0, 0]),
        NumericCounts(n=0, bins=[1, -1, 0, 0]),
        NumericCounts(n=1, bins=[1, 0, 0, 0], sum=b"\x01" * 65),
        NumericCounts(n=1, bins=[1, 0, 0, 0], min=math.inf),
        CategoricalCounts(n=1, counts=[1, 0, 0]),
    ],
)
def test_counts_that_do_not_fit_their_spec_are_refused(column: Column) -> None:
    with pytest.raises(FormatError):
        check_column(column, SPEC)


def test_counts_of_other_cells_do_not_merge() -> None:
    with pytest.raises(FormatError):
        merge(NumericCounts(n=0, bins=[0]), NumericCounts(n=0, bins=[0, 0]))
    with pytest.raises(FormatError):
        merge_columns(
            {"x": NumericCounts(n=0, bins=[0])}, {"x": CategoricalCounts(n=0, counts=[0])}
        )
