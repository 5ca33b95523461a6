"""Rows into sketches, vectorised: the one place where values become counts.

The compiler counts the baseline with it and the device its windows, so that the
two can never be counted in different ways.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.sketch import (
    CategoricalCounts,
    CategoricalSpec,
    NumericCounts,
    NumericSpec,
    int_to_big,
)

__all__ = ["count_categorical", "count_numeric", "quantile_spec"]

MAX_EXACT: Final = 2.0**62  # sums below it do not run over in int64


def quantile_spec(values: ArrayLike, bins: int = 32, scale: int = 1_000_000) -> NumericSpec:
    """Return edges at the quantiles of a baseline column.

    Args:
        values: float [n], the baseline's finite values.
        bins: how many bins to aim at; ties give fewer.
        scale: fixed-point factor of the sums.

    Returns:
        A spec with strictly ascending edges that cover the values.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        finite = np.zeros(1)
    edges = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, bins + 1)))
    if edges.size < 2:
        edges = np.array([edges[0] - 0.5, edges[0] + 0.5])
    return NumericSpec(edges=[float(edge) for edge in edges + 0.0], scale=scale)


def count_numeric(values: ArrayLike, spec: NumericSpec, missing: int = 0) -> NumericCounts:
    """Count one numeric column.

    Args:
        values: float [n]; NaN and infinities are counted in cells of their own.
        spec: the baseline's edges.
        missing: rows that had no value at all; they come on top of the n values.
    """
    array = np.asarray(values, dtype=np.float64)
    edges = np.asarray(spec.edges)
    finite_mask = np.isfinite(array)
    finite = array if finite_mask.all() else array[finite_mask]
    position = np.searchsorted(edges, finite, side="right") - 1
    position[finite == edges[-1]] = edges.size - 2
    below, above = int((position < 0).sum()), int((position > edges.size - 2).sum())
    in_range = (position >= 0) & (position <= edges.size - 2)
    bins = np.bincount(position[in_range], minlength=edges.size - 1)
    total, squares = _exact_sums(np.rint(finite[in_range] * spec.scale))
    return NumericCounts(
        n=int(array.size) + missing,
        bins=bins.tolist(),
        below=below,
        above=above,
        missing=missing,
        nan=int(np.isnan(array).sum()),
        pos_inf=int(np.isposinf(array).sum()),
        neg_inf=int(np.isneginf(array).sum()),
        sum=int_to_big(total),
        sum_sq=int_to_big(squares),
        min=float(finite.min()) + 0.0 if finite.size else None,
        max=float(finite.max()) + 0.0 if finite.size else None,
        run=_longest_run(array),
    )


def _exact_sums(fixed: NDArray[np.float64]) -> tuple[int, int]:
    """Return the sums of whole numbers and of their squares, exact for any size and number."""
    most = float(np.abs(fixed).max(initial=0.0))
    if most * most * fixed.size < MAX_EXACT:
        whole = fixed.astype(np.int64)
        return int(whole.sum()), int(whole @ whole)
    each = [int(value) for value in fixed.tolist()]
    return sum(each), sum(value * value for value in each)


def count_categorical(
    codes: Sequence[int] | NDArray[np.int64], spec: CategoricalSpec, missing: int = 0
) -> CategoricalCounts:
    """Count one categorical column.

    Args:
        codes: int [n]: positions in the baseline's values; -1 is an unseen value.
        spec: the baseline's values.
        missing: rows that had no value at all; they come on top of the n codes.
    """
    array = np.asarray(codes, dtype=np.int64)
    known = array[(array >= 0) & (array < len(spec.values))]
    return CategoricalCounts(
        n=int(array.size) + missing,
        counts=np.bincount(known, minlength=len(spec.values)).tolist(),
        unseen=int(array.size - known.size),
        missing=missing,
        run=_longest_run(array.astype(np.float64)),
    )


def _longest_run(array: NDArray[np.float64]) -> int:
    if array.size == 0:
        return 0
    starts = np.flatnonzero(array[1:] != array[:-1]) + 1
    return int(np.diff(np.concatenate(([0], starts, [array.size]))).max())
