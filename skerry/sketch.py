"""Sketches: integer counts that merge exactly, so that no split of the rows matters.

A numeric column is counted on fixed edges (the baseline's quantiles, part of the
bundle): bin i holds ``edges[i] <= x < edges[i+1]``, the last bin also its right
edge; values outside go to `below` and `above`, and missing, NaN and infinite
values have cells of their own. Sum and sum of squares are kept in fixed point
(``round(x * scale)``), as unbounded integers, over in-range values. A categorical
column counts the baseline's values by position, then `other` (a value that the
baseline saw too seldom to list), `unseen` and `missing`.

`merge` is associative and commutative, and equal rows give equal bytes however
they were split over devices, windows and batches; only `run`, the longest run of
equal values, is a fact of one device and merges as a maximum.
"""

import math
from itertools import pairwise
from typing import Final

import msgspec

from skerry.errors import FormatError

__all__ = [
    "MAX_BINS",
    "CategoricalCounts",
    "CategoricalSpec",
    "Column",
    "ColumnSpec",
    "NumericCounts",
    "NumericSpec",
    "big_to_int",
    "check_column",
    "check_spec",
    "int_to_big",
    "merge",
    "merge_columns",
    "total",
]

MAX_BINS: Final = 256  # cells of one column that a decoder accepts
MAX_BIG_BYTES: Final = 64  # bytes of one fixed-point sum
MAX_SCALE: Final = 10**12


class NumericSpec(msgspec.Struct, frozen=True, tag="numeric", tag_field="kind"):
    """How a numeric column is counted: ascending `edges`, and the fixed-point `scale`."""

    edges: list[float]
    scale: int = 1_000_000


class CategoricalSpec(msgspec.Struct, frozen=True, tag="categorical", tag_field="kind"):
    """How a categorical column is counted: the baseline's `values`, in their order."""

    values: list[str]


ColumnSpec = NumericSpec | CategoricalSpec


class NumericCounts(
    msgspec.Struct, frozen=True, array_like=True, tag="n", forbid_unknown_fields=True
):
    """Counts of one numeric column; `n` is the number of rows, every cell included."""

    n: int
    bins: list[int]
    below: int = 0
    above: int = 0
    missing: int = 0
    nan: int = 0
    pos_inf: int = 0
    neg_inf: int = 0
    sum: bytes = b""  # big-endian two's complement of sum(round(x * scale))
    sum_sq: bytes = b""  # of sum(round(x * scale) ** 2)
    min: float | None = None
    max: float | None = None
    run: int = 0  # longest run of equal values, one device's fact


class CategoricalCounts(
    msgspec.Struct, frozen=True, array_like=True, tag="c", forbid_unknown_fields=True
):
    """Counts of one categorical column; `counts` follow the baseline's values."""

    n: int
    counts: list[int]
    other: int = 0
    unseen: int = 0
    missing: int = 0
    run: int = 0


Column = NumericCounts | CategoricalCounts


def int_to_big(value: int) -> bytes:
    """Return the shortest big-endian two's complement of an integer, empty for 0."""
    if value == 0:
        return b""
    length = (value if value >= 0 else ~value).bit_length() // 8 + 1
    return value.to_bytes(length, "big", signed=True)


def big_to_int(data: bytes) -> int:
    """Return the integer of `int_to_big`."""
    return int.from_bytes(data, "big", signed=True)


def total(column: Column) -> int:
    """Return the sum of all cells; it equals `n` in every valid column."""
    if isinstance(column, NumericCounts):
        cells = (column.below, column.above, column.missing, column.nan)
        return sum(column.bins) + sum(cells) + column.pos_inf + column.neg_inf
    return sum(column.counts) + column.other + column.unseen + column.missing


def check_column(column: Column, spec: ColumnSpec) -> None:
    """Check that counts have the form their spec promises.

    Raises:
        FormatError: other kind, other number of cells, a negative cell, or cells
            that do not add up to `n`.
    """
    if isinstance(column, NumericCounts) and isinstance(spec, NumericSpec):
        expected, got = len(spec.edges) - 1, len(column.bins)
        low = min(
            *column.bins, column.below, column.above, column.missing, column.nan,
            column.pos_inf, column.neg_inf, column.run, 0,
        )  # fmt: skip
        if max(len(column.sum), len(column.sum_sq)) > MAX_BIG_BYTES:
            raise FormatError(f"expected sums of at most {MAX_BIG_BYTES} bytes", "sketch")
        for bound in (column.min, column.max):
            if bound is not None and bound - bound != 0.0:
                raise FormatError(f"expected finite extremes, got {bound}", "sketch")
        if (column.min is None) != (column.max is None):
            raise FormatError("expected both extremes, or none", "sketch")
        if column.min is not None and column.max is not None and column.min > column.max:
            raise FormatError(f"expected min <= max, got {column.min} and {column.max}", "sketch")
        if big_to_int(column.sum_sq) < 0:
            raise FormatError("expected a sum of squares of at least 0", "sketch")
    elif isinstance(column, CategoricalCounts) and isinstance(spec, CategoricalSpec):
        expected, got = len(spec.values), len(column.counts)
        low = min(*column.counts, column.other, column.unseen, column.missing, column.run, 0)
    else:
        raise FormatError(f"expected {type(spec).__name__}, got {type(column).__name__}", "sketch")
    if got != expected or got > MAX_BINS:
        raise FormatError(f"expected {expected} cells (at most {MAX_BINS}), got {got}", "sketch")
    if low < 0 or total(column) != column.n:
        raise FormatError(
            f"expected cells that add up to n={column.n}, got {total(column)}", "sketch"
        )


def check_spec(spec: ColumnSpec) -> None:
    """Check that a baseline's column can be counted on.

    Raises:
        FormatError: code ``sketch``: edges that do not ascend or are not finite, a scale below 1,
            equal values, or too many cells.
    """
    if isinstance(spec, CategoricalSpec):
        if len(spec.values) > MAX_BINS or len(set(spec.values)) < len(spec.values):
            raise FormatError(f"expected at most {MAX_BINS} different values", "sketch")
        return
    if not 2 <= len(spec.edges) <= MAX_BINS + 1:
        raise FormatError(
            f"expected 2 to {MAX_BINS + 1} edges of a column, got {len(spec.edges)}", "sketch"
        )
    ascend = all(low < high for low, high in pairwise(spec.edges))
    if not ascend or not all(map(math.isfinite, spec.edges)):
        raise FormatError("expected finite edges, each above the one before", "sketch")
    if not 0 < spec.scale <= MAX_SCALE:
        raise FormatError(f"expected a scale of 1 to {MAX_SCALE}, got {spec.scale}", "sketch")


def merge(a: Column, b: Column) -> Column:
    """Return the counts of the rows of both; exact, associative, commutative.

    Raises:
        FormatError: the two are of different kinds, or were counted on different cells.
    """
    if isinstance(a, NumericCounts) and isinstance(b, NumericCounts):
        return _merge_numeric(a, b)
    if isinstance(a, CategoricalCounts) and isinstance(b, CategoricalCounts):
        return _merge_categorical(a, b)
    raise FormatError(f"expected two of a kind, got {type(a).__name__} and {type(b).__name__}")


def merge_columns(a: dict[str, Column], b: dict[str, Column]) -> dict[str, Column]:
    """Merge two sketches column by column; a column that only one has is kept."""
    merged = dict(a)
    for name, column in b.items():
        mine = merged.get(name)
        merged[name] = column if mine is None else merge(mine, column)
    return merged


def _merge_numeric(a: NumericCounts, b: NumericCounts) -> NumericCounts:
    if len(a.bins) != len(b.bins):
        raise FormatError(f"expected equal edges, got {len(a.bins)} and {len(b.bins)} bins")
    return NumericCounts(
        n=a.n + b.n,
        bins=[x + y for x, y in zip(a.bins, b.bins, strict=True)],
        below=a.below + b.below,
        above=a.above + b.above,
        missing=a.missing + b.missing,
        nan=a.nan + b.nan,
        pos_inf=a.pos_inf + b.pos_inf,
        neg_inf=a.neg_inf + b.neg_inf,
        sum=int_to_big(big_to_int(a.sum) + big_to_int(b.sum)),
        sum_sq=int_to_big(big_to_int(a.sum_sq) + big_to_int(b.sum_sq)),
        min=_extreme(a.min, b.min, smallest=True),
        max=_extreme(a.max, b.max, smallest=False),
        run=max(a.run, b.run),
    )


def _merge_categorical(a: CategoricalCounts, b: CategoricalCounts) -> CategoricalCounts:
    if len(a.counts) != len(b.counts):
        raise FormatError(f"expected equal values, got {len(a.counts)} and {len(b.counts)}")
    return CategoricalCounts(
        n=a.n + b.n,
        counts=[x + y for x, y in zip(a.counts, b.counts, strict=True)],
        other=a.other + b.other,
        unseen=a.unseen + b.unseen,
        missing=a.missing + b.missing,
        run=max(a.run, b.run),
    )


def _extreme(a: float | None, b: float | None, *, smallest: bool) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b) if smallest else max(a, b)
