"""The attack table of docs/ideas/trust.md and the tests of this folder name each other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "ideas" / "trust.md"
ROW = re.compile(r"^\| (\d+) \|.*\|$", re.MULTILINE)
LINK = re.compile(r"\]\(\.\./\.\./tests/attacks/(test_\w+\.py)\) `test_row_(\d\d)_\*`")
TEST = re.compile(r"^(?:async )?def test_row_(\d\d)_\w+\(", re.MULTILINE)
OUT_OF_SCOPE = {27, 46, 48, 49, 50, 52}


def named() -> set[tuple[int, str]]:
    """Row and file of every link in the table, each in the row whose tests it names."""
    links = set()
    for row in ROW.finditer(DOCUMENT.read_text()):
        number = int(row[1])
        for file, tests in LINK.findall(row[0]):
            assert int(tests) == number, f"row {number} links to tests of row {tests}"
            links.add((number, file))
    return links


def present() -> set[tuple[int, str]]:
    """Row and file of every test in this folder."""
    files = Path(__file__).parent.glob("test_*.py")
    return {(int(row), file.name) for file in files for row in TEST.findall(file.read_text())}


def test_every_row_of_the_table_has_its_tests() -> None:
    missing = sorted(named() - present())
    assert not missing, f"the table names tests that are not there: {missing}"


def test_every_test_is_in_the_table() -> None:
    missing = sorted(present() - named())
    assert not missing, f"{DOCUMENT.name} does not link to the tests of: {missing}"


def test_rows_out_of_scope_have_no_tests() -> None:
    assert {number for number, _ in named()} & OUT_OF_SCOPE == set()
