"""Charts as SVG, made on the server: baseline against live, on the baseline's bins.

Colours come from the style sheet by class, so that a chart follows the reader's
light or dark; a text beside the picture says the same to those who cannot see it.
"""

from typing import Final

from markupsafe import Markup, escape

from fleet.histograms import Histogram

__all__ = ["histogram_svg"]

WIDTH: Final = 320
HEIGHT: Final = 120
FOOT: Final = 16  # room for the labels below the axis
GAP: Final = 1.0


def histogram_svg(histogram: Histogram) -> Markup:
    """Return a chart of shares: the baseline as filled steps, the live data as a line."""
    cells = len(histogram.labels)
    top = max([*histogram.baseline, *histogram.live, 0.01])
    step = WIDTH / max(1, cells)
    floor = HEIGHT - FOOT

    def y(share: float) -> float:
        return round(floor - share / top * (floor - 8), 1)

    bars = [
        Markup('<rect class="base" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
            round(index * step + GAP / 2, 1),
            y(share),
            round(max(0.5, step - GAP), 1),
            round(floor - y(share), 1),
            _title(histogram, index),
        )
        for index, share in enumerate(histogram.baseline)
    ]  # fmt: skip
    points = " ".join(
        f"{round(x, 1)},{y(share)}"
        for index, share in enumerate(histogram.live)
        for x in (index * step, (index + 1) * step)
    )
    first, last = _ends(histogram)
    return Markup(
        '<svg class="histogram" viewBox="0 0 {w} {h}" role="img" aria-label="{label}">'
        '{bars}<polyline class="live" points="{points}"/>'
        '<line class="axis" x1="0" y1="{floor}" x2="{w}" y2="{floor}"/>'
        '<text x="0" y="{foot}">{first}</text>'
        '<text x="{w}" y="{foot}" text-anchor="end">{last}</text></svg>'
    ).format(
        w=WIDTH,
        h=HEIGHT,
        label=f"{histogram.column}: {_difference(histogram)}",
        bars=Markup("").join(bars),
        points=points,
        floor=floor,
        foot=HEIGHT - 3,
        first=first,
        last=last,
    )


def _title(histogram: Histogram, index: int) -> Markup:
    base, live = histogram.baseline[index], histogram.live[index]
    return escape(f"{histogram.labels[index]}: training {base:.1%}, live {live:.1%}")


def _ends(histogram: Histogram) -> tuple[str, str]:
    if histogram.kind == "categorical":
        named = histogram.labels[:-2]  # without other and unseen
        return (named[0], named[-1]) if named else ("", "")
    low = histogram.labels[0].removeprefix("below ")
    return low, histogram.labels[-1].removeprefix("above ")


def _difference(histogram: Histogram) -> str:
    pairs = zip(histogram.baseline, histogram.live, strict=True)
    moved = sum(abs(base - live) for base, live in pairs) / 2
    return f"{moved:.0%} of the live rows lie elsewhere than in training"
