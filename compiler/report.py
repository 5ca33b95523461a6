"""The report of a build for people: Markdown, and one HTML page that needs nothing else.

Both are made of the evaluation record alone, so that they can be made again from it.
"""

from html import escape
from typing import Final

from compiler.record import Record, VariantRecord

__all__ = ["html_report", "markdown_report"]

HEAD: Final = (
    "form", "bytes", "metric", "worse than fp32 (95 %)", "agreement", "SQNR", "CPU time to fp32",
    "ships", "why",
)  # fmt: skip

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2733; --dim: #5d6b7a; --line: #d5dbe2; --page: #ffffff;
  --good: #1d7a46; --bad: #b3372e; --fp32: #3b6ea5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --dim: #9aa7b5; --line: #36424f;
  --page: #151b21; --good: #5fcf8f; --bad: #ef8378; --fp32: #8ab8e8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } p.sub { color: var(--dim); margin-top: .2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { color: var(--dim); font-weight: 600; }
td.n { text-align: right; } tr.ships td:first-child { font-weight: 600; color: var(--good); }
figure { margin: 1.5rem 0; overflow-x: auto; } figcaption { color: var(--dim); }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .axis { stroke: var(--line); }
svg .tick { fill: var(--dim); }
"""


def markdown_report(record: Record) -> str:
    """Return the report as Markdown."""
    rows = [_cells(record, v) for v in record.variants]
    lines = [
        f"# {record.model} {record.model_version}",
        "",
        _summary(record),
        "",
        "| " + " | ".join(_head(record)) + " |",
        "|" + "---|" * len(HEAD),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    if record.elsewhere:
        lines += ["", "On other CPUs, emulated:", ""]
        lines += [f"- {text}" for text in _elsewhere(record)]
    if record.notes:
        lines += ["", "Notes:", "", *(f"- {note}" for note in record.notes)]
    return "\n".join(lines) + "\n"


def html_report(record: Record) -> str:
    """Return the report as one HTML page, its picture included."""
    title = f"{record.model} {record.model_version}"
    head = "".join(f"<th>{escape(name)}</th>" for name in _head(record))
    body = "".join(
        f'<tr class="{"ships" if v.shipped else ""}">'
        + "".join(
            f"<td{' class=n' if 0 < i < 7 else ''}>{escape(cell)}</td>"
            for i, cell in enumerate(_cells(record, v))
        )
        + "</tr>"
        for v in record.variants
    )
    lists = ""
    for heading, items in (
        ("On other CPUs, emulated", _elsewhere(record)),
        ("Notes", record.notes),
    ):
        if items:
            inner = "".join(f"<li>{escape(item)}</li>" for item in items)
            lists += f"<h2>{heading}</h2><ul>{inner}</ul>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(_summary(record))}</p>'
        f"{_picture(record)}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"{lists}</body></html>\n"
    )


def _summary(record: Record) -> str:
    many = "one candidate" if record.evaluations == 1 else f"{record.evaluations} candidates"
    return (
        f"{record.metric} on {record.n:,} samples, on {record.host.hw_class} with onnxruntime "
        f"{record.tools.onnxruntime}; {many} in {record.seconds:.0f} s; "
        f"bundle {record.bundle}"
    )


def _head(record: Record) -> tuple[str, ...]:
    return tuple(record.metric if name == "metric" else name for name in HEAD)


def _cells(record: Record, v: VariantRecord) -> tuple[str, ...]:
    reference = next((r.bytes for r in record.variants if r.precision == "fp32"), 0)
    share = f" ({v.bytes / reference:.2f})" if reference and v.bytes else ""
    worse = (
        "" if v.drop_interval is None else f"{v.drop_interval[0]:+.4f} to {v.drop_interval[1]:+.4f}"
    )
    time = "" if v.latency_ratio is None else f"{v.latency_ratio:.2f}"
    if v.latency_interval is not None:
        time += f" ({v.latency_interval[0]:.2f} to {v.latency_interval[1]:.2f})"
    name = v.precision if not v.left_float else f"{v.precision} without {', '.join(v.left_float)}"
    return (
        name,
        f"{v.bytes:,}{share}" if v.bytes else "",
        "" if v.accuracy is None else f"{v.accuracy:.4f}",
        worse,
        "" if v.agreement is None else f"{v.agreement:.1%}",
        "" if v.sqnr_db is None else f"{v.sqnr_db:.1f} dB",
        time,
        "first" if v.chosen else "too" if v.shipped else "no",
        v.reason,
    )


def _elsewhere(record: Record) -> list[str]:
    return [
        f"{e.precision} on {e.isa}: {record.metric} {e.value:.4f} on {e.n} samples"
        + ("" if e.agreement is None else f", {e.agreement:.1%} as here")
        for e in record.elsewhere
    ]


# --- the picture: CPU time to the right, the metric upwards, bytes as area ---------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 340, 70, 50, 20, 130


def _picture(record: Record) -> str:
    points = [v for v in record.variants if v.accuracy is not None and v.latency_ratio is not None]
    if len(points) < 2:
        return ""
    ratios = [v.latency_ratio or 0.0 for v in points]
    values = [v.accuracy or 0.0 for v in points]
    x_max = max(1.1, max(ratios) * 1.1)
    low, high = min(values), max(values)
    margin = max((high - low) * 0.2, 0.005)
    low, high = low - margin, high + margin
    largest = max(v.bytes for v in points)

    def x(ratio: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ratio / x_max

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    marks = []
    for v, ratio, value in zip(points, ratios, values, strict=True):
        colour = "--fp32" if v.precision == "fp32" else "--good" if v.shipped else "--bad"
        radius = 5 + 15 * (v.bytes / largest) ** 0.5
        marks.append(
            f'<circle cx="{x(ratio):.1f}" cy="{y(value):.1f}" r="{radius:.1f}" '
            f'style="fill:var({colour});fill-opacity:.35;stroke:var({colour})">'
            f"<title>{escape(v.precision)}: {v.bytes:,} bytes</title></circle>"
            f'<text x="{x(ratio) + radius + 4:.1f}" y="{y(value) + 4:.1f}">{escape(v.precision)}'
            f"{' *' if v.left_float else ''}</text>"
        )
    ticks = [
        f'<text class="tick" x="{x(r):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{r:g}</text>'
        for r in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
        if r <= x_max
    ]
    ticks += [
        f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>'
        for value in (low + (high - low) * share for share in (0.1, 0.5, 0.9))
    ]
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'aria-label="CPU time, {escape(record.metric)} and bytes of each candidate">'
        f'<line class="axis" x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH - RIGHT}" y2="{HEIGHT - BOTTOM}"/>'
        f'<line class="axis" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{HEIGHT - BOTTOM}"/>'
        f'<line class="axis" stroke-dasharray="4 4" x1="{x(1):.1f}" y1="{TOP}" x2="{x(1):.1f}" y2="{HEIGHT - BOTTOM}"/>'
        f"{''.join(ticks)}{''.join(marks)}"
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "CPU time to fp32</text>"
        f'<text class="tick" x="{LEFT - 55}" y="{TOP - 6}">{escape(record.metric)}</text>'
        "</svg><figcaption>Area is bytes. Green ships; * has layers left in float.</figcaption></figure>"
    )
