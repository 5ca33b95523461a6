"""A device whose database rotted goes on with what it had committed."""

import random
import sqlite3
from pathlib import Path

import pytest

from agent.config import Layout
from agent.device_state import serving
from agent.last_good import LastGood, open_database
from agent.state import Database, _fault
from skerry.errors import ConflictError, FormatError
from skerry.wire import Policy
from tests.fakes.assignments import SLOT, Bench, desired, digest, fresh, want, way


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def running() -> Bench:
    """Two releases committed, a third under way."""
    bench = Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    bench.take(desired(3, want("c", 3)), *way("c", 3)[:2])
    return bench


def save(layout: Layout, bench: Bench) -> None:
    database = open_database(layout)
    database.save(bench.state)
    database.put("policy", Policy(version=4))
    database.close()


def damage(layout: Layout, how: str) -> None:
    file = layout.database
    if how == "gone":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no database":
        file.write_bytes(b"\0" * 8192)
    elif how == "no state":
        with sqlite3.connect(file) as db:
            db.execute("UPDATE machine SET state = x'c1c1'")
        db.close()
    else:
        data = bytearray(file.read_bytes())
        data[100:4000] = random.Random(3).randbytes(3900)
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "empty", "no database", "no state", "rotten"])
def test_what_was_committed_goes_on(layout: Layout, how: str) -> None:
    bench = running()
    save(layout, bench)
    damage(layout, how)
    database = open_database(layout)
    state = database.load()
    assert state is not None
    slot, before = state.slots[SLOT], bench.state.slots[SLOT]
    assert (slot.current, slot.previous) == (before.current, before.previous)
    assert serving(state)[SLOT].ref.bundle == "sha256:" + digest(2)
    assert state.floor == bench.state.floor
    aside = layout.database.with_name("state.db.damaged")
    assert aside.exists() is (how not in {"gone", "empty"})
    # the fleet says again what shall run, and the third is begun anew
    again = Bench(state)
    again.take(desired(3, want("c", 3)), *way("c", 3))
    assert again.last_word() == "committed"
    database.save(again.state)
    database.close()


def test_what_was_over_is_not_begun_again(layout: Layout) -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    save(layout, bench)
    damage(layout, "rotten")
    database = open_database(layout)
    again = Bench(database.load())
    database.close()
    again.take(desired(1, want("a", 1)))
    assert again.state.slots[SLOT].work is None


def test_a_sound_database_is_believed_and_no_file_beside_it(layout: Layout) -> None:
    save(layout, running())
    older = Bench()
    older.install(1, "a", 1)
    LastGood(layout.last_good).keep(older.state)
    database = open_database(layout)
    state = database.load()
    assert state is not None
    assert serving(state)[SLOT].ref.bundle == "sha256:" + digest(2)
    assert database.get("policy", Policy) == Policy(version=4)
    database.close()


@pytest.mark.parametrize("at", [0, 30, 60, -1])
def test_a_file_that_rotted_too_is_not_believed(layout: Layout, at: int) -> None:
    save(layout, running())
    damage(layout, "no database")
    data = bytearray(layout.last_good.read_bytes())
    data[at] ^= 1
    layout.last_good.write_bytes(data)
    database = open_database(layout)
    assert database.load() is None
    database.close()


def test_it_is_written_when_it_matters_and_not_with_every_step(layout: Layout) -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    net = LastGood(layout.last_good)
    net.keep(bench.state)
    wrote = layout.last_good.stat().st_ino
    bench.take(desired(2, want("b", 2)))
    net.keep(bench.state)
    begun = layout.last_good.stat().st_ino
    for event in way("b", 2)[:-1]:
        bench.take(event)
        net.keep(bench.state)
        metadata_floor_rose = bench.state.floor
    assert begun != wrote
    before = layout.last_good.read_bytes()
    bench.take(way("b", 2)[-1])
    net.keep(bench.state)
    assert layout.last_good.read_bytes() != before
    assert metadata_floor_rose.releases == {SLOT: 1}


def test_a_full_disk_leaves_the_older_file(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    net = LastGood(layout.last_good)
    net.keep(fresh())
    bench = running()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.last_good.write_whole", full)
        net.keep(bench.state)
    assert net.read() == fresh()
    net.keep(bench.state)
    assert net.read() != fresh()


def test_a_disk_that_cannot_be_read_for_a_moment_is_no_damage(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(layout, running())

    def unreadable(_: Database) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise _fault(error, "cannot read")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "load", unreadable)
        with pytest.raises(FormatError) as caught:
            open_database(layout)
    assert caught.value.code == "busy"
    assert not layout.database.with_name("state.db.damaged").exists()
    open_database(layout).close()


def test_a_database_that_is_merely_busy_or_newer_is_left_alone(layout: Layout) -> None:
    save(layout, running())
    with sqlite3.connect(layout.database) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConflictError, match="update the agent"):
        open_database(layout)
    layout.database.unlink()
    layout.database.mkdir()
    with pytest.raises(FormatError) as caught:
        open_database(layout)
    assert caught.value.code == "busy"
    assert layout.database.is_dir()
