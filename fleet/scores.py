"""The score of a window in a feature: the mean normal score of its rows among the baseline's bins."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fleet.windows import DeviceWindow
from skerry.manifest import Baseline
from skerry.sketch import NumericCounts, NumericSpec

__all__ = ["Tables", "scores", "tables", "training"]

Floats = NDArray[np.float64]
Tables = dict[str, Floats]  # feature -> scores of its cells


def _bin_scores(spec: NumericSpec, baseline: NumericCounts) -> Floats:
    """Return the normal score of each cell: below, the bins, above."""
    bins = np.asarray(baseline.bins, dtype=np.float64)
    ranks = (np.cumsum(bins) - bins / 2.0) / max(1.0, bins.sum())
    normal = NormalDist()
    inner = [normal.inv_cdf(min(max(float(rank), 1e-4), 1.0 - 1e-4)) for rank in ranks]
    # beyond everything that training saw: one step further than its outermost bins
    step = 1.0
    return np.array([inner[0] - step, *inner, inner[-1] + step])


def scores(windows: Sequence[DeviceWindow], names: Sequence[str], tables: Tables) -> Floats:
    """Return the score of each window and feature: float [windows, features]."""
    made = np.zeros((len(windows), len(names)))
    for index, name in enumerate(names):
        if (cells := tables.get(name)) is None:
            continue
        counts = np.array([_counts(w.columns.get(name), len(cells)) for w in windows], np.float64)
        total = counts.sum(1)
        np.divide(counts @ cells, total, out=made[:, index], where=total > 0)
    return made


def _counts(column: object, cells: int) -> list[int]:
    if not isinstance(column, NumericCounts) or len(column.bins) + 2 != cells:
        return [0] * cells
    return [column.below, *column.bins, column.above]


def tables(baseline: Baseline, names: Sequence[str]) -> Tables:
    """Return the score of every cell of every feature that the baseline knows."""
    tables = {}
    for name in names:
        column = baseline.columns.get(name)
        if column is None or not isinstance(column.spec, NumericSpec):
            continue
        if isinstance(column.counts, NumericCounts):
            tables[name] = _bin_scores(column.spec, column.counts)
    return tables


def training(baseline: Baseline, site: str, tables: Tables, names: Sequence[str]) -> Floats:
    """Return where a site's own training data stand among all of it: 0 where it has none."""
    part = baseline.slices.get("site", {}).get(site)
    made = np.zeros(len(names))
    for index, name in enumerate(names):
        if part is not None and name in part.columns and (cells := tables.get(name)) is not None:
            counts = np.array(_counts(part.columns[name], len(cells)), np.float64)
            made[index] = counts @ cells / max(1.0, counts.sum())
    return made
