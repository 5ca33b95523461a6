"""The agent's database: what must outlive a crash, in SQLite with one writer.

    machine    the update machine's state, saved before every act
    setting    what the fleet decided: policy, message keys
    result     of the last commands, so that each runs at most once

WAL with FULL: what `save` returned from survives a power cut.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from agent.device_state import State
from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import ConflictError, FormatError
from skerry.wire import Result

__all__ = ["Database", "read_state"]

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
_NO_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
PAGE_BYTES: Final = 4096
SCARCE_BYTES: Final = 1 << 20
KEEP_RESULTS: Final = 256
MAX_STATE_BYTES: Final = 4 << 20
_SCHEMA: Final = """
CREATE TABLE machine (id INTEGER PRIMARY KEY CHECK (id = 1), state BLOB NOT NULL) STRICT;
CREATE TABLE setting (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE result (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, ok INTEGER NOT NULL,
                     output TEXT NOT NULL, acked INTEGER NOT NULL DEFAULT 0) STRICT;
PRAGMA user_version = 1;
"""


class Database:
    """The database of one agent; a `Journal` of the update machine.

    Args:
        file: made if it is missing.
        saved: called with every state once it is durable.

    Raises:
        ConflictError: written by a newer agent.
        FormatError: damaged; code ``busy`` where that is not known.
    """

    def __init__(self, file: Path, saved: Callable[[State], None] = lambda _: None) -> None:
        self._file = file
        self._saved = saved
        disk = os.statvfs(file.parent)
        # blocks below a page are given out when the page is first written, and a full disk is
        # then a SIGBUS: SQLite keeps that memory to itself where little is left
        scarce = disk.f_bsize < PAGE_BYTES and disk.f_bavail * disk.f_frsize < SCARCE_BYTES
        try:
            self._open(alone=scarce)
        except sqlite3.DatabaseError as error:
            fault = self._gave_up(error)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_ROOM:
                raise fault from None
            # a full disk has no room for the memory that readers share in a file: do without it,
            # so that what is committed serves; nothing can be saved until there is room
            try:
                self._open(alone=True)
            except sqlite3.DatabaseError:
                self._gave_up(error)
                raise fault from None

    def _open(self, *, alone: bool = False) -> None:
        self._db = sqlite3.connect(self._file, isolation_level=None)
        if alone:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA busy_timeout = 5000")
        self._db.execute("PRAGMA journal_size_limit = 4194304")
        self._prepare()

    def _gave_up(self, error: sqlite3.DatabaseError) -> FormatError:
        if hasattr(self, "_db"):
            self._db.close()
        return _fault(
            error, f"cannot use {self._file}: {error}; check the disk, or move it away and restart"
        )

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def save(self, state: State) -> None:
        """Make the machine's state durable."""
        self._db.execute(
            "INSERT INTO machine VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state",
            (to_msgpack(state),),
        )
        self._saved(state)

    def load(self) -> State | None:
        """Return the machine's state as last saved.

        Raises:
            FormatError: damaged; code ``busy`` where that is not known.
        """
        try:
            row = self._db.execute("SELECT state FROM machine").fetchone()
        except sqlite3.DatabaseError as error:
            raise _fault(error, f"cannot read {self._file}: {error}") from None
        return None if row is None else from_msgpack(row[0], State, limit=MAX_STATE_BYTES)

    def put(self, name: str, value: object) -> None:
        """Keep a setting."""
        self.put_all({name: value})

    def put_all(self, values: Mapping[str, object]) -> None:
        """Keep several settings, all or none."""
        rows = ", ".join(["(?, ?)"] * len(values))
        self._db.execute(
            f"INSERT INTO setting VALUES {rows} "  # noqa: S608 - marks alone
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [part for name, value in values.items() for part in (name, to_msgpack(value))],
        )

    def get(self, name: str, type: type[T]) -> T | None:
        """Return a setting, or None."""
        row = self._db.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else from_msgpack(row[0], type)

    def begin_command(self, id: str) -> bool:
        """Note that a command begins; False if it did before, whatever came of it."""
        cursor = self._db.execute(
            "INSERT INTO result (id, ok, output) VALUES (?, 0, 'interrupted') "
            "ON CONFLICT (id) DO NOTHING",
            (id,),
        )
        self._db.execute(
            "DELETE FROM result WHERE number <= (SELECT max(number) FROM result) - ?",
            (KEEP_RESULTS,),
        )
        return cursor.rowcount == 1

    def end_command(self, result: Result) -> None:
        """Keep what came of a command."""
        self._db.execute(
            "UPDATE result SET ok = ?, output = ? WHERE id = ?",
            (result.ok, result.output, result.id),
        )

    def results(self) -> list[Result]:
        """Return the results that the fleet has not acknowledged."""
        rows = self._db.execute("SELECT id, ok, output FROM result WHERE NOT acked ORDER BY number")
        return [Result(id, bool(ok), output) for id, ok, output in rows]

    def acknowledge(self, ids: list[str]) -> None:
        """Note that the fleet has these results."""
        self._db.executemany("UPDATE result SET acked = 1 WHERE id = ?", [(id,) for id in ids])

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise ConflictError(
                f"expected {self._file} of version {SCHEMA_VERSION}, got {version}; update the agent"
            )
        if version == 0:
            self._db.executescript("BEGIN;" + _SCHEMA + "COMMIT;")


def _fault(error: sqlite3.DatabaseError, text: str) -> FormatError:
    """Tell damage from a disk that is full, slow or gone for the moment."""
    damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED
    return FormatError(text, "format" if damaged else "busy")


def read_state(file: Path) -> State | None:
    """Return the state of an agent that may be running, without disturbing it.

    Raises:
        FormatError: damaged.
    """
    if not file.exists():
        return None
    try:
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)
        try:
            row = db.execute("SELECT state FROM machine").fetchone()
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise FormatError(f"cannot read {file}: {error}") from None
    return None if row is None else from_msgpack(row[0], State, limit=MAX_STATE_BYTES)
