"""Segments: the append-only files through which serve hands its records to control.

    spool/<boot>/<number, 8 digits>.seg
        preamble   magic 8, reserved u64, settled u64, header length u32, header crc u32
        header     MessagePack of `Header`
        records    length u32, crc32 u32, payload (MessagePack of one record), to 8 bytes

Rules:
1. One process writes a boot, holding a lock on its directory; it writes through a
   mapping, so that what was appended survives the process's SIGKILL.
2. A record exists once its length is there, which is written last. A zero length is
   the end so far; a record whose crc differs is a torn tail, and the end.
3. Record i of a segment has seq ``first_seq + i``; seqs count from 1 per boot.
4. `settled`: every prediction up to this seq is in a window that was written. It is
   `DONE` when the writer has ended and nothing of the boot is left to count.
5. `reserved`: no seq above it was used before it was on disk, so that after a power
   cut the difference to the last readable seq bounds what is lost.
6. A reader may delete a segment once every record in it is stored by the fleet, its
   last seq is at most `settled`, and it is not the boot's last unless `DONE`.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from skerry.canonical import from_msgpack
from skerry.errors import FormatError, NotFoundError
from skerry.records import Context
from skerry.sketch import ColumnSpec

__all__ = [
    "DONE",
    "CountPlan",
    "Header",
    "SegmentReader",
    "boots",
    "cut_tail",
    "is_live",
    "iter_records",
    "lock_boot",
    "read_header",
    "read_marks",
    "segments",
    "settle",
    "settled_upto",
    "sync",
]

MAGIC: Final = b"SKSEG\x00\x00\x01"
DONE: Final = (1 << 64) - 1
MAX_HEADER_BYTES: Final = 1 << 20
MAX_RECORD_BYTES: Final = 1 << 17
PREAMBLE: Final = struct.Struct("<8sQQII")
RECORD: Final = struct.Struct("<II")
RESERVED_AT: Final = 8
SETTLED_AT: Final = 16
CHUNK_BYTES: Final = 1 << 16


class CountPlan(msgspec.Struct, frozen=True, array_like=True):
    """How the predictions of one context are counted: enough to rebuild its windows."""

    features: list[str]  # names, in the order of `Prediction.features`
    classes: list[int]  # class position -> position in the `prediction` column, -1 is unseen
    columns: dict[str, ColumnSpec]
    inputs: list[str] = []  # that each feature is made of; empty in segments of older agents


class Header(msgspec.Struct, frozen=True):
    """What the records of one segment have in common."""

    boot: str
    first_seq: int
    os_boot: str  # the machine's boot id: another one means that power may have been cut
    window_s: float
    contexts: list[Context]
    plans: list[CountPlan]  # one per context


def boots(spool: Path) -> list[str]:
    """Return the boots that have a directory in the spool, sorted by name."""
    if not spool.is_dir():
        return []
    return sorted(entry.name for entry in spool.iterdir() if entry.is_dir())


def segments(boot_dir: Path) -> list[Path]:
    """Return the segments of one boot, oldest first."""
    return sorted(boot_dir.glob("????????.seg"))


def read_header(path: Path) -> Header:
    """Return the header of a segment.

    Raises:
        FormatError: no segment, or its header was never written whole.
        NotFoundError: the file is gone.
    """
    with SegmentReader(path) as reader:
        return reader.header


def iter_records(path: Path, from_seq: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield seq and payload of every record from `from_seq` on, up to the end so far."""
    with SegmentReader(path) as reader:
        while batch := reader.read(256):
            yield from ((seq, payload) for seq, payload in batch if seq >= from_seq)


class SegmentReader:
    """Reads a segment that may still grow; keeps its place.

    It never maps the file: the writer cuts it to its used size, and a mapping beyond
    the end of a file is a SIGBUS.

    Raises:
        FormatError: no segment, or its header was never written whole.
        NotFoundError: the file is gone.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"segment {path} is gone") from None
        try:
            self.header: Final = self._read_header(path)
        except BaseException:
            os.close(self._fd)
            raise
        self.next_seq = self.header.first_seq

    def __enter__(self) -> "SegmentReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def offset(self) -> int:
        """Where the next record will be read, in bytes."""
        return self._at

    def read(self, limit: int = 1024) -> list[tuple[int, bytes]]:
        """Return up to `limit` records with their seqs; empty at the end so far."""
        found: list[tuple[int, bytes]] = []
        size = CHUNK_BYTES if limit > 1 else RECORD.size
        while len(found) < limit:
            try:
                chunk = os.pread(self._fd, size, self._at)
            except OSError:
                if found:
                    break  # those are read, and the next call meets the error again
                raise
            taken = self._take(chunk, limit, found)
            if taken:
                self._at += taken
            elif _needed(chunk) > size:
                size = _needed(chunk)  # a record longer than what was read
            else:
                break
        return found

    def _take(self, chunk: bytes, limit: int, found: list[tuple[int, bytes]]) -> int:
        at = 0
        while len(found) < limit and at + RECORD.size <= len(chunk):
            length, crc = RECORD.unpack_from(chunk, at)
            payload = chunk[at + RECORD.size : at + RECORD.size + length]
            if not 0 < length <= MAX_RECORD_BYTES or len(payload) < length:
                break
            # torn by a power cut; in a live file: not yet seen whole by this processor
            if zlib.crc32(payload) != crc:
                break
            found.append((self.next_seq, payload))
            self.next_seq += 1
            at += padded(RECORD.size + length)
        return at

    def _read_header(self, path: Path) -> Header:
        preamble = os.pread(self._fd, PREAMBLE.size, 0)
        if len(preamble) < PREAMBLE.size or preamble[:8] != MAGIC:
            raise FormatError(f"expected a segment, got something else in {path}; remove it")
        *_, length, crc = PREAMBLE.unpack(preamble)
        if length > MAX_HEADER_BYTES:
            raise FormatError(f"expected a header of at most {MAX_HEADER_BYTES} bytes in {path}")
        data = os.pread(self._fd, length, PREAMBLE.size)
        if len(data) < length or zlib.crc32(data) != crc:
            raise FormatError(f"the header of {path} is torn; nothing was recorded in it")
        self._at = padded(PREAMBLE.size + length)
        return from_msgpack(data, Header, limit=MAX_HEADER_BYTES)


def read_marks(path: Path) -> tuple[int, int]:
    """Return `reserved` and `settled` as one segment says them; zeros where it is no segment."""
    try:
        with path.open("rb") as file:
            preamble = file.read(PREAMBLE.size)
    except FileNotFoundError:
        return 0, 0
    if len(preamble) < PREAMBLE.size or preamble[:8] != MAGIC:
        return 0, 0
    _, reserved, settled, _, _ = PREAMBLE.unpack(preamble)
    return reserved, settled


def settled_upto(boot_dir: Path) -> int:
    """Return the seq up to which every prediction of a boot is in a written window."""
    return max((read_marks(path)[1] for path in segments(boot_dir)), default=0)


def settle(boot_dir: Path) -> None:
    """Mark a dead boot as counted for good; may be done twice.

    Every segment says so, because any of them may be the last that is left. The newest, which
    is removed last, says so first: who is killed in between leaves no mark that goes before it.
    """
    for path in reversed(segments(boot_dir)):
        try:
            with path.open("r+b") as file:
                if file.read(8) == MAGIC:
                    os.pwrite(file.fileno(), DONE.to_bytes(8, "little"), SETTLED_AT)
                    os.fdatasync(file.fileno())
        except FileNotFoundError:
            continue


def cut_tail(path: Path) -> None:
    """Cut a dead boot's segment to the records that are whole; may be done twice."""
    try:
        with SegmentReader(path) as reader:
            while reader.read():
                pass
            os.truncate(path, reader.offset)
    except (FormatError, NotFoundError, FileNotFoundError):
        return


def lock_boot(boot_dir: Path) -> int | None:
    """Take the lock of a boot; None while its writer lives.

    Returns:
        A descriptor that holds the lock until it is closed or the process ends.
    """
    fd = os.open(boot_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_live(boot_dir: Path) -> bool:
    """Tell whether the process that writes a boot still runs."""
    fd = lock_boot(boot_dir)
    if fd is None:
        return True
    os.close(fd)
    return False


def sync(path: Path) -> None:
    """Make everything that was appended to a segment durable against a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def padded(size: int) -> int:
    """Return the size rounded up to 8 bytes."""
    return (size + 7) & ~7


def _needed(chunk: bytes) -> int:
    if len(chunk) < RECORD.size:
        return 0
    length, _ = RECORD.unpack_from(chunk)
    return RECORD.size + length if 0 < length <= MAX_RECORD_BYTES else 0
