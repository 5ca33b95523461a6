"""Reads the spool for the outbox: finds records, makes batches of them, removes what is stored.

    look      how far every boot has come on disk
    batch     the next run of records, as the record policy lets them leave
    forget    segments that the fleet has stored and that are counted for good

It follows segments while they grow. What a broken disk has lost shows as a jump in the
numbers, and is said as such (`Batch.dropped_before`).
"""

import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agent.durable import fsync_dir
from agent.leaving import MAX_ITEM_BYTES, Gate, leaving_bytes
from agent.outbox import Outbox, may_forget
from agent.segments import (
    DONE,
    SegmentReader,
    boots,
    is_live,
    read_header,
    segments,
    settled_upto,
    sync,
)
from skerry.errors import FormatError, NotFoundError
from skerry.records import Item, Skip
from skerry.wire import Batch, Policy

__all__ = ["Spooler"]

log = logging.getLogger(__name__)

READ_RECORDS: Final = 256
MAX_BATCH_RECORDS: Final = 2048


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    last: int = 0  # last record read so far
    named: bool = False  # durably


@dataclass(slots=True)
class _Boot:
    """What is known of one boot's segments; `tail` reads at the end of the last one."""

    folder: Path
    segments: list[_Segment] = field(default_factory=list)
    tail: SegmentReader | None = None
    sender: SegmentReader | None = None
    synced: int = 0


class Spooler:
    """The spool directory, as the outbox sees it.

    Args:
        spool: the directory.
        outbox: whose cursors are moved.
        batch_bytes: about how large a batch may become.
        gate: lets records leave.
    """

    def __init__(
        self, spool: Path, outbox: Outbox, *, batch_bytes: int, gate: Gate | None = None
    ) -> None:
        self._spool = spool
        self._outbox = outbox
        self._batch_bytes = batch_bytes
        self._gate = gate or Gate()
        self._boots: dict[str, _Boot] = {}

    def look(self) -> bool:
        """Find new boots and records; tell whether there were any."""
        found = False
        for name in sorted(set(boots(self._spool)) - set(self._boots), key=self._age):
            self._boots[name] = _Boot(self._spool / name)
        for name, boot in self._boots.items():
            found |= self._follow(name, boot)
        return found

    def batch(self, policy: Policy) -> tuple[str, Batch] | None:
        """Return the next batch to send and its boot, or None.

        Its records are durable by then; `Outbox.sent` is the caller's to call.
        """
        following = self._outbox.next_send()
        if following is None:
            return None
        name, first = following
        boot = self._boots[name]
        segment = next((s for s in boot.segments if s.first <= first <= s.last), None)
        if segment is None:
            self._jump(name, boot, first)
            return None
        try:
            if segment.last > boot.synced:
                sync(segment.path)
                boot.synced = segment.last
            if not segment.named:
                # its file's sync does not hold the rename: without the name, a power cut would
                # take what the fleet has, and the windows in it would be counted once more
                fsync_dir(boot.folder)
                segment.named = True
            reader = self._seek(boot, segment, first)
            items = self._take(reader, segment.last, policy)
        except (NotFoundError, FormatError, OSError) as error:
            log.warning("cannot read %s: %s", segment.path, error)
            self._close_sender(boot)
            return None
        if not items:
            self._close_sender(boot)
            return None
        cursor = self._outbox.cursors[name]
        batch = Batch(
            first=first,
            contexts=reader.header.contexts,
            items=items,
            dropped_before=cursor.kept_from if cursor.kept_from > 1 else 0,
        )
        return name, batch

    def forget(self) -> int:
        """Remove segments that are stored and counted; return how many."""
        removed = 0
        for name, boot in list(self._boots.items()):
            cursor = self._outbox.cursors.get(name)
            if cursor is not None and boot.segments and boot.segments[0].last <= cursor.acked:
                removed += self._forget(name, boot, cursor.acked)
                if boot.segments:
                    self._outbox.found(name, boot.segments[0].first, 0)
            if not boot.segments and not is_live(boot.folder) and _is_bare(boot.folder):
                with contextlib.suppress(OSError):
                    boot.folder.rmdir()
                self._outbox.forgotten(name)
                del self._boots[name]
        return removed

    def size_bytes(self) -> int:
        """Return how much disk the spool takes."""
        total = 0
        for boot in self._boots.values():
            for segment in boot.segments:
                with contextlib.suppress(OSError):
                    total += segment.path.stat().st_blocks * 512
        return total

    def close(self) -> None:
        """Give every file back."""
        for boot in self._boots.values():
            self._close_sender(boot)
            if boot.tail is not None:
                boot.tail.close()

    def _age(self, name: str) -> float:
        first = next(iter(segments(self._spool / name)), self._spool / name)
        try:
            return first.stat().st_mtime
        except OSError:
            return 0.0

    def _follow(self, name: str, boot: _Boot) -> bool:
        found = False
        while True:
            following = self._next_path(boot)
            if boot.tail is not None:
                found |= self._read_tail(name, boot)
            # the writer opens the next segment only after the last record of this one
            if following is None:
                return found
            try:
                tail = SegmentReader(following)
            except (FormatError, NotFoundError):
                return found  # its header is not written yet, or never was
            if boot.tail is not None:
                boot.tail.close()
            boot.tail = tail
            boot.segments.append(
                _Segment(following, tail.header.first_seq, tail.header.first_seq - 1)
            )
            self._outbox.found(name, boot.segments[0].first, 0)

    def _next_path(self, boot: _Boot) -> Path | None:
        if not boot.segments:
            return next(iter(segments(boot.folder)), None)
        last = boot.segments[-1].path
        expected = last.with_name(f"{int(last.stem) + 1:08d}.seg")
        return expected if expected.exists() else None

    def _read_tail(self, name: str, boot: _Boot) -> bool:
        tail, segment = boot.tail, boot.segments[-1]
        assert tail is not None
        before = segment.last
        while records := tail.read(READ_RECORDS):
            segment.last = records[-1][0]
        if segment.last > before:
            # after a gap that a broken disk left, numbers go on from the segment's first
            self._outbox.found(name, boot.segments[0].first, segment.last)
        return segment.last > before

    def _seek(self, boot: _Boot, segment: _Segment, first: int) -> SegmentReader:
        reader = boot.sender
        same = reader is not None and reader.header.first_seq == segment.first
        if reader is None or not same or reader.next_seq > first:
            self._close_sender(boot)
            reader = boot.sender = SegmentReader(segment.path)
        while reader.next_seq < first and reader.read(min(READ_RECORDS, first - reader.next_seq)):
            pass
        return reader

    def _take(self, reader: SegmentReader, last: int, policy: Policy) -> list[Item]:
        items: list[Item] = []
        size = 0
        while reader.next_seq <= last and len(items) < MAX_BATCH_RECORDS:
            records = reader.read(1)
            if not records:
                break
            payload = records[0][1]
            item = self._gate.leaving(payload, reader.header, policy)
            if isinstance(item, Skip) and items and isinstance(items[-1], Skip):
                items[-1] = Skip(items[-1].count + item.count)
                continue
            more = leaving_bytes(item, payload)
            if items and size + more > MAX_ITEM_BYTES:
                break  # it is read once more, for the next message
            items.append(item)
            size += more
            if size >= self._batch_bytes:
                break
        return items

    def _jump(self, name: str, boot: _Boot, first: int) -> None:
        """Go on behind numbers that a broken disk has lost, once what lies before is stored."""
        later = next((s for s in boot.segments if s.first > first), None)
        cursor = self._outbox.cursors[name]
        # what is gone was stored, whether or not the cursor from before a restart knows it
        if later is not None and max(cursor.acked, cursor.kept_from - 1) >= first - 1:
            log.warning("boot %s: records %d to %d are gone", name, first, later.first - 1)
            self._outbox.found(name, later.first, 0)

    def _forget(self, name: str, boot: _Boot, acked: int) -> int:
        settled = settled_upto(boot.folder)
        if settled == DONE:
            # the writer may have ended since the last look: what it wrote before that counts
            self._follow(name, boot)
        removed = 0
        while boot.segments:
            segment = boot.segments[0]
            free = may_forget(
                last=segment.last,
                acked=acked,
                settled=settled,
                newest=len(boot.segments) == 1,
                done=settled == DONE,
            )
            if not free:
                break
            if boot.sender is not None and boot.sender.header.first_seq == segment.first:
                self._close_sender(boot)
            if len(boot.segments) == 1 and boot.tail is not None:
                boot.tail.close()
                boot.tail = None
            segment.path.unlink(missing_ok=True)
            del boot.segments[0]
            removed += 1
        return removed

    def _close_sender(self, boot: _Boot) -> None:
        if boot.sender is not None:
            boot.sender.close()
            boot.sender = None


def _is_bare(folder: Path) -> bool:
    """Tell whether a dead boot holds no record; remove segments that were never begun."""
    for path in segments(folder):
        try:
            read_header(path)
            return False
        except FormatError:
            path.unlink(missing_ok=True)
        except NotFoundError:
            continue
    return True
