"""Data sets come from files or functions, as plain arrays, or are refused before they cost."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import data
from compiler.data import entry_point, read_data, spread
from skerry.errors import FormatError, NotFoundError, SkerryError, UsageError

ARRAYS = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "label": np.array([2, 1, 0])}


def write(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def test_one_data_set_has_one_digest_in_any_form(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", **ARRAYS)
    (tmp_path / "d").mkdir()
    for name, values in ARRAYS.items():
        np.save(tmp_path / "d" / f"{name}.npy", values)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def whole():\n"
        "    return {'x': np.arange(6, dtype='f4').reshape(3, 2), 'label': np.array([2, 1, 0])}\n"
        "def batches():\n"
        "    for i in range(3):\n"
        "        yield {name: values[i:i + 1] for name, values in whole().items()}\n"
    )
    found = [read_data(g, tmp_path) for g in ("a.npz", "d", "mine:whole", "mine:batches")]
    assert len({f.digest for f in found}) == 1
    assert found[3].arrays["x"].tolist() == ARRAYS["x"].tolist()
    write(tmp_path / "b.npz", **{**ARRAYS, "label": np.array([2, 1, 1])})
    assert read_data("b.npz", tmp_path).digest != found[0].digest


def test_a_part_of_a_data_set_is_one_too(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", **ARRAYS)
    assert read_data("a.npz[1:]", tmp_path).arrays["label"].tolist() == [1, 0]
    assert read_data("a.npz[0:1]", tmp_path).arrays["x"].shape == (1, 2)
    parts = {read_data(g, tmp_path).digest for g in ("a.npz[:1]", "a.npz[1:]", "a.npz")}
    assert len(parts) == 3


def test_a_csv_gives_whole_numbers_numbers_and_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('age,height,name,label\n31,1.7,"Ann, A.",0\n40,,Bob,1\n')
    arrays = read_data("a.csv", tmp_path).arrays
    assert arrays["age"].tolist() == [31, 40]
    assert arrays["height"][0] == 1.7
    assert np.isnan(arrays["height"][1])
    assert arrays["name"].tolist() == ["Ann, A.", "Bob"]
    assert arrays["label"].dtype == np.int64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "expected 2 columns in line 3 of a.csv, got 1"),
        ("a,a\n1,2\n", "different column names"),
        ('a\n"open', "expected a.csv to be UTF-8 CSV"),
    ],
)
def test_a_csv_that_is_none_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_data("a.csv", tmp_path)


def test_parquet_gives_columns_and_lists_become_axes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    arrays = read_data("a.parquet", tmp_path).arrays
    assert arrays["x"].shape == (2, 2)
    assert arrays["label"].tolist() == [0, 1]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FormatError, match="to be Parquet"):
        read_data("b.parquet", tmp_path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(FormatError, match="plain arrays"):
        read_data("a.npz", tmp_path)
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="plain arrays"):
        read_data("d", tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 40])
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FormatError):
        read_data("a.npz", tmp_path)


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 2_000_000)
    monkeypatch.setattr(data, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(FormatError, match="unpacks to 2000000 bytes"):
        read_data("a.npz", tmp_path)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("none.npz", NotFoundError, "data.evaluation names 'none.npz', and there is no file"),
        ("none:rows", NotFoundError, "expected a module 'none'"),
        ("mine:none", NotFoundError, "expected a function 'none' in mine"),
        ("mine:fails", UsageError, "mine:fails to return arrays by name: KeyError: 'x'"),
        ("mine:number", UsageError, "mine:number to return arrays by name: TypeError"),
        ("broken:rows", UsageError, "broken cannot be imported: SyntaxError"),
        ("a.txt", UsageError, r"expected data as \.npz, \.csv, \.parquet"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, given: str, error: type[SkerryError], message: str
) -> None:
    (tmp_path / "mine.py").write_text(
        "def fails():\n    return {}['x']\ndef number():\n    return 7\n"
    )
    (tmp_path / "broken.py").write_text("def rows(:\n")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(error, match=message):
        read_data(given, tmp_path, "data.evaluation")


def test_a_function_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("N = 3\n")
    (tmp_path / "mine2.py").write_text("from neighbour_of_mine import N\ndef f():\n    return N\n")
    assert entry_point("mine2:f", tmp_path)() == 3


def test_spread_takes_samples_from_one_end_to_the_other() -> None:
    assert spread(3, 10).tolist() == [0, 1, 2]
    assert spread(101, 3).tolist() == [0, 50, 100]
