"""How good a variant is: its metric, and its drop below fp32 with an interval.

Both answer the same samples, so the comparison is paired; `compiler.interval` says between
which values the drop lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compiler.interval import (
    drop_interval,
    mean_interval,
    never_differ,
    samples_for,
    whole_interval,
)
from compiler.metrics import Function, Score, predictions, score
from compiler.recipe import LOWER_IS_BETTER, Metric
from skerry.errors import RefusedError

__all__ = ["Quality", "Slice", "compare", "samples_needed"]

SQUARES: Final = 1 << 20  # values squared at a time


@dataclass(frozen=True, slots=True)
class Slice:
    """A group of the evaluation samples, and how it fares."""

    name: str  # of the gate's slice
    group: str
    n: int
    value: float
    drop: float
    drop_low: float
    drop_high: float
    differ: tuple[int, int] | None = None  # as in `Quality`


@dataclass(frozen=True, slots=True)
class Quality:
    """A variant against fp32 on the evaluation samples.

    Attributes:
        value: the metric.
        n: samples.
        drop: how much worse than fp32; negative is better.
        drop_low: lower end of the drop's 95 % interval.
        drop_high: upper end.
        agreement: share of predictions that are fp32's; None where nothing is predicted.
        sqnr_db: power of fp32's output over that of the difference, in dB.
        slices: groups of the data.
        differ: samples that only fp32, and only the variant, has right; None where no sample is
            simply right or wrong.
    """

    value: float
    n: int
    drop: float
    drop_low: float
    drop_high: float
    agreement: float | None = None
    sqnr_db: float | None = None
    slices: tuple[Slice, ...] = field(default=())
    differ: tuple[int, int] | None = None


class Drop(NamedTuple):
    """How much worse than fp32, its 95 % interval, and which samples differ if one can say."""

    drop: float
    low: float
    high: float
    differ: tuple[int, int] | None = None


def compare(
    metric: Metric,
    output: NDArray[Any],
    reference: NDArray[Any],
    labels: NDArray[Any] | None,
    *,
    function: Function | None = None,
    slices: Mapping[str, NDArray[Any]] | None = None,
    least: Mapping[str, int] | None = None,
) -> Quality:
    """Return a variant's quality, paired with fp32's.

    Args:
        metric: the recipe's.
        output: the variant's, [n, ...].
        reference: fp32's, of the same shape.
        labels: as `metrics.check_labels` lets through.
        function: of a metric of one's own.
        slices: name -> group of each sample, [n].
        least: name -> samples; a smaller group of which the metric cannot be taken is left out.

    Raises:
        RefusedError: the output is not finite, or the metric cannot be taken.
    """
    mine = score(metric, output, labels, reference, function)
    theirs = score(metric, reference, labels, reference, function)
    drop, low, high, differ = _drop(metric, mine, theirs)
    agreement = None
    if metric.reading != "none":
        same = predictions(output, metric) == predictions(reference, metric)
        agreement = float(same.mean())
    return Quality(
        value=mine.value,
        n=mine.n,
        drop=drop,
        drop_low=low,
        drop_high=high,
        agreement=agreement,
        sqnr_db=sqnr_db(output, reference),
        differ=differ,
        slices=tuple(
            part
            for name, groups in (slices or {}).items()
            for group in np.unique(groups)
            if (part := _slice(
                metric, name, str(group), groups == group, output, reference, labels, function,
                least=(least or {}).get(name, 0),
            )) is not None
        ),
    )  # fmt: skip


def sqnr_db(output: NDArray[Any], reference: NDArray[Any]) -> float | None:
    """Return the ratio of signal to quantization noise in dB, at most 120; None where undefined."""
    if reference.dtype.kind != "f":
        return None
    signal = noise = 0.0
    step = max(1, SQUARES // max(1, reference[:1].size))
    for start in range(0, len(reference), step):  # squares of all at once would be the peak
        part = reference[start : start + step].astype(np.float64)
        signal += float(np.square(part).sum())
        noise += float(np.square(part - output[start : start + step]).sum())
    if signal == 0:
        return None
    return min(120.0, 10 * float(np.log10(signal / noise))) if noise > 0 else 120.0


def samples_needed(quality: Quality | Slice, limit: float) -> int | None:
    """Return about how many samples would decide whether the drop is within a limit.

    None where no number would: the drop is the limit. Where it is not known how many samples
    differ, the interval's half shrinks with the root of their number.
    """
    if quality.differ is not None:
        return samples_for(*quality.differ, quality.n, limit)
    margin = abs(limit - quality.drop)
    half = (quality.drop_high - quality.drop_low) / 2
    if margin < 1e-9:
        return None
    return int(np.ceil(quality.n * (half / margin) ** 2 * 1.05))


def _drop(metric: Metric, mine: Score, theirs: Score) -> Drop:
    sign = -1.0 if metric.falls else 1.0
    drop, n = sign * (theirs.value - mine.value), mine.n
    a, b = mine.per_sample, theirs.per_sample
    if a is None or b is None:
        low, high = -1.0, 1.0
        if n > 1:
            low, high = whole_interval(lambda w: sign * (theirs.of(w) - mine.of(w)), drop, n)
    elif np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        lost, gained = int((b > a).sum()), int((a > b).sum())
        differ = (lost, gained) if sign > 0 else (gained, lost)
        return Drop(drop, *drop_interval(*differ, n), differ)
    elif n > 1:
        low, high = mean_interval(sign * (b - a))
    else:  # one sample tells nothing of others
        reach = max(1.0, abs(mine.value), abs(theirs.value))
        low, high = drop - reach, drop + reach
    if low == high == 0 and metric.name not in LOWER_IS_BETTER:
        high = never_differ(n)  # shares, of which a sample that differs was not seen yet
        low = -high
    return Drop(drop, low, high)


def _slice(
    metric: Metric,
    name: str,
    group: str,
    rows: NDArray[np.bool_],
    output: NDArray[Any],
    reference: NDArray[Any],
    labels: NDArray[Any] | None,
    function: Function | None,
    *,
    least: int,
) -> Slice | None:
    part = None if labels is None else labels[rows]
    try:
        mine = score(metric, output[rows], part, reference[rows], function)
        theirs = score(metric, reference[rows], part, reference[rows], function)
    except RefusedError as error:  # auc of one class, or a function that needs more samples
        n = int(rows.sum())
        if n < least:
            return None  # so few decide nothing anyway
        raise RefusedError(
            f"gate.slices.{name}, group {group!r} (n={n}): {error}", error.code
        ) from None
    drop, low, high, differ = _drop(metric, mine, theirs)
    return Slice(name, group, mine.n, mine.value, drop, low, high, differ)
