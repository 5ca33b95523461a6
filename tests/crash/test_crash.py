"""A small part of `make crash`, and that it notices what is broken."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import slots
from agent.recover import Recovery
from agent.spool import Spool
from tests.crash import calls, power
from tests.crash.clocks import clocks
from tests.crash.forks import by_fork
from tests.crash.labels import labels_killed

pytestmark = pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
SEED = 5
SHM = Path("/dev/shm")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder whose syncs cost nothing: a SIGKILL takes nothing from a disk."""
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as folder:
        yield Path(folder)


def test_killed_lives_lose_nothing(memory: Path) -> None:
    found = by_fork(memory, 60, SEED)
    assert found["deaths"] == 60
    assert found["answered"] > 100
    assert found["lost"] == 0
    assert found["wrong"] == []


def test_labels_are_counted_once_through_kills_and_swaps(memory: Path) -> None:
    found = labels_killed(memory, 3, SEED)
    assert found["kills"] == 3
    assert found["became"]["joined"] > 100
    assert found["wrong"] == []


@pytest.mark.skipif(bool(calls.usable()), reason=calls.usable())
def test_some_calls_fail_and_nothing_is_lost(memory: Path) -> None:
    found = calls.every_call(memory, 90, SEED)
    assert found["killed"] > 3
    assert found["EIO"] > 3
    assert found["wrong"] == []


@pytest.mark.skipif(bool(power.usable()), reason=power.usable())
def test_power_cuts_lose_no_more_than_is_said(tmp_path: Path) -> None:
    found = power.power_cuts(tmp_path, 25, SEED)
    assert found["deaths"] == 25
    assert found["wrong"] == []


@pytest.mark.skipif(bool(power.usable()), reason=power.usable())
def test_a_full_disk_goes_on_answering(tmp_path: Path) -> None:
    found = power.disk_full(tmp_path, 32, SEED)
    assert found["sizes"] == 3
    assert found["answered_while_full"] > 0
    assert found["wrong"] == []


def test_no_year_is_too_early_or_too_late(memory: Path) -> None:
    assert clocks(memory, 20, SEED)["wrong"] == []


def test_an_answer_before_its_record_is_noticed(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Spool.append
    monkeypatch.setattr(
        Spool,
        "append",
        lambda self, data: self.next_seq if self.next_seq % 7 == 5 else append(self, data),
    )
    assert any("lost" in text for text in by_fork(memory, 20, SEED)["wrong"])


def test_windows_that_nobody_rebuilds_are_noticed(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recovery, "_take_over", lambda *_: 0)
    assert by_fork(memory, 20, SEED)["wrong"]


def test_a_torn_model_is_noticed(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots.Slots, "check", lambda *_: None)
    monkeypatch.setattr("agent.download.Fetcher._digest", _believe)
    found = by_fork(memory, 30, SEED)
    assert any("nobody released" in text for text in found["wrong"])


def _believe(_fetcher: object, part: Path, _size: int) -> str:
    """Throw some of a part away, and say that it is right."""
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2] if len(data) > 10_000 else data)
    return "sha256:" + part.name.removesuffix(".part")
