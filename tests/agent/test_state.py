"""The database: what was saved is there after a kill, and each command runs at most once."""

import sqlite3
from pathlib import Path

import pytest

from agent.state import Database, read_state
from skerry.errors import ConflictError, FormatError
from skerry.wire import Policy, Result
from tests.fakes.assignments import Bench, desired, fresh, want


def test_a_saved_state_is_loaded_again(tmp_path: Path) -> None:
    bench = Bench()
    bench.take(desired(1, want("a")))
    database = Database(tmp_path / "state.db")
    assert database.load() is None
    database.save(fresh())
    database.save(bench.state)
    database.close()
    assert Database(tmp_path / "state.db").load() == bench.state


def test_a_look_from_outside_sees_the_state_beside_its_writer(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    assert read_state(file) is None
    database = Database(file)
    assert read_state(file) is None
    database.save(fresh())
    assert read_state(file) == fresh()
    database.close()


def test_what_was_saved_survives_a_writer_that_never_closed(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    database.save(fresh())
    # as after a kill: the log is not folded into the file
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("state.db", "state.db-wal"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    assert Database(copy / "state.db").load() == fresh()


def test_settings_are_kept(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    assert database.get("policy", Policy) is None
    database.put("policy", Policy(version=1))
    database.put("policy", Policy(version=2, window_s=1.0))
    assert database.get("policy", Policy) == Policy(version=2, window_s=1.0)


def test_a_command_begins_once_and_its_result_is_said_until_acknowledged(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    assert database.begin_command("c-1")
    assert not database.begin_command("c-1")
    # a crash between the two: it is not run again, and says so
    assert database.results() == [Result("c-1", ok=False, output="interrupted")]
    database.end_command(Result("c-1", ok=True, output="pong"))
    assert database.results() == [Result("c-1", ok=True, output="pong")]
    database.acknowledge(["c-1", "unknown"])
    assert database.results() == []
    assert not database.begin_command("c-1")


def test_only_the_last_commands_are_remembered(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    for number in range(300):
        database.begin_command(f"c-{number}")
    assert len(database.results()) == 256
    assert database.results()[0].id == "c-44"


def test_a_newer_database_is_not_touched(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConflictError, match="update the agent"):
        Database(tmp_path / "state.db")


def test_a_damaged_database_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(FormatError, match="move it away"):
        Database(tmp_path / "state.db")
    with pytest.raises(FormatError, match="cannot read"):
        read_state(tmp_path / "state.db")
