"""A report tells of every candidate, in Markdown and on one page that needs nothing else."""

import re
from html.parser import HTMLParser

import msgspec

from compiler.build import Built
from compiler.record import ElsewhereRecord
from compiler.report import html_report, markdown_report


class Strict(HTMLParser):
    """Knows which tags are open, and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "circle", "line"):
            self.open.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_markdown_has_a_row_for_every_candidate(built: Built) -> None:
    text = markdown_report(built.record)
    assert text.startswith("# shapes 1.0.0\n")
    for v in built.record.variants:
        assert f"| {v.precision} | {v.bytes:,}" in text
        assert v.reason in text
    assert "one candidate in" in text
    assert built.digest in text


def test_the_page_is_whole_and_loads_nothing(built: Built) -> None:
    page = html_report(built.record)
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    assert parser.loads == []
    assert "<svg" in page
    assert len(re.findall("<circle", page)) == 2


def test_a_hostile_name_is_text(built: Built) -> None:
    variant = msgspec.structs.replace(built.record.variants[0], reason="<script>alert(1)</script>")
    record = msgspec.structs.replace(built.record, variants=[variant, *built.record.variants[1:]])
    assert "<script>" not in html_report(record)


def test_other_cpus_and_layers_in_float_are_told(built: Built) -> None:
    variant = msgspec.structs.replace(built.record.variants[0], left_float=["c1", "c2"])
    record = msgspec.structs.replace(
        built.record,
        variants=[variant, *built.record.variants[1:]],
        elsewhere=[ElsewhereRecord("int8", "avx2", 0.98, 300, 0.997)],
    )
    text, page = markdown_report(record), html_report(record)
    assert "int8 without c1, c2" in text
    for told in (text, page):
        assert "int8 on avx2: accuracy 0.9800 on 300 samples, 99.7% as here" in told
