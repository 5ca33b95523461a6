"""Migrations and schema agree, on both databases, from empty and from what is there."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from fleet.database import open_database
from fleet.migrate import alembic_config, upgrade
from fleet.schema import METADATA
from skerry.errors import RefusedError, UnreachableError, UsageError


def test_migrations_make_exactly_the_schema(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with database.write() as connection:
        # SQLite gives an empty text back in other quotes than it was given
        options = {"compare_server_default": connection.dialect.name != "sqlite"}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []
        assert set(inspect(connection).get_table_names()) == {
            *METADATA.tables,
            "alembic_version",
        }
    database.close()


def test_opening_again_changes_nothing(empty_database_url: str) -> None:
    open_database(empty_database_url).close()
    database = open_database(empty_database_url)
    with database.write() as connection:
        upgrade(connection)
        assert MigrationContext.configure(connection).get_current_revision() is not None
    database.close()


def test_migrations_form_one_line() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
        assert len(scripts.get_heads()) == 1
        assert [script.revision for script in scripts.walk_revisions()][-1] == "0001"
    engine.dispose()


def test_a_database_of_a_newer_version_is_left_alone(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(RefusedError, match="newer Skerry"):
        open_database(empty_database_url)


def test_half_a_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"

    def torn(*_: object) -> None:
        raise RefusedError("torn")

    with monkeypatch.context() as patch:
        patch.setattr("fleet.database.upgrade", lambda c: (upgrade(c), torn()))
        with pytest.raises(RefusedError, match="torn"):
            open_database(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize("url", ["no address", "nosuchdb://x"])
def test_a_wrong_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="database address"):
        open_database(url)


def test_a_database_that_does_not_answer_is_unreachable(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UnreachableError, match="does not answer"):
        open_database(f"postgresql+psycopg://x@/x?host={tmp_path}")


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'fleet.db'}"
    open_database(url).close()
    script = (
        "import sys; from fleet.database import open_database; from sqlalchemy import text\n"
        "database = open_database(sys.argv[1])\n"
        "for n in range(40):\n"
        "    with database.write() as c:\n"
        "        got = c.execute(text('SELECT count(*) FROM audit')).scalar()\n"
        '        c.execute(text("INSERT INTO audit (at, actor, action, subject, detail)"\n'
        "                       \" VALUES (:n, 'a', 'b', 'c', '{}')\"), {'n': got})\n"
    )
    root = Path(__file__).parents[2]
    writers = [subprocess.Popen([sys.executable, "-c", script, url], cwd=root) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    database = open_database(url)
    with database.read() as connection:
        seen = connection.scalars(text("SELECT at FROM audit ORDER BY n")).all()
    database.close()
    assert seen == [float(n) for n in range(80)]
