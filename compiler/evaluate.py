"""How good a variant is: its metric, and its drop below fp32 with an interval.

Both answer the same samples, so the comparison is paired. Where each sample is right or
wrong, only those on which exactly one of the two is right say anything (McNemar): the
interval is the adjusted Wald interval for matched pairs of Agresti and Min (2005), which
adds half a sample to each of the four cells: closed form, no chance in it, and honest
even where the two never differ. Any other metric gets a paired percentile bootstrap
(Efron and Tibshirani 1993, chapter 13) from fixed seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.metrics import Function, Score, predictions, score
from compiler.recipe import Metric
from skerry.errors import RefusedError

__all__ = ["Quality", "Slice", "compare", "drop_interval", "samples_needed"]

Z: Final = 1.959964  # 95 %
SQUARES: Final = 1 << 20  # values squared at a time
RESAMPLES_OF_MEANS: Final = 2000
RESAMPLES: Final = 400
AT_A_TIME: Final = 4_000_000  # entries of resampled means in memory


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
    """

    value: float
    n: int
    drop: float
    drop_low: float
    drop_high: float
    agreement: float | None = None
    sqnr_db: float | None = None
    slices: tuple[Slice, ...] = field(default=())


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
    drop, low, high = _drop(metric, mine, theirs)
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


def drop_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a drop in shares.

    Args:
        lost: samples that only fp32 has right.
        gained: samples that only the variant has right.
        n: all samples.
    """
    m = n + 2.0
    difference = (lost - gained) / m
    spread = ((lost + gained + 1.0) / m - difference * difference) / m
    half = Z * max(spread, 0.0) ** 0.5
    return max(-1.0, difference - half), min(1.0, difference + half)


def samples_needed(quality: Quality, limit: float) -> int | None:
    """Return about how many samples would decide whether the drop is within a limit.

    None where no number would: the drop is the limit. The interval's half shrinks with the
    root of the number of samples.
    """
    margin = abs(limit - quality.drop)
    half = (quality.drop_high - quality.drop_low) / 2
    if margin < 1e-9:
        return None
    return int(np.ceil(quality.n * (half / margin) ** 2 * 1.05))


def _drop(metric: Metric, mine: Score, theirs: Score) -> tuple[float, float, float]:
    sign = -1.0 if metric.falls else 1.0
    drop = sign * (theirs.value - mine.value)
    if mine.per_sample is None or theirs.per_sample is None:
        return drop, *_bootstrap_whole(mine, theirs, sign)
    a, b = mine.per_sample, theirs.per_sample
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        lost, gained = int((b > a).sum()), int((a > b).sum())
        low, high = drop_interval(lost, gained, mine.n)
        return (drop, low, high) if sign > 0 else (drop, -high, -low)
    return drop, *_bootstrap_means(sign * (b - a))


def _bootstrap_means(differences: NDArray[np.float64]) -> tuple[float, float]:
    rng = np.random.default_rng(0)  # the same samples have the same interval
    n, means = len(differences), []
    rounds = max(1, AT_A_TIME // n)
    for start in range(0, RESAMPLES_OF_MEANS, rounds):
        many = min(rounds, RESAMPLES_OF_MEANS - start)
        means.append(differences[rng.integers(0, n, (many, n))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def _bootstrap_whole(mine: Score, theirs: Score, sign: float) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(RESAMPLES):
        picks = rng.integers(0, mine.n, mine.n)
        weights = np.bincount(picks, minlength=mine.n).astype(np.float64)
        drops.append(sign * (theirs.of(weights) - mine.of(weights)))
    low, high = np.quantile(drops, [0.025, 0.975])
    return float(low), float(high)


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
    drop, low, high = _drop(metric, mine, theirs)
    return Slice(name, group, mine.n, mine.value, drop, low, high)
