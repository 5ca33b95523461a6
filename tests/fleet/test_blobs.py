"""A blob has its name only with its bytes; nothing half written is ever found."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.blobs import Blobs
from fleet.files import write_atomic
from skerry.canonical import sha256
from skerry.errors import FormatError, NotFoundError

DATA = b"layer" * 1000
DIGEST = sha256(DATA)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path)


def test_a_blob_comes_back_by_its_digest(blobs: Blobs) -> None:
    blobs.put(DIGEST, DATA)
    assert blobs.has(DIGEST)
    assert blobs.size(DIGEST) == len(DATA)
    assert blobs.read(DIGEST) == DATA
    with blobs.open(DIGEST) as stream:
        assert stream.read() == DATA


def test_a_blob_may_come_in_chunks(blobs: Blobs) -> None:
    blobs.put(DIGEST, (DATA[i : i + 999] for i in range(0, len(DATA), 999)))
    assert blobs.read(DIGEST) == DATA


def test_other_bytes_than_the_name_says_are_not_kept(blobs: Blobs, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="send it again"):
        blobs.put(DIGEST, DATA[:-1])
    assert not blobs.has(DIGEST)
    assert list((tmp_path / "sha256").iterdir()) == []


def test_a_broken_transfer_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    def torn() -> Iterator[bytes]:
        yield DATA[:100]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        blobs.put(DIGEST, torn())
    assert list((tmp_path / "sha256").iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    Blobs(tmp_path)
    (tmp_path / "sha256" / f".{DIGEST[7:]}.ab12").write_bytes(b"half")
    Blobs(tmp_path)
    assert list((tmp_path / "sha256").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "sha256:", "sha256:../../etc/passwd", "../" + DIGEST, DIGEST.upper(), DIGEST + "0"]
)
def test_a_name_that_is_no_digest_reaches_no_file(blobs: Blobs, name: str) -> None:
    for act in (blobs.has, blobs.size, blobs.open, blobs.read):
        with pytest.raises(FormatError):
            act(name)


def test_a_missing_and_an_oversized_blob_are_refused(blobs: Blobs) -> None:
    with pytest.raises(NotFoundError):
        blobs.read(DIGEST)
    blobs.put(DIGEST, DATA)
    with pytest.raises(FormatError, match="at most"):
        blobs.read(DIGEST, limit_bytes=10)


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fails() -> Iterator[bytes]:
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fails())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
