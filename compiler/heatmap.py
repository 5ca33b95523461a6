"""A page that shows an attribution: bars for features, squares over an image."""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.explain import Attribution

__all__ = ["heat_page"]

SIZE: Final = 320
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2733; --page: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --page: #151b21; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; } svg text { font: 12px system-ui,
  sans-serif; fill: var(--ink); } figure { display: inline-block; margin: 0 1rem 1rem 0; }
"""


def heat_page(
    told: str, found: Attribution, sample: NDArray[Any], words: Sequence[str] = ()
) -> str:
    """Return an HTML page that needs nothing else.

    Args:
        told: what is explained, in words.
        found: the attribution.
        sample: the input.
        words: of a text; what the values are of.
    """
    body = _bars(found.values, words) if found.values.ndim == 1 else _maps(found.values, sample)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Why</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(told)}</h1>"
        f"<p>{found.answer:.4f}, usually {found.usual:.4f}. Red spoke for it, blue against.</p>"
        f"{body}</body></html>\n"
    )


def _bars(values: NDArray[np.float64], words: Sequence[str]) -> str:
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    order = np.argsort(-np.abs(values), kind="stable")[:30].tolist()
    rows = []
    for line, place in enumerate(order):
        length = 250 * abs(float(values[place])) / largest
        x = 350 if values[place] >= 0 else 350 - length
        rows.append(
            f'<text x="0" y="{20 * line + 15}">{escape(words[place][:14]) if words else place}</text>'
            f'<rect x="{x:.1f}" y="{20 * line + 4}" width="{length:.1f}" height="14" '
            f'fill="{_colour(float(values[place]) / largest)}"/>'
            f'<text x="620" y="{20 * line + 15}">{values[place]:+.4f}</text>'
        )
    return f'<svg width="700" height="{20 * len(order) + 10}" role="img">{"".join(rows)}</svg>'


def _maps(values: NDArray[np.float64], sample: NDArray[Any]) -> str:
    grid = values.reshape(-1, values.shape[-1])
    largest = float(np.abs(grid).max()) or 1.0
    picture = sample.reshape(-1, *sample.shape[-2:]).astype(np.float64).mean(axis=0)
    low, high = float(picture.min()), float(picture.max())
    grey = (picture - low) / (high - low or 1.0)
    shown = _squares(grey, lambda v: f"rgb({int(255 * v)},{int(255 * v)},{int(255 * v)})")
    heat = _squares(grid / largest, _colour)
    return f"<figure>{shown}<figcaption>the input</figcaption></figure><figure>{heat}<figcaption>what the answer loses where it is hidden</figcaption></figure>"


def _squares(values: NDArray[np.float64], colour: Any) -> str:
    rows, columns = values.shape
    width, height = SIZE / columns, SIZE / rows
    cells = [
        f'<rect x="{c * width:.1f}" y="{r * height:.1f}" width="{width + 0.5:.1f}" '
        f'height="{height + 0.5:.1f}" fill="{colour(float(values[r, c]))}"/>'
        for r in range(rows)
        for c in range(columns)
    ]
    return f'<svg width="{SIZE}" height="{SIZE}" role="img">{"".join(cells)}</svg>'


def _colour(share: float) -> str:
    """Return red for 1, white for 0, blue for -1."""
    fade = int(255 * (1 - min(1.0, abs(share))))
    return f"rgb(255,{fade},{fade})" if share >= 0 else f"rgb({fade},{fade},255)"
