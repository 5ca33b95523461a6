"""Segments: what was appended comes back, and a torn tail ends them."""

import errno
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.segments import (
    DONE,
    PREAMBLE,
    RECORD,
    Header,
    SegmentReader,
    boots,
    cut_tail,
    is_live,
    iter_records,
    read_header,
    read_marks,
    segments,
    settle,
    settled_upto,
    sync,
)
from agent.spool import NO_ROOM, Spool, used_bytes
from skerry.canonical import from_msgpack
from skerry.errors import ConflictError, FormatError, NotFoundError
from skerry.records import Context, Loss

CONTEXT = Context("slot-a", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")


def header(boot: str = "b1") -> Header:
    return Header(boot, 1, "os-1", 1.0, [CONTEXT], [])


def spool(root: Path, boot: str = "b1", size: int = 4096, limit: int = 1 << 20) -> Spool:
    return Spool(root, header(boot), segment_bytes=size, max_bytes=limit)


def die(writer: Spool) -> None:
    """What the kernel does to a killed process: its lock and its mappings go."""
    os.close(writer._lock)
    if writer._view is not None:
        writer._view.close()
        os.close(writer._fd)


def records(root: Path, boot: str = "b1") -> list[tuple[int, bytes]]:
    return [record for path in segments(root / boot) for record in iter_records(path)]


@given(payloads=st.lists(st.binary(min_size=1, max_size=3000), max_size=30), done=st.booleans())
def test_what_was_appended_comes_back_numbered_from_one(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], done: bool
) -> None:
    root = tmp_path_factory.mktemp("spool")
    writer = spool(root)
    seqs = [writer.append(payload) for payload in payloads]
    assert seqs == list(range(1, len(payloads) + 1))
    assert records(root) == list(zip(seqs, payloads, strict=True))
    writer.close() if done else die(writer)
    assert records(root) == list(zip(seqs, payloads, strict=True))
    assert all(read_header(path).contexts == [CONTEXT] for path in segments(root / "b1"))


def test_a_record_may_be_larger_than_a_segment(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    writer.append(b"x" * 100_000)
    writer.append(b"y")
    assert records(tmp_path) == [(1, b"x" * 100_000), (2, b"y")]
    with pytest.raises(FormatError, match="at most"):
        writer.append(bytes(1 << 18))
    die(writer)


def test_reading_starts_at_a_seq(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    for i in range(20):
        writer.append(b"%d" % i)
    die(writer)
    (path,) = segments(tmp_path / "b1")
    assert [seq for seq, _ in iter_records(path, from_seq=18)] == [18, 19, 20]


def test_a_reader_keeps_its_place_in_a_growing_segment(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    writer.append(b"one")
    with SegmentReader(segments(tmp_path / "b1")[0]) as reader:
        assert reader.read() == [(1, b"one")]
        assert reader.read() == []
        writer.append(b"two")
        writer.append(b"three")
        assert reader.read(limit=1) == [(2, b"two")]
        assert reader.read(limit=1) == [(3, b"three")]
        assert reader.read() == []
    die(writer)


def test_a_tail_torn_at_any_byte_leaves_a_prefix(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    payloads = [b"alpha", b"be", b"gamma-gamma"]
    for payload in payloads:
        writer.append(payload)
    die(writer)
    (path,) = segments(tmp_path / "b1")
    whole = path.read_bytes()
    with SegmentReader(path) as reader:
        reader.read()
        end = reader.offset
    for cut in range(PREAMBLE.size, end + 1):
        for torn in (whole[:cut], whole[:cut] + bytes(end - cut)):
            path.write_bytes(torn)
            try:
                found = [payload for _, payload in iter_records(path)]
            except FormatError:
                continue  # torn within the header: nothing was recorded
            assert found == payloads[: len(found)]
    path.write_bytes(whole)
    assert [payload for _, payload in iter_records(path)] == payloads


def test_a_flipped_bit_ends_the_segment_there(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    for payload in (b"first", b"second", b"third"):
        writer.append(payload)
    die(writer)
    (path,) = segments(tmp_path / "b1")
    data = bytearray(path.read_bytes())
    data[data.index(b"second")] ^= 1
    path.write_bytes(data)
    assert [payload for _, payload in iter_records(path)] == [b"first"]


def test_a_length_beyond_the_file_is_a_torn_tail(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    writer.append(b"first")
    die(writer)
    (path,) = segments(tmp_path / "b1")
    cut_tail(path)
    with path.open("ab") as file:
        file.write(RECORD.pack(100_000, zlib.crc32(b"")) + b"short")
    assert [payload for _, payload in iter_records(path)] == [b"first"]


def test_cutting_a_tail_keeps_every_record_and_can_be_done_twice(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    writer.append(b"kept")
    die(writer)
    (path,) = segments(tmp_path / "b1")
    assert path.stat().st_size == 4096
    for _ in range(2):
        cut_tail(path)
        assert path.stat().st_size < 300
        assert records(tmp_path) == [(1, b"kept")]


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100])
def test_something_else_is_no_segment(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "00000001.seg"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="segment"):
        read_header(path)
    assert read_marks(path) == (0, 0)


def test_a_forgotten_segment_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_header(tmp_path / "00000001.seg")
    assert read_marks(tmp_path / "00000001.seg") == (0, 0)
    assert boots(tmp_path / "nothing") == []


def test_one_process_at_a_time_writes_a_boot(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    assert is_live(tmp_path / "b1")
    with pytest.raises(ConflictError, match="another process"):
        spool(tmp_path)
    die(writer)
    assert not is_live(tmp_path / "b1")


def test_settled_is_told_to_readers_and_lasts(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    for _ in range(10):
        writer.append(bytes(1000))
    assert settled_upto(tmp_path / "b1") == 0
    writer.settle(7)
    writer.settle(3)  # never back
    assert settled_upto(tmp_path / "b1") == 7
    for _ in range(10):  # into further segments
        writer.append(bytes(1000))
    assert settled_upto(tmp_path / "b1") == 7
    die(writer)
    settle(tmp_path / "b1")
    assert [read_marks(path)[1] for path in segments(tmp_path / "b1")] == [DONE] * len(
        segments(tmp_path / "b1")
    )


def test_a_closed_boot_is_settled_and_small(tmp_path: Path) -> None:
    writer = spool(tmp_path, size=1 << 20)
    writer.append(b"one")
    writer.close()
    assert settled_upto(tmp_path / "b1") == DONE
    assert used_bytes(tmp_path) < 1000
    assert not is_live(tmp_path / "b1")


def test_a_boot_without_records_leaves_nothing(tmp_path: Path) -> None:
    spool(tmp_path).close()
    assert boots(tmp_path) == []


def test_a_full_spool_counts_what_it_could_not_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.spool.FULL_RETRY_S", 0.0)
    writer = spool(tmp_path, limit=2 * 4096)
    kept = 0
    while writer.append(bytes(100)) != NO_ROOM:
        kept += 1
    assert writer.append(bytes(100)) == NO_ROOM
    assert writer.lost_total == 2
    segments(tmp_path / "b1")[0].unlink()  # control has sent it
    assert writer.append(bytes(100)) == kept + 2
    assert writer.lost == 0
    seq, payload = records(tmp_path)[-2]
    assert (seq, from_msgpack(payload, Loss)) == (kept + 1, Loss("b1", 2, "no_room"))
    die(writer)


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    writer = spool(tmp_path)
    assert writer.append(b"x") == NO_ROOM
    assert segments(tmp_path / "b1") == []
    writer.close()
    assert boots(tmp_path) == []


def test_numbers_are_reserved_on_disk_before_they_are_used(tmp_path: Path) -> None:
    writer = spool(tmp_path, size=1 << 16)
    for _ in range(3000):
        seq = writer.append(b"x")
        assert writer._durable_reserve > seq
    reserved = max(read_marks(path)[0] for path in segments(tmp_path / "b1"))
    assert 3000 < reserved <= 3000 + 2048
    die(writer)


def test_a_sync_is_asked_for_when_many_records_wait(tmp_path: Path) -> None:
    asked: list[bool] = []
    writer = Spool(
        tmp_path, header(), segment_bytes=1 << 16, max_bytes=1 << 20,
        many_unsynced=lambda: asked.append(True),
    )  # fmt: skip
    for _ in range(31):
        writer.append(b"x")
    assert asked == []
    writer.append(b"x")
    assert asked == [True]
    writer.take_sync()()
    sync(segments(tmp_path / "b1")[0])
    assert writer.unsynced == 0
    die(writer)


def test_a_new_window_length_starts_a_segment(tmp_path: Path) -> None:
    writer = spool(tmp_path)
    writer.append(b"one")
    writer.roll(2.0)
    writer.append(b"two")
    die(writer)
    headers = [read_header(path) for path in segments(tmp_path / "b1")]
    assert [(h.first_seq, h.window_s) for h in headers] == [(1, 1.0), (2, 2.0)]


def test_an_error_of_the_disk_hides_no_record_that_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = spool(tmp_path, size=1 << 18)
    for size in (1, 40_000, 40_000, 1):
        writer.append(b"x" * size)
    pread, calls = os.pread, 0

    def failing(fd: int, size: int, at: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.EIO, "Input/output error")
        return pread(fd, size, at)

    with SegmentReader(segments(writer.directory)[0]) as reader:
        monkeypatch.setattr(os, "pread", failing)
        seen = [seq for seq, _ in reader.read()]
        seen += [seq for seq, _ in reader.read()]
    assert seen == list(range(1, reader.next_seq))
    assert calls > 2
    writer.close()


def test_a_mark_cut_short_stays_until_the_last_segment_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = spool(tmp_path, size=256)
    for _ in range(8):
        writer.append(b"x" * 100)
    die(writer)
    paths = segments(writer.directory)
    assert len(paths) > 2

    def killed(_fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdatasync", killed)
    with pytest.raises(KeyboardInterrupt):
        settle(writer.directory)
    for path in paths[:-1]:  # sent, stored and forgotten, oldest first
        assert settled_upto(writer.directory) == DONE
        path.unlink()
    assert settled_upto(writer.directory) == DONE


def test_what_a_disk_refused_to_sync_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = spool(tmp_path)
    first = segments(tmp_path / "b1")[0]
    while len(segments(tmp_path / "b1")) == 1:
        writer.append(b"x" * 100)

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        writer.append(b"y")
        with pytest.raises(OSError, match="Input/output"):
            writer.take_sync()()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2  # each file once
    monkeypatch.undo()
    written: list[int] = []
    synced: list[int] = []
    real_write, real_sync = os.pwrite, os.fsync

    def write(fd: int, data: bytes, at: int) -> int:
        written.append(os.fstat(fd).st_ino)
        return real_write(fd, data, at)

    def sync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real_sync(fd)

    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "fsync", sync)
    kept = records(tmp_path)
    writer.take_sync()()
    assert {first.stat().st_ino, segments(tmp_path / "b1")[1].stat().st_ino} <= set(written)
    assert set(written) <= set(synced)
    assert records(tmp_path) == kept
    writer.take_sync()()
    assert written.count(first.stat().st_ino) == 1
    writer.close()


def test_segments_are_synced_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between two syncs may keep a prediction whose window is lost, never the reverse."""
    writer = spool(tmp_path)
    while len(segments(tmp_path / "b1")) < 3:
        writer.append(b"x" * 100)
    synced: list[int] = []
    real = os.fsync

    def sync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    writer.take_sync()()
    assert synced[:3] == [path.stat().st_ino for path in segments(tmp_path / "b1")]
    writer.close()
