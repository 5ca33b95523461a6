"""Errors of predictions whose labels came later: counts by the window of the *prediction*.

    classes   how many were labelled, how many of these were right, and which class was taken
              for which (to `MAX_CLASSES` classes; beyond, the totals alone)
    values    counts of the error, prediction less label, on edges that the baseline's range
              gives, and exact sums of its absolute value and of its square

Like every sketch these are integers: they merge exactly, however the labels were split.
"""

from typing import Final

import msgspec

from skerry.errors import FormatError
from skerry.sketch import (
    MAX_BIG_BYTES,
    MAX_SCALE,
    NumericCounts,
    NumericSpec,
    big_to_int,
    check_column,
    int_to_big,
    merge,
)

__all__ = [
    "MAX_CLASSES",
    "SPANS",
    "ErrorSketch",
    "check_errors",
    "error_spec",
    "finite",
    "merge_errors",
]

MAX_CLASSES: Final = 64  # of which it is told which was taken for which
MAX_LABELS: Final = 1 << 40  # of one sketch: sums of many stay within 64 bits
HALVINGS: Final = 15  # the finest edges are so many halvings of the range away from 0
SPANS: Final = (1e-200, 1e200)


class ErrorSketch(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True
):  # fmt: skip
    """The labelled predictions of one release in one window of prediction.

    Attributes:
        ctx: position in the contexts beside it.
        start: of the window in which the predictions were made, Unix seconds.
        length_s: of that window.
        n: labelled predictions.
        correct: of these, whose class was the label's; 0 for values.
        confusion: flat triples: class predicted, class of the label, how many; ascending.
        errors: counts of prediction less label on `error_spec`; None for classes.
        abs_sum: sum of the fixed-point errors' absolute values, see `int_to_big`.
        sq_sum: sum of their squares.
        span: of the edges, see `error_spec`.
        scale: of the fixed point.
    """

    ctx: int
    start: float
    length_s: float
    n: int
    correct: int = 0
    confusion: list[int] = []
    errors: NumericCounts | None = None
    abs_sum: bytes = b""
    sq_sum: bytes = b""
    span: float = 1.0
    scale: int = 1


def error_spec(span: float, scale: int) -> NumericSpec:
    """Return how errors are counted: edges at 0 and at halvings of the baseline's range.

    Args:
        span: from the baseline's lowest to its highest prediction.
        scale: the fixed-point factor of the sums.
    """
    positive = [span * 2.0**-k for k in range(HALVINGS, -1, -1)]
    return NumericSpec([-edge for edge in reversed(positive)] + [0.0] + positive, scale)


def finite(sketch: ErrorSketch) -> int:
    """Return of how many labelled values the sums are."""
    counts = sketch.errors
    return 0 if counts is None else counts.n - counts.nan - counts.pos_inf - counts.neg_inf


def check_errors(sketch: ErrorSketch) -> None:
    """Check that a sketch adds up.

    Raises:
        FormatError: code ``sketch``: what does not.
    """
    if sketch.n > MAX_LABELS:
        raise FormatError(f"expected at most {MAX_LABELS} labels, got {sketch.n}", "sketch")
    if not 0 <= sketch.correct <= sketch.n:
        raise FormatError(f"expected 0 to {sketch.n} correct, got {sketch.correct}", "sketch")
    if sketch.errors is None:
        _check_confusion(sketch)
        return
    if sketch.correct or sketch.confusion or sketch.errors.n != sketch.n:
        raise FormatError(f"expected the counts of {sketch.n} errors and no classes", "sketch")
    if not (SPANS[0] <= sketch.span <= SPANS[1] and 0 < sketch.scale <= MAX_SCALE):
        raise FormatError("expected a span and a scale within their bounds", "sketch")
    check_column(sketch.errors, error_spec(sketch.span, sketch.scale))
    if max(len(sketch.abs_sum), len(sketch.sq_sum)) > MAX_BIG_BYTES:
        raise FormatError(f"expected sums of at most {MAX_BIG_BYTES} bytes", "sketch")
    absolute, squares = big_to_int(sketch.abs_sum), big_to_int(sketch.sq_sum)
    # Cauchy and Schwarz, and whole numbers: |e| <= e^2
    if not 0 <= absolute <= squares or absolute**2 > squares * finite(sketch):
        raise FormatError("expected sums of absolute values and squares that fit", "sketch")


def _check_confusion(sketch: ErrorSketch) -> None:
    cells = sketch.confusion
    if not cells:
        return
    if len(cells) % 3 or len(cells) > 3 * MAX_CLASSES**2:
        raise FormatError(f"expected triples of at most {MAX_CLASSES} classes", "sketch")
    pairs = list(zip(cells[::3], cells[1::3], strict=True))
    counts = cells[2::3]
    in_range = all(0 <= place < MAX_CLASSES for pair in pairs for place in pair)
    if not in_range or min(counts) < 1 or any(a >= b for a, b in zip(pairs, pairs[1:])):  # noqa: B905, RUF007
        raise FormatError("expected ascending pairs of classes, each with a count", "sketch")
    right = sum(n for (said, was), n in zip(pairs, counts, strict=True) if said == was)
    if sum(counts) != sketch.n or right != sketch.correct:
        raise FormatError(f"expected cells that add up to n={sketch.n}", "sketch")


def merge_errors(a: ErrorSketch, b: ErrorSketch) -> ErrorSketch:
    """Return the errors of both, as of one window; place and time are the first's.

    Raises:
        FormatError: counted on different edges, or one of classes and one of values.
    """
    if (a.span, a.scale) != (b.span, b.scale) or (a.errors is None) != (b.errors is None):
        raise FormatError("expected errors of the same kind on the same edges", "sketch")
    cells: dict[tuple[int, int], int] = {}
    for one in (a, b):
        for said, was, n in zip(*(iter(one.confusion),) * 3, strict=True):
            cells[said, was] = cells.get((said, was), 0) + n
    # totals alone, where one of them knows no more
    whole = sum(cells.values()) == a.n + b.n
    flat = [value for pair, n in sorted(cells.items()) for value in (*pair, n)] if whole else []
    errors = None
    if a.errors is not None and b.errors is not None:
        merged = merge(a.errors, b.errors)
        assert isinstance(merged, NumericCounts)
        errors = merged
    return msgspec.structs.replace(
        a,
        n=a.n + b.n,
        correct=a.correct + b.correct,
        confusion=flat,
        errors=errors,
        abs_sum=int_to_big(big_to_int(a.abs_sum) + big_to_int(b.abs_sum)),
        sq_sum=int_to_big(big_to_int(a.sq_sum) + big_to_int(b.sq_sum)),
    )
