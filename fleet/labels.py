"""How right releases were in the field: the error sketches of labels that came later.

Each release and variant is set against its own predictions: so many labelled of so many
predicted, and without a label nothing is claimed. The interval of a share is Wilson's (1927), at
95 %; it tells how few labels blur it, not that some predictions are labelled sooner than others.
"""

import math
from collections import defaultdict
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, select

from fleet.schema import contexts, error_windows, releases, windows
from skerry.canonical import from_json, from_msgpack, to_msgpack
from skerry.errors import FormatError
from skerry.feedback import ErrorSketch, finite, merge_errors
from skerry.manifest import Manifest
from skerry.sketch import big_to_int

__all__ = [
    "Confused",
    "LabelReport",
    "LabelWindow",
    "ReleaseErrors",
    "error_row",
    "label_report",
    "wilson",
]

Z: Final = 1.959963984540054  # of a normal distribution, 95 % two-sided
MAX_WINDOWS: Final = 100  # of each release, the latest
MAX_MERGED: Final = 2000  # sketches that are merged to tell which class was taken for which
MAX_CONFUSED: Final = 20


class LabelWindow(msgspec.Struct, frozen=True):
    """The labelled predictions of one window of prediction, of all devices together."""

    start: float  # Unix seconds
    length_s: float
    predicted: int
    labelled: int
    accuracy: float | None = None
    mae: float | None = None


class Confused(msgspec.Struct, frozen=True):
    """One class that was taken for another."""

    predicted: str
    label: str
    n: int


class ReleaseErrors(msgspec.Struct, frozen=True):
    """How right one variant of a release was.

    Attributes:
        predicted: predictions in the windows that came.
        labelled: of these, how many have a label so far.
        measure: ``accuracy``, ``error`` for values, ``unmeasured`` without a label.
        accuracy: share of the labelled whose class was right, with its interval.
        mae: mean absolute error, of values.
        rmse: root of the mean squared error, of values.
        measured: values whose error is a finite number.
        confused: which classes were taken for which, most first; of the latest sketches.
        windows: by window of prediction, the latest.
    """

    model_version: str
    bundle: str
    variant: str
    predicted: int
    labelled: int
    measure: str
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    mae: float | None = None
    rmse: float | None = None
    measured: int = 0
    confused: list[Confused] = []
    windows: list[LabelWindow] = []


class LabelReport(msgspec.Struct, frozen=True):
    """How right the releases of a model were, newest first."""

    model: str
    since: float  # Unix seconds; windows before are left out
    releases: list[ReleaseErrors]


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's interval of a share, 95 %.

    Args:
        right: how many of them.
        n: at least 1.
    """
    share = right / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    # at the ends the two terms are equal, and rounding must not take the share out of it
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def error_row(sketch: ErrorSketch, context: int, now: float) -> dict[str, Any]:
    """Return a sketch as a row of `error_windows`, but for its key.

    Args:
        sketch: sound.
        context: its place in the table of contexts.
        now: Unix seconds.
    """
    return {
        "context": context,
        "start": sketch.start,
        "length_s": sketch.length_s,
        "n": sketch.n,
        "correct": sketch.correct if sketch.errors is None else None,
        "measured": finite(sketch),
        "abs_total": big_to_int(sketch.abs_sum) / sketch.scale,
        "sq_total": big_to_int(sketch.sq_sum) / sketch.scale**2,
        "body": to_msgpack(sketch),
        "stored_at": now,
    }


def label_report(connection: Connection, model: str, since: float) -> LabelReport:
    """Return how right the releases of a model were.

    Args:
        connection: to the database.
        model: of any version.
        since: Unix seconds.
    """
    c = contexts.c
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    query = select(c.context, c.model_version, c.bundle, c.variant).where(c.model == model)
    for row in connection.execute(query.order_by(c.context)):
        found[row.model_version, row.bundle, row.variant].append(row.context)
    reports = [
        report
        for (version, bundle, variant), ids in reversed(found.items())
        if (report := _release(connection, (version, bundle, variant), ids, since)) is not None
    ]
    return LabelReport(model, since, reports)


def _release(
    connection: Connection, release: tuple[str, str, str], ids: list[int], since: float
) -> ReleaseErrors | None:
    w, e = windows.c, error_windows.c
    predicted = connection.scalar(select(func.sum(w.n)).where(w.context.in_(ids), w.start >= since))
    whole = connection.execute(_sums(ids, since)).one()
    if not predicted and not whole.n:
        return None
    count = int(predicted or 0)
    if not whole.n:
        return ReleaseErrors(*release, count, 0, "unmeasured")
    latest = connection.execute(
        _sums(ids, since)
        .add_columns(e.start, e.length_s)
        .group_by(e.start, e.length_s)
        .order_by(e.start.desc())
        .limit(MAX_WINDOWS)
    ).all()
    by_start = _predicted(connection, ids, latest[-1].start)
    n, right = int(whole.n), None if whole.correct is None else int(whole.correct)
    return ReleaseErrors(
        *release,
        count,
        n,
        "error" if right is None else "accuracy",
        accuracy=None if right is None else right / n,
        accuracy_interval=None if right is None else wilson(right, n),
        mae=_mean(whole.abs_total, whole.measured),
        rmse=_root(_mean(whole.sq_total, whole.measured)),
        measured=int(whole.measured),
        confused=[] if right is None else _confused(connection, release[1], ids, since),
        windows=[
            LabelWindow(
                row.start,
                row.length_s,
                by_start.get((row.start, row.length_s), 0),
                int(row.n),
                None if row.correct is None else int(row.correct) / int(row.n),
                _mean(row.abs_total, row.measured),
            )
            for row in reversed(latest)
        ],
    )


def _sums(ids: list[int], since: float) -> Any:
    e = error_windows.c
    return select(
        func.sum(e.n).label("n"),
        func.sum(e.correct).label("correct"),
        func.sum(e.measured).label("measured"),
        func.sum(e.abs_total).label("abs_total"),
        func.sum(e.sq_total).label("sq_total"),
    ).where(e.context.in_(ids), e.start >= since)


def _predicted(
    connection: Connection, ids: list[int], since: float
) -> dict[tuple[float, float], int]:
    w = windows.c
    query = (
        select(w.start, w.length_s, func.sum(w.n).label("n"))
        .where(w.context.in_(ids), w.start >= since)
        .group_by(w.start, w.length_s)
    )
    return {(row.start, row.length_s): int(row.n) for row in connection.execute(query)}


def _confused(connection: Connection, bundle: str, ids: list[int], since: float) -> list[Confused]:
    e = error_windows.c
    query = select(e.body).where(e.context.in_(ids), e.start >= since)
    merged: ErrorSketch | None = None
    for body in connection.scalars(query.order_by(e.start.desc()).limit(MAX_MERGED)):
        sketch = from_msgpack(bytes(body), ErrorSketch)
        try:
            merged = sketch if merged is None else merge_errors(merged, sketch)
        except FormatError:
            continue  # one device's mistake
    if merged is None:
        return []
    names = _class_names(connection, bundle)

    def name(place: int) -> str:
        return names[place] if place < len(names) else str(place)

    cells = merged.confusion
    wrong = [
        Confused(name(said), name(was), n)
        for said, was, n in zip(cells[::3], cells[1::3], cells[2::3], strict=True)
        if said != was
    ]
    return sorted(wrong, key=lambda pair: -pair.n)[:MAX_CONFUSED]


def _class_names(connection: Connection, bundle: str) -> list[str]:
    text = connection.scalar(select(releases.c.manifest).where(releases.c.bundle == bundle))
    if text is None:
        return []
    manifest = from_json(text.encode(), Manifest)
    outputs = {output.name: output for output in manifest.outputs}
    return outputs[manifest.prediction.output].class_names


def _mean(total: float | None, n: int | None) -> float | None:
    return float(total) / int(n) if n and total is not None else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)
