"""Charts that say the truth: shares stay shares, tails are shown, and every text is escaped."""

import xml.etree.ElementTree as ET

import pytest

from fleet.console.charts import histogram_svg, interval_svg
from fleet.histograms import Histogram

SVG = "{http://www.w3.org/2000/svg}"


def numeric(base: list[float], live: list[float], edges: list[float], **more: int) -> Histogram:
    labels = ["below", *(f"bin {n}" for n in range(len(edges) - 1)), "above"]
    sizes = {"baseline_n": 100, "live_n": 100} | more
    return Histogram("brightness", "numeric", labels, base, live, edges=edges, **sizes)


def parsed(histogram: Histogram) -> ET.Element:
    markup = str(histogram_svg(histogram)).replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1)
    return ET.fromstring(markup)


def told(histogram: Histogram) -> list[tuple[float, float]]:
    """The training and live percentages that the cells tell."""
    titles = [title.text or "" for title in parsed(histogram).iter(f"{SVG}title")]
    pairs = [text.partition(": training ")[2].split(", live ") for text in titles]
    return [(float(a.rstrip("%")), float(b.rstrip("%"))) for a, b in pairs]


def test_shares_add_up_however_bins_are_cut() -> None:
    histogram = numeric([0, 0.25, 0.25, 0.5, 0], [0.5, 0.1, 0.1, 0.1, 0.2], [0.0, 1.0, 1.5, 9.0])
    cells = told(histogram)
    assert sum(base for base, _ in cells) == pytest.approx(100, abs=2)
    assert sum(live for _, live in cells) == pytest.approx(100, abs=2)


def test_equal_rows_in_unequal_bins_are_a_hill_and_no_plain() -> None:
    cells = told(numeric([0, 0.25, 0.25, 0.25, 0.25, 0], [0.0] * 6, [0.0, 8.0, 9.0, 10.0, 18.0]))
    heights = [base for base, _ in cells]
    assert max(heights) > 3 * heights[0]
    assert heights.index(max(heights)) in range(9, 15)


def test_what_lies_beyond_the_edges_stands_apart() -> None:
    beyond = parsed(numeric([0, 0.5, 0.5, 0], [0.6, 0.2, 0.2, 0], [0.0, 1.0, 2.0]))
    inside = parsed(numeric([0, 0.5, 0.5, 0], [0.0, 0.5, 0.5, 0], [0.0, 1.0, 2.0]))
    assert len(beyond.findall(f"{SVG}polyline")) == 2
    assert len(inside.findall(f"{SVG}polyline")) == 1
    assert "below" in str(histogram_svg(numeric([0, 1, 0, 0], [1, 0, 0, 0], [0.0, 1.0, 2.0])))


def test_an_axis_over_many_decades_is_logarithmic() -> None:
    edges = [1.0, 10.0, 100.0, 1000.0, 10_000.0]
    cells = told(numeric([0, 0.25, 0.25, 0.25, 0.25, 0], [0.0] * 6, edges))
    heights = [base for base, _ in cells]
    assert max(heights) < 1.2 * min(heights)


def test_nothing_known_and_nothing_seen_are_still_pictures() -> None:
    edges = [0.0, 1.0, 2.0]
    empty = numeric([0.0] * 4, [0.0] * 4, edges, baseline_n=0, live_n=0)
    assert not parsed(empty).findall(f"{SVG}polyline")
    assert "nothing is known" in parsed(empty).attrib["aria-label"]
    one = numeric([0.0] * 4, [0, 1, 0, 0], [5.0, 5.0, 5.0], baseline_n=0)
    assert parsed(one).findall(f"{SVG}polyline")


def test_few_categories_are_all_named_and_empty_others_left_out() -> None:
    labels = ["a<b", "c", "other", "unseen"]
    chart = Histogram("prediction", "categorical", labels, [0.5, 0.5, 0, 0], [0.9, 0.1, 0, 0], 9, 9)
    texts = [text.text for text in parsed(chart).iter(f"{SVG}text")]
    assert texts == ["a<b", "c"]
    unseen = Histogram("p", "categorical", labels, [0.5, 0.5, 0, 0], [0.5, 0.1, 0, 0.4], 9, 9)
    assert len(told(unseen)) == 4


def test_an_interval_is_drawn_against_its_limit_and_said_in_words() -> None:
    metric = {"name": "prediction", "state": "failed", "effect": 0.32, "low": 0.24, "high": 0.4,
              "floor": 0.15}  # fmt: skip
    drawn = str(interval_svg(metric))
    assert 'class="interval failed"' in drawn
    assert "0.32, from 0.24 to 0.4; limit 0.15" in drawn
    flat = interval_svg(metric | {"effect": 0.0, "low": 0.0, "high": 0.0, "floor": 0.0})
    assert "nan" not in flat
