"""Rows into sketches, vectorised: the one place where values become counts.

The compiler counts the baseline with it and the device its windows, so that the two can never be
counted in different ways. A `TableCounter` takes all columns of a table at once. It sorts each
(numpy sorts doubles with vector instructions): in a sorted column the places of the edges are the
counts, the ends are the extremes, and what lies within the edges is one piece.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from skerry.sketch import (
    MAX_SCALE,
    CategoricalCounts,
    CategoricalSpec,
    NumericCounts,
    NumericSpec,
    int_to_big,
)

__all__ = ["CHUNK", "CodeCounter", "TableCounter", "count_categorical", "count_numeric",
           "quantile_spec"]  # fmt: skip

CHUNK: Final = 1024  # rows counted at once; with so many the sums below are exact
NARROW: Final = 2.0**21  # squares of whole numbers up to it add up exactly in float64
WIDE: Final = 2.0**51  # whole numbers up to it are two halves whose products do in int64
HALF: Final = 25  # bits of the lower half
STEPS: Final = 100_000  # of fixed point, at least, from the first edge to the last

Floats = NDArray[np.float64]


def quantile_spec(values: ArrayLike, bins: int = 32, scale: int | None = None) -> NumericSpec:
    """Return edges at the quantiles of a baseline column.

    Args:
        values: float [n], the baseline's finite values.
        bins: how many bins to aim at; ties give fewer.
        scale: fixed-point factor of the sums; by default the power of ten that divides the range
            between the edges into at least `STEPS`, so that sums are exact enough and short.

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
    if scale is None:
        scale = _scale(float(edges[-1] - edges[0]))
    return NumericSpec(edges=[float(edge) for edge in edges + 0.0], scale=scale)


def _scale(extent: float) -> int:
    scale = 1
    while extent * scale < STEPS and scale < MAX_SCALE:
        scale *= 10
    return scale


class TableCounter:
    """Counts of several numeric columns, to which tables of rows are added.

    Args:
        specs: one per column.
    """

    def __init__(self, specs: Sequence[NumericSpec]) -> None:
        count, most = len(specs), max((len(spec.edges) for spec in specs), default=2)
        self._specs: Final = list(specs)
        # places of these in a sorted column: how many values are below; none is above infinity,
        # and the last bin has its right edge
        self._edges: Final = np.full((count, most + 1), np.inf)
        for row, spec in zip(self._edges, specs, strict=True):
            row[: len(spec.edges)] = spec.edges
            row[len(spec.edges) - 1] = np.nextafter(spec.edges[-1], np.inf)
        self._last: Final = [len(spec.edges) - 1 for spec in specs]
        self._scale: Final = np.array([float(spec.scale) for spec in specs]).reshape(count, 1)
        most_fixed = [
            max(abs(spec.edges[0]), abs(spec.edges[-1])) * spec.scale + 1 for spec in specs
        ]
        self._wide: Final = [i for i, fixed in enumerate(most_fixed) if not fixed < NARROW]
        self._cells = np.zeros((count, most + 1), np.int64)
        self._odd = np.zeros((count, 3), np.int64)  # NaN, +inf, -inf
        self._low, self._high = np.full(count, np.inf), np.full(count, -np.inf)
        self._sums = [0] * count
        self._squares = [0] * count
        self._runs: Final = _Runs(count)
        self._work = np.empty((2, count, 0))  # made once: new pages cost more than what they hold
        self._n = 0

    def add(self, table: Floats) -> None:
        """Count rows.

        Args:
            table: float64 [columns, rows].
        """
        for start in range(0, table.shape[1], CHUNK):
            self._add(table[:, start : start + CHUNK])

    def columns(self) -> list[NumericCounts]:
        """Return the counts of everything added, by column."""
        return [
            NumericCounts(
                n=self._n,
                bins=cells[1 : last + 1],
                below=cells[0],
                above=cells[last + 1],
                nan=nan,
                pos_inf=pos_inf,
                neg_inf=neg_inf,
                sum=int_to_big(total),
                sum_sq=int_to_big(squares),
                min=low + 0.0 if low <= high else None,
                max=high + 0.0 if low <= high else None,
                run=run,
            )
            for cells, last, (nan, pos_inf, neg_inf), total, squares, low, high, run in zip(
                self._cells.tolist(), self._last, self._odd.tolist(), self._sums, self._squares,
                self._low.tolist(), self._high.tolist(), self._runs.longest, strict=True,
            )
        ]  # fmt: skip

    def _add(self, table: Floats) -> None:
        rows = table.shape[1]
        self._n += rows
        if not len(table):
            return
        if self._work.shape[2] < rows:
            self._work = np.empty((2, len(table), rows))
        ordered, fixed = self._work[:, :, :rows]
        ordered[:] = table
        self._runs.add(ordered)
        ordered.sort(axis=1)  # NaN comes last
        odd = ~(np.isfinite(ordered[:, 0]) & np.isfinite(ordered[:, -1]))
        for i in np.flatnonzero(odd).tolist():
            self._set_aside(i, ordered[i])
        places = np.empty(self._edges.shape, np.int64)
        for column, edges, place in zip(ordered, self._edges, places, strict=True):
            place[:] = column.searchsorted(edges)
        self._cells[:, 0] += places[:, 0]
        self._cells[:, 1:] += places[:, 1:] - places[:, :-1]
        self._extremes(ordered, places[:, -1])
        self._add_sums(ordered, places, fixed)

    def _set_aside(self, i: int, ordered: Floats) -> None:
        """Count what is no finite number, and put it behind what is."""
        finite = ordered[np.isfinite(ordered)]
        infinite = ordered[np.isinf(ordered)]
        above = int((infinite > 0).sum())
        nan = ordered.size - finite.size - infinite.size
        self._odd[i] += (nan, above, infinite.size - above)
        ordered[: finite.size] = finite
        ordered[finite.size :] = np.inf

    def _extremes(self, ordered: Floats, finite: NDArray[np.int64]) -> None:
        low = ordered[:, 0]
        high = ordered[np.arange(len(ordered)), finite - 1]  # of none it is infinity
        np.minimum(self._low, low, out=self._low)
        np.maximum(self._high, high, out=self._high, where=high < np.inf)

    def _add_sums(self, ordered: Floats, places: NDArray[np.int64], fixed: Floats) -> None:
        with np.errstate(over="ignore"):
            np.multiply(ordered, self._scale, out=fixed)
        np.rint(fixed, out=fixed)  # half to even, as Python's round
        rows = ordered.shape[1]
        begins, ends = places[:, 0].tolist(), []
        for i, last in enumerate(self._last):
            ends.append(int(places[i, last]))
            if begins[i]:
                fixed[i, : begins[i]] = 0.0
            if ends[i] < rows:
                fixed[i, ends[i] :] = 0.0
        for i in self._wide:
            total, squares = _wide_sums(fixed[i, begins[i] : ends[i]])
            self._sums[i] += total
            self._squares[i] += squares
            fixed[i] = 0.0
        squared = np.einsum("ij,ij->i", fixed, fixed)
        for i, (total, squares) in enumerate(
            zip(fixed.sum(axis=1).tolist(), squared.tolist(), strict=True)
        ):
            self._sums[i] += int(total)
            self._squares[i] += int(squares)


def _wide_sums(fixed: Floats) -> tuple[int, int]:
    """Return the sums of at most `CHUNK` whole numbers and of their squares, exact for any size."""
    if not fixed.size or max(-fixed[0], fixed[-1]) < WIDE:
        whole = fixed.astype(np.int64)
        upper = whole >> HALF
        lower = whole - (upper << HALF)
        squares = (int(upper @ upper) << 2 * HALF) + int(lower @ lower)
        return int(whole.sum()), squares + (int(upper @ lower) << HALF + 1)
    each = [int(value) for value in fixed.tolist()]
    return sum(each), sum(value * value for value in each)


class CodeCounter:
    """Counts of one categorical column, to which codes are added.

    Args:
        spec: the baseline's values.
    """

    def __init__(self, spec: CategoricalSpec) -> None:
        self._size: Final = len(spec.values)
        self._counts = np.zeros(self._size + 1, np.int64)  # the last is of unseen values
        self._runs: Final = _Runs(1)
        self._n = 0

    def add(self, codes: NDArray[np.int64]) -> None:
        """Count rows.

        Args:
            codes: int64 [n]: positions in the baseline's values; others are unseen values.
        """
        self._n += codes.size
        known = np.where((codes >= 0) & (codes < self._size), codes, self._size)
        self._counts += np.bincount(known, minlength=self._size + 1)
        self._runs.add(codes.reshape(1, -1))

    def column(self) -> CategoricalCounts:
        """Return the counts of everything added."""
        *counts, unseen = self._counts.tolist()
        return CategoricalCounts(
            n=self._n, counts=counts, unseen=unseen, run=self._runs.longest[0]
        )  # fmt: skip


class _Runs:
    """The longest run of equal values of each column, also across tables."""

    def __init__(self, columns: int) -> None:
        self.longest = [0] * columns
        self._open = [0] * columns  # length of the run at the end
        self._value: NDArray[np.generic] | None = None  # that it is a run of

    def add(self, table: NDArray[np.float64] | NDArray[np.int64]) -> None:
        rows = table.shape[1]
        if not rows:
            return
        before = self._open
        if self._value is None or not (goes_on := table[:, 0] == self._value).any():
            before = [0] * len(before)
        elif not goes_on.all():
            before = [run if on else 0 for run, on in zip(before, goes_on.tolist(), strict=True)]
        same = table[:, 1:] == table[:, :-1]
        self._open = [1] * len(before) if rows > 1 else [run + 1 for run in before]
        longest = [run + 1 for run in before]
        for i in np.flatnonzero(same.any(axis=1)).tolist():
            starts = np.flatnonzero(~same[i]) + 1
            lengths = np.diff(np.concatenate(([0], starts, [rows])))
            lengths[0] += before[i]
            longest[i], self._open[i] = int(lengths.max()), int(lengths[-1])
        self.longest = list(map(max, self.longest, longest))
        self._value = table[:, -1].copy()


def count_numeric(values: ArrayLike, spec: NumericSpec, missing: int = 0) -> NumericCounts:
    """Count one numeric column.

    Args:
        values: float [n]; NaN and infinities are counted in cells of their own.
        spec: the baseline's edges.
        missing: rows that had no value at all; they come on top of the n values.
    """
    counter = TableCounter([spec])
    counter.add(np.asarray(values, dtype=np.float64).reshape(1, -1))
    (counts,) = counter.columns()
    return msgspec.structs.replace(counts, n=counts.n + missing, missing=missing)


def count_categorical(
    codes: Sequence[int] | NDArray[np.int64], spec: CategoricalSpec, missing: int = 0
) -> CategoricalCounts:
    """Count one categorical column.

    Args:
        codes: int [n]: positions in the baseline's values; -1 is an unseen value.
        spec: the baseline's values.
        missing: rows that had no value at all; they come on top of the n codes.
    """
    counter = CodeCounter(spec)
    counter.add(np.asarray(codes, dtype=np.int64))
    counts = counter.column()
    return msgspec.structs.replace(counts, n=counts.n + missing, missing=missing)
