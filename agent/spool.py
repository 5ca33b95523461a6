"""The writing side of the segments: one boot of one serve process, through a mapping.

`append` costs a few memory copies. Everything that waits for a disk happens in the
job that `take_sync` hands out, to be run on a thread.
"""

import contextlib
import mmap
import os
import stat
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.segments import (
    DONE,
    MAGIC,
    MAX_RECORD_BYTES,
    PREAMBLE,
    RECORD,
    RESERVED_AT,
    SETTLED_AT,
    Header,
    lock_boot,
    padded,
    segments,
)
from skerry.canonical import to_msgpack
from skerry.errors import ConflictError, FormatError
from skerry.records import Loss

__all__ = ["NO_ROOM", "Spool", "used_bytes"]

NO_ROOM: Final = 0  # in place of a seq: the record was not kept
RESERVE: Final = 1024  # seqs reserved ahead
SYNC_RECORDS: Final = 32
FULL_RETRY_S: Final = 1.0
REWRITE_BYTES: Final = 1 << 18


def used_bytes(spool: Path) -> int:
    """Return the bytes that all segments of a spool take on disk."""
    total = 0
    for path in spool.glob("*/????????.seg"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # control forgot it in this moment
            continue
    return total


class Spool:
    """Appends records to the segments of one boot, and holds the boot's lock.

    Args:
        root: the spool directory.
        header: what every segment's header says; `first_seq` is filled in here.
        segment_bytes: size of one file.
        max_bytes: of all segments in the spool; beyond it nothing is kept.
        many_unsynced: called when `SYNC_RECORDS` records wait for a sync.

    Raises:
        ConflictError: another process writes this boot.
    """

    def __init__(
        self,
        root: Path,
        header: Header,
        *,
        segment_bytes: int,
        max_bytes: int,
        many_unsynced: Callable[[], None] = lambda: None,
    ) -> None:
        self.root: Final = root
        self._header = header
        self._segment_bytes = segment_bytes
        self.max_bytes: Final = max_bytes
        self._many_unsynced = many_unsynced
        self.boot: Final = header.boot
        self.directory: Final = root / header.boot
        self._lock = -1
        self._make_directory()
        self.next_seq = 1
        self.unsynced = 0
        self.lost = 0  # records without room, not yet said in a `Loss`
        self.lost_total = 0
        self._reserved = self._durable_reserve = 0
        self._settled = 0
        self.uncounted_from = 0  # first seq that is in no counts yet, whoever else is; 0: none
        self._number = 0
        self._view: mmap.mmap | None = None
        self._fd = -1
        self._at = self._end = 0
        self._sealed: list[int] = []
        self._refused: dict[tuple[int, int], int] = {}  # descriptors, by device and inode
        self._full_until = 0.0
        self._new_names = False
        if self._roll(0):
            self.take_sync()()

    def _make_directory(self) -> bool:
        """Make and lock the boot's directory; a full disk may not even have room for that."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        lock = lock_boot(self.directory)
        if lock is None:
            raise ConflictError(f"another process writes {self.directory}; end it first")
        self._lock = lock
        return True

    def append(self, payload: bytes) -> int:
        """Write one record and return its seq, or `NO_ROOM`.

        The record survives the process from here on.
        """
        size = len(payload)
        if size > MAX_RECORD_BYTES:
            raise FormatError(f"expected a record of at most {MAX_RECORD_BYTES} bytes, got {size}")
        # behind the record the next one's zero length must still fit
        if not self.has_room(size):
            self.lost += 1
            self.lost_total += 1
            return NO_ROOM
        at = self._at
        end = at + RECORD.size + size
        view = self._view
        assert view is not None
        view[at + 4 : end] = zlib.crc32(payload).to_bytes(4, "little") + payload
        view[at : at + 4] = size.to_bytes(4, "little")  # last: now it exists
        self._at = padded(end)
        seq = self.next_seq
        self.next_seq = seq + 1
        self.unsynced += 1
        if self.unsynced == SYNC_RECORDS:
            self._many_unsynced()
        if seq >= self._durable_reserve:
            self.take_sync()()  # rare: hundreds of records within one sync interval
        return seq

    def has_room(self, size: int) -> bool:
        """Tell whether a record of so many bytes can be kept now."""
        return self._at + 2 * RECORD.size + size <= self._end or self._roll(size)

    def settle(self, upto: int) -> None:
        """Say that every prediction up to this seq is in a written window."""
        if self.uncounted_from:
            upto = min(upto, self.uncounted_from - 1)
        if upto > self._settled:
            self._settled = upto
            if self._view is not None:
                self._view[SETTLED_AT : SETTLED_AT + 8] = upto.to_bytes(8, "little")

    def roll(self, window_s: float) -> None:
        """Start a new segment, in whose windows the records from here on are counted."""
        self._header = Header(
            boot=self.boot,
            first_seq=0,
            os_boot=self._header.os_boot,
            window_s=window_s,
            contexts=self._header.contexts,
            plans=self._header.plans,
        )
        self._seal()

    def take_sync(self) -> Callable[[], None]:
        """Return the job that makes everything appended so far power-safe."""
        fds, self._sealed = self._sealed, []
        refused, self._refused = self._refused, {}
        for fd in refused.values():
            _write_again(fd)
            fds.append(fd)
        if self._fd >= 0:
            fds.append(os.dup(self._fd))
        if self._new_names:
            self._new_names = False
            fds.append(os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        if self._view is not None and self._reserved - self.next_seq < RESERVE // 2:
            self._reserved = self.next_seq + RESERVE
            self._view[RESERVED_AT : RESERVED_AT + 8] = self._reserved.to_bytes(8, "little")
        reserved = self._reserved
        self.unsynced = 0

        def job() -> None:
            try:
                while fds:  # oldest first: a window must not outlast what it counts
                    os.fsync(fds[0])
                    os.close(fds.pop(0))
            except OSError:
                self._keep(fds)
                raise
            self._durable_reserve = max(self._durable_reserve, reserved)

        return job

    def _keep(self, fds: list[int]) -> None:
        """Keep what the disk refused to sync for the next time, each file once."""
        for fd in fds:
            status = os.fstat(fd)
            kept = self._refused.setdefault((status.st_dev, status.st_ino), fd)
            if kept != fd:
                os.close(fd)

    def close(self, *, counted: bool = True) -> None:
        """End the boot: nothing more will come.

        Args:
            counted: whether every window was written; else the next process rebuilds them.
        """
        if self.lost:
            loss, self.lost = Loss(self.boot, self.lost, "no_room"), 0
            self.append(to_msgpack(loss))
        if counted:
            self.settle(DONE)
        self._seal()
        self.take_sync()()
        if self.next_seq == 1:  # nothing was ever recorded
            for path in segments(self.directory):
                path.unlink()
            with contextlib.suppress(OSError):
                self.directory.rmdir()
        if self._lock >= 0:
            os.close(self._lock)

    def _seal(self) -> None:
        if self._view is None:
            return
        self._view.close()
        self._view = None
        os.ftruncate(self._fd, self._at)
        self._sealed.append(self._fd)
        self._fd = -1
        self._at = self._end = 0

    def _roll(self, size: int) -> bool:
        """Open the next segment; False where the disk or the quota has no room for it."""
        now = time.monotonic()
        if now < self._full_until:
            return False
        if self._lock < 0 and not self._make_directory():
            self._full_until = now + FULL_RETRY_S
            return False
        header = to_msgpack(
            Header(
                boot=self.boot,
                first_seq=self.next_seq,
                os_boot=self._header.os_boot,
                window_s=self._header.window_s,
                contexts=self._header.contexts,
                plans=self._header.plans,
            )
        )
        start = padded(PREAMBLE.size + len(header))
        # room for the record, for a Loss before it, and for the zero length at the end
        capacity = max(self._segment_bytes, start + padded(RECORD.size + size) + 256)
        preamble = PREAMBLE.pack(
            MAGIC,
            self._reserved or self.next_seq + RESERVE,
            self._settled,
            len(header),
            zlib.crc32(header),
        )
        fd = self._create(capacity, preamble + header)
        if fd is None:
            self._full_until = now + FULL_RETRY_S
            return False
        self._seal()
        self._fd, self._end, self._at = fd, capacity, start
        self._reserved = self._reserved or self.next_seq + RESERVE
        self._view = mmap.mmap(fd, capacity)
        if self.lost:
            loss, self.lost = Loss(self.boot, self.lost, "no_room"), 0
            self.append(to_msgpack(loss))
        return True

    def _create(self, capacity: int, start: bytes) -> int | None:
        if used_bytes(self.root) + capacity > self.max_bytes:
            return None
        path = self.directory / f"{self._number + 1:08d}.seg"
        part = path.with_suffix(".part")
        try:
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError:
            return None  # not even for a name
        try:
            # real blocks: a write through a mapping that finds the disk full is a SIGBUS
            os.posix_fallocate(fd, 0, capacity)
            os.pwrite(fd, start, 0)
            part.rename(path)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                part.unlink()
            return None
        self._number += 1
        self._new_names = True
        return fd


def _write_again(fd: int) -> None:
    """Make every page of a file dirty anew.

    A kernel that could not write a page forgets that it had to: the next sync would succeed and
    the page would still not be on the disk. What it should hold is in memory.
    """
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        for at in range(0, status.st_size, REWRITE_BYTES):
            os.pwrite(fd, os.pread(fd, REWRITE_BYTES, at), at)
