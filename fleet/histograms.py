"""Baseline against live, column by column, on the baseline's own bins."""

from collections.abc import Mapping
from typing import Final

import msgspec

from fleet.queries import Queries
from skerry.canonical import from_msgpack
from skerry.errors import NotFoundError
from skerry.manifest import Baseline, BaselineColumn
from skerry.sketch import CategoricalSpec, Column, NumericCounts, merge_columns

__all__ = ["Histogram", "histograms"]

MAX_BASELINE_BYTES: Final = 4 << 20
MAX_COLUMNS_BYTES: Final = 1 << 20


class Histogram(msgspec.Struct, frozen=True):
    """Shares of one column: the training data's and a device's latest windows'.

    `labels` name the cells, the first and last being below and above the edges of a
    numeric column; `edges` are those, none for a categorical one. Shares add up to 1
    each, unless there is nothing.
    """

    column: str
    kind: str  # numeric, categorical
    labels: list[str]
    baseline: list[float]
    live: list[float]
    baseline_n: int
    live_n: int
    edges: list[float] = []
    slice: str = ""  # whose training data it is, such as ``site:harbour``; empty for all of it


def histograms(
    queries: Queries, device: str, model: str, windows: int, slice: str | None = None
) -> list[Histogram]:
    """Return a device's latest windows of a model beside the baseline of its bundle.

    Args:
        queries: of the fleet.
        device: its id.
        model: its name.
        windows: how many to merge.
        slice: whose part of the baseline, ``name:group``; empty for the whole; None for the
            first slice of the baseline that the device's tags name a group of.

    Raises:
        NotFoundError: no such slice in this baseline.
    """
    rows = queries.latest_windows(device, model, max(1, min(windows, 200)))
    if not rows:
        return []
    bundle = rows[0].bundle  # the latest; windows of other bundles stand on other edges
    baseline = from_msgpack(queries.baseline(bundle), Baseline, limit=MAX_BASELINE_BYTES)
    live: dict[str, Column] = {}
    for row in rows:
        if row.bundle == bundle:
            columns = from_msgpack(row.columns, dict[str, Column], limit=MAX_COLUMNS_BYTES)
            live = merge_columns(live, columns)
    if slice is None:
        slice = _own_slice(baseline, queries.tags(device))
    part = _group(baseline, slice)
    return [
        _histogram(name, known, part.get(name, known.counts), live[name], slice)
        for name, known in baseline.columns.items()
        if name in live
    ]


def _own_slice(baseline: Baseline, tags: Mapping[str, str]) -> str:
    return next(
        (f"{name}:{tags[name]}" for name, groups in baseline.slices.items()
         if tags.get(name) in groups),
        "",
    )  # fmt: skip


def _group(baseline: Baseline, slice: str) -> Mapping[str, Column]:
    if not slice:
        return {}
    name, _, group = slice.partition(":")
    found = baseline.slices.get(name, {}).get(group)
    if found is None:
        have = [f"{name}:{group}" for name, groups in baseline.slices.items() for group in groups]
        raise NotFoundError(
            f"expected a slice of the baseline ({', '.join(have)[:500] or 'it has none'}), "
            f"got {slice[:80]!r}"
        )
    return found.columns


def _histogram(
    name: str, known: BaselineColumn, counts: Column, live: Column, slice: str
) -> Histogram:
    spec = known.spec
    if isinstance(spec, CategoricalSpec):
        labels = [*spec.values, "other", "unseen"]
    else:
        inner = [
            f"{low:.3g} to {high:.3g}"
            for low, high in zip(spec.edges, spec.edges[1:], strict=False)
        ]
        labels = [f"below {spec.edges[0]:.3g}", *inner, f"above {spec.edges[-1]:.3g}"]
    return Histogram(
        column=name,
        kind="categorical" if isinstance(spec, CategoricalSpec) else "numeric",
        labels=labels,
        baseline=_shares(counts),
        live=_shares(live),
        baseline_n=counts.n,
        live_n=live.n,
        edges=[] if isinstance(spec, CategoricalSpec) else list(spec.edges),
        slice=slice,
    )


def _shares(column: Column) -> list[float]:
    if isinstance(column, NumericCounts):
        cells = [column.below, *column.bins, column.above]
    else:
        cells = [*column.counts, column.other, column.unseen]
    total = sum(cells)
    return [cell / total if total else 0.0 for cell in cells]
