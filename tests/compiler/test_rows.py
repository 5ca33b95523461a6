"""Data sets are plain arrays, or refused before they cost anything."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import rows
from skerry.errors import FormatError, UsageError


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def read(path: Path, *, labelled: bool = True) -> rows.Rows:
    return rows.read_rows(path, "x", "label", labelled=labelled)


def test_rows_come_back_with_their_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.ones((3, 2)), label=np.array([2, 1, 0], np.uint8))
    found = read(path)
    assert len(found) == 3
    assert found.labels is not None
    assert found.labels.tolist() == [2, 1, 0]


def test_labels_may_be_absent_where_none_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.ones((3, 2)))
    assert read(path, labelled=False).labels is None
    with pytest.raises(UsageError, match=r"expected an array 'label' in a\.npz, found x"):
        read(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.ones(3)}, "expected an array 'x'"),
        ({"x": np.ones((0, 2)), "label": np.ones(0, int)}, "is empty"),
        ({"x": np.ones((3, 2)), "label": np.ones(2, int)}, "one whole-number label"),
        ({"x": np.ones((3, 2)), "label": np.ones(3)}, "one whole-number label"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(write(tmp_path / "a.npz", **arrays))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.array([{}], dtype=object), label=np.ones(1, int))
    with pytest.raises(FormatError, match="plain arrays"):
        read(path)


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 40])
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        read(path)


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 2_000_000)
    monkeypatch.setattr(rows, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(FormatError, match="unpacks to 2000000 bytes"):
        read(path)


def test_spread_takes_rows_from_one_end_to_the_other() -> None:
    assert rows.spread(3, 10).tolist() == [0, 1, 2]
    assert rows.spread(101, 3).tolist() == [0, 50, 100]
