"""The database behind the stores: SQLite in the data directory, or PostgreSQL by address.

`write` is one transaction: it commits when its block ends, rolls back when it raises.
On SQLite one lock orders the writers of this process and ``BEGIN IMMEDIATE`` those of
others; readers see a snapshot (WAL) and never wait. `read` gives a connection that
must not write.
"""

import contextlib
import functools
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from fleet.migrate import upgrade
from skerry.errors import SkerryError, UnreachableError, UsageError

__all__ = ["Database", "open_database", "upsert"]

BUSY_TIMEOUT_S: Final = 30.0
POOL_SIZE: Final = 8


class Database:
    """A database whose schema is up to date."""

    def __init__(self, engine: Engine) -> None:
        self.engine: Final = engine
        self.dialect: Final = engine.dialect.name
        self._writer: Final = threading.RLock()

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """Run one writing transaction: committed at the end of the block."""
        lock = self._writer if self.dialect == "sqlite" else contextlib.nullcontext()
        with lock, self.engine.connect() as connection:
            connection = connection.execution_options(skerry_writes=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection that reads one snapshot."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open the database at an address, and bring its schema up to date.

    Args:
        url: as SQLAlchemy has it: ``sqlite:///path``, ``postgresql+psycopg://...``.

    Raises:
        UsageError: no such kind of database, or its driver is not installed.
        UnreachableError: it does not answer.
    """
    try:
        parsed = make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {}
        if is_sqlite:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_S}
        engine = create_engine(parsed, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, **options)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            f"expected a database address such as sqlite:///fleet.db: {error}"
        ) from None
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the driver of this database is not installed ({error.name}): "
            'pip install "skerry[postgres]"'
        ) from None
    if is_sqlite:
        _use_sqlite_well(engine)
    database = Database(engine)
    try:
        with database.write() as connection:
            upgrade(connection)
    except OperationalError as error:
        database.close()
        raise UnreachableError(
            f"the database at {parsed.render_as_string(hide_password=True)} does not answer: "
            f"{error.orig}; start it, or correct database_url"
        ) from None
    except SkerryError:
        database.close()
        raise
    return database


def _use_sqlite_well(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a writer that begins as a reader may find the database changed under it
        writes = connection.get_execution_options().get("skerry_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def upsert(
    connection: Connection,
    table: Table,
    keys: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    add: Sequence[str] = (),
) -> Any:
    """Return an insert that replaces the row of the same keys.

    Args:
        connection: says which database it is for.
        table: where to.
        keys: columns of the primary key.
        columns: which columns are replaced; all but the keys if not given.
        add: of these, those whose new value is added to the old.
    """
    names = None if columns is None else tuple(columns)
    return _upsert(connection.dialect.name, table, tuple(keys), names, tuple(add))


@functools.lru_cache(maxsize=256)  # building one costs more than running it
def _upsert(
    dialect: str,
    table: Table,
    keys: tuple[str, ...],
    columns: tuple[str, ...] | None,
    add: tuple[str, ...],
) -> Any:
    replaced = [c for c in columns or [c.name for c in table.columns] if c not in keys]
    make: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = make(table)
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=list(keys),
        set_={name: table.c[name] + new[name] if name in add else new[name] for name in replaced},
    )
