"""Charts as SVG, made on the server: baseline against live, and a metric against its limit.

Colours come from the style sheet by class, so that a chart follows the reader's
light or dark; a text beside the picture says the same to those who cannot see it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup, escape

from fleet.histograms import Histogram

__all__ = ["histogram_svg", "interval_svg"]

WIDTH: Final = 320
HEIGHT: Final = 120
FOOT: Final = 16  # room for the labels below the axis
HEAD: Final = 6
GAP: Final = 1.0
GRID: Final = (
    24  # equal steps of a numeric axis: the baseline's bins are equal in rows, not in width
)
TAIL: Final = 0.005  # share of rows on either side that does not stretch the axis
LOG_FROM: Final = 1000.0  # an axis over more than this ratio is logarithmic
NAMED: Final = 12  # categories that all get their label
UNNAMED: Final = frozenset({"other", "unseen"})


@dataclass(frozen=True, slots=True)
class _Cell:
    """One step of the picture: shares of training and live rows, and what to say of it."""

    label: str
    base: float
    live: float
    apart: bool = False  # beyond the axis, drawn with a gap


def histogram_svg(histogram: Histogram) -> Markup:
    """Return a chart of shares: the baseline as filled steps, the live data as a line."""
    if histogram.kind == "categorical":
        cells, marks = _categories(histogram)
    else:
        cells, marks = _steps(histogram)
    top = max([*(cell.base for cell in cells), *(cell.live for cell in cells), 0.01])
    floor = HEIGHT - FOOT
    step = WIDTH / max(1, len(cells))

    def y(share: float) -> float:
        return round(floor - share / top * (floor - HEAD), 1)

    bars: list[Markup] = []
    lines: list[list[tuple[float, float]]] = []
    run: list[tuple[float, float]] = []
    for index, cell in enumerate(cells):
        left, right = index * step, (index + 1) * step
        # the ends stand apart: they hold all that lies beyond the axis
        left += 3 * GAP if cell.apart and index else 0.0
        right -= 3 * GAP if cell.apart and not index else 0.0
        bars.append(
            Markup('<rect class="base" x="{}" y="{}" width="{}" height="{}"/>').format(
                round(left + GAP / 2, 1), y(cell.base),
                round(max(0.5, right - left - GAP), 1), round(floor - y(cell.base), 1),
            )
        )  # fmt: skip
        if cell.apart and run:
            lines.append(run)
            run = []
        run += [(round(left, 1), y(cell.live)), (round(right, 1), y(cell.live))]
        if cell.apart:
            lines.append(run)
            run = []
    lines += [run] if run else []
    return Markup(
        '<svg class="histogram" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
        '{bars}{lines}<line class="axis" x1="0" y1="{floor}" x2="{w}" y2="{floor}"/>'
        "{marks}{titles}</svg>"
    ).format(
        w=WIDTH,
        h=HEIGHT,
        label=f"{histogram.column}: {_difference(histogram)}",
        bars=_joined(bars),
        lines=_joined(_line(run, floor) for run in lines) if histogram.live_n else "",
        floor=floor,
        marks=_marks(marks, step),
        titles=_joined(_title(cell, index, step) for index, cell in enumerate(cells)),
    )


def interval_svg(metric: Mapping[str, Any]) -> Markup:
    """Return a metric's effect with its interval, against the floor that it is held to."""
    neutral = 1.0 if metric["name"] == "latency_us" else 0.0  # a ratio, or a difference
    low, high, effect, floor = (float(metric[k]) for k in ("low", "high", "effect", "floor"))
    left, right = min(low, neutral), max(high, floor)
    reach = max(right - left, 1e-9) * 1.1

    def x(value: float) -> float:
        return round(4 + (value - left) / reach * 152, 1)

    return Markup(
        '<svg class="interval {state}" viewBox="0 0 160 18" role="img" aria-label="{label}">'
        '<line class="axis" x1="{zero}" y1="3" x2="{zero}" y2="15"/>'
        '<line class="floor" x1="{floor}" y1="1" x2="{floor}" y2="17"/>'
        '<line class="range" x1="{low}" y1="9" x2="{high}" y2="9"/>'
        '<circle cx="{effect}" cy="9" r="3.5"/></svg>'
    ).format(
        state=metric["state"],
        label=f"{effect:.3g}, from {low:.3g} to {high:.3g}; limit {floor:g}",
        zero=x(neutral),
        floor=x(floor),
        low=x(low),
        high=x(high),
        effect=x(effect),
    )


# --- cells --------------------------------------------------------------------------


def _categories(histogram: Histogram) -> tuple[list[_Cell], dict[int, str]]:
    triples = zip(histogram.labels, histogram.baseline, histogram.live, strict=True)
    cells = [_Cell(*triple) for triple in triples]
    while cells and cells[-1].label in UNNAMED and not (cells[-1].base or cells[-1].live):
        cells.pop()
    if len(cells) <= NAMED:
        return cells, {index: cell.label for index, cell in enumerate(cells)}
    return cells, {0: cells[0].label, len(cells) - 1: cells[-1].label}


def _steps(histogram: Histogram) -> tuple[list[_Cell], dict[int, str]]:
    """Spread the counts of unequal bins over equal steps, as if rows lay evenly in a bin."""
    edges, curves = histogram.edges, (_curve(histogram.baseline), _curve(histogram.live))
    logs = edges[0] > 0 and edges[-1] / edges[0] > LOG_FROM
    scale, unscale = (math.log, math.exp) if logs else (float, float)
    marks = [scale(edge) for edge in edges]
    seen = [curve for curve in curves if curve[-1] > 0]
    low = min((_where(marks, curve, TAIL) for curve in seen), default=marks[0])
    high = max((_where(marks, curve, 1 - TAIL) for curve in seen), default=marks[-1])
    if not high > low:
        low, high = marks[0], marks[-1]
    grid = [low + (high - low) * step / GRID for step in range(GRID + 1)]
    sums = [[_reached(marks, curve, mark) for mark in grid] for curve in curves]
    shares = [[b - a for a, b in zip(sums[i], sums[i][1:], strict=False)] for i in (0, 1)]
    names = [_short(unscale(mark)) for mark in grid]
    cells = [
        _Cell(f"{names[i]} to {names[i + 1]}", shares[0][i], shares[1][i]) for i in range(GRID)
    ]
    beyond = [
        max(0.0, curve[-1] - reached[-1]) for curve, reached in zip(curves, sums, strict=True)
    ]
    ends = (
        _Cell(f"below {names[0]}", sums[0][0], sums[1][0], apart=True),
        _Cell(f"above {names[-1]}", beyond[0], beyond[1], apart=True),
    )
    before = [ends[0]] if max(ends[0].base, ends[0].live) > 2 * TAIL else []
    after = [ends[1]] if max(ends[1].base, ends[1].live) > 2 * TAIL else []
    first = len(before)
    labels = {first: names[0], first + GRID - 1: names[-1]}
    return [*before, *cells, *after], labels


def _curve(cells: Sequence[float]) -> list[float]:
    """Return the share of rows below each edge, and the total at the end."""
    curve, total = [], 0.0
    for cell in cells:
        total += cell
        curve.append(total)
    return curve


def _reached(marks: Sequence[float], curve: Sequence[float], at: float) -> float:
    """Return the share of rows below a place on the axis."""
    for index in range(1, len(marks)):
        if at <= marks[index]:
            width = marks[index] - marks[index - 1]
            part = (at - marks[index - 1]) / width if width > 0 else 1.0
            return curve[index - 1] + (curve[index] - curve[index - 1]) * max(0.0, part)
    return curve[len(marks) - 1]


def _where(marks: Sequence[float], curve: Sequence[float], share: float) -> float:
    """Return the place on the axis below which that share of rows lies."""
    for index in range(1, len(marks)):
        if curve[index] >= share:
            step = curve[index] - curve[index - 1]
            part = (share - curve[index - 1]) / step if step > 0 else 1.0
            return marks[index - 1] + (marks[index] - marks[index - 1]) * min(1.0, max(0.0, part))
    return marks[-1]


# --- drawing ------------------------------------------------------------------------


def _line(points: Sequence[tuple[float, float]], floor: float) -> Markup:
    first, last = points[0][0], points[-1][0]
    path = " ".join(f"{x},{y}" for x, y in points)
    return Markup(
        '<polygon class="under" points="{},{} {} {},{}"/><polyline class="live" points="{}"/>'
    ).format(first, floor, path, last, floor, path)


def _marks(marks: Mapping[int, str], step: float) -> Markup:
    placed = []
    for index, text in marks.items():
        middle = round((index + 0.5) * step, 1)
        if len(marks) > 2:
            place, anchor = middle, "middle"
        elif index == min(marks):
            place, anchor = round(index * step, 1), "start"
        else:
            place, anchor = round((index + 1) * step, 1), "end"
        placed.append(
            Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
                place, HEIGHT - 3, anchor, text
            )
        )
    return _joined(placed)


def _title(cell: _Cell, index: int, step: float) -> Markup:
    """Return a strip over the whole height that says what is below the pointer."""
    return Markup(
        '<rect class="ask" x="{}" y="0" width="{}" height="{}"><title>{}</title></rect>'
    ).format(
        round(index * step, 1),
        round(step, 1),
        HEIGHT - FOOT,
        escape(f"{cell.label}: training {cell.base:.1%}, live {cell.live:.1%}"),
    )


def _joined(parts: Any) -> Markup:
    return Markup("").join(parts)


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _difference(histogram: Histogram) -> str:
    if not histogram.baseline_n:
        return f"{histogram.live_n} live rows; nothing is known of it from training"
    pairs = zip(histogram.baseline, histogram.live, strict=True)
    moved = sum(abs(base - live) for base, live in pairs) / 2
    return f"{moved:.0%} of the live rows lie elsewhere than in training"
