"""What to go on with if the database is lost: a small file beside it, the final net.

Disks of small machines rot, and SQLite cannot read what rotted. The file holds what each slot has
committed, ran before and knows to be good, and the floors below which nothing is believed; not what
was under way, which the fleet orders again. It is written after the database, whenever that part of
the state has changed, and carries its own digest. Nothing else is ever read from it than at a start
without a database.
"""

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import Final

import msgspec

from agent.config import Layout
from agent.device_state import State
from agent.slots import write_whole
from agent.state import Database
from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import FormatError

__all__ = ["LastGood", "open_database"]

log = logging.getLogger(__name__)

MAGIC: Final = b"skerry-last-good-1\n"
MAX_BYTES: Final = 1 << 20
DIGEST_BYTES: Final = 32
DAMAGED: Final = ".damaged"  # ending of what is set aside


class LastGood:
    """The file.

    Args:
        file: in the state directory.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept: bytes | None = None

    def keep(self, state: State) -> None:
        """Write what matters of a state that is durable already, if it is news."""
        data = to_msgpack(_essence(state))
        if data == self._kept:
            return
        # on a full disk the older file stays, and this one is written at the next change
        with contextlib.suppress(OSError):
            write_whole(self._file, MAGIC + hashlib.sha256(data).digest() + data)
            self._kept = data

    def read(self) -> State | None:
        """Return what was kept; None if nothing was, or it is damaged too."""
        try:
            raw = self._file.read_bytes()[: MAX_BYTES + 1]
        except OSError:
            return None
        head = len(MAGIC)
        digest, data = raw[head : head + DIGEST_BYTES], raw[head + DIGEST_BYTES :]
        if not raw.startswith(MAGIC) or hashlib.sha256(data).digest() != digest:
            return None
        try:
            return from_msgpack(data, State, limit=MAX_BYTES)
        except FormatError:
            return None


def open_database(layout: Layout) -> Database:
    """Open the database of a state directory; one that is lost is begun anew from the last good.

    Raises:
        ConflictError: written by a newer agent.
        FormatError: code ``busy``: it cannot be used now, and is not known to be damaged.
    """
    net = LastGood(layout.last_good)
    try:
        database = _open(layout, net)
        if database.load() is not None:
            return database
    except FormatError as error:
        if error.code == "busy":
            raise
        _set_aside(layout.database, str(error))
        database = _open(layout, net)
    kept = net.read()
    if kept is not None:
        log.error("the state was lost; going on with what is known to be good")
        database.save(kept)
    return database


def _open(layout: Layout, net: LastGood) -> Database:
    database = Database(layout.database, net.keep)
    try:
        database.load()
    except FormatError:
        # before the file is renamed: SQLite removes what belongs to it by its name
        database.close()
        raise
    return database


def _set_aside(file: Path, why: str) -> None:
    log.error("%s is damaged (%s); it is set aside", file, why)
    for ending in ("", "-wal", "-shm"):
        part = file.with_name(file.name + ending)
        with contextlib.suppress(FileNotFoundError):
            part.replace(file.with_name(file.name + DAMAGED + ending))


def _essence(state: State) -> State:
    slots = {
        name: msgspec.structs.replace(
            slot, work=None, next=None, begun="" if slot.work is not None else slot.begun
        )
        for name, slot in state.slots.items()
    }
    return State(
        host=state.host,
        # the fleet says once more what shall run
        desired_version=max(0, state.desired_version - 1),
        desired_key=state.desired_key,
        slots=slots,
        floor=state.floor,
        until=state.until,
    )
