"""What people at the device and its windows permit, and what they never hold up."""

import sys
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.config import AgentConfig, Layout
from agent.device_state import Slot
from agent.permission import Consent, Hold, Permission, read_consent, write_consent
from agent.state import Database
from tests.fakes.assignments import NOW, SLOT, Bench, desired, verified, want

CLOSED = "Sat 00:00-01:00"  # NOW is on a Friday at 08:00 UTC
OPEN = "Fri 08:00-09:00"


def staging(*before: int) -> Slot:
    """A slot whose candidate 5 waits to be activated; `before` is what was committed before."""
    bench = Bench()
    for version, counter in enumerate(before, start=1):
        bench.install(version, f"i{counter}", counter)
    bench.take(desired(8, want("b", 5)), verified("b", 5, back=(5,)))
    return bench.state.slots[SLOT]


def hold(
    tmp_path: Path, slot: Slot | None = None, now: float | None = NOW, **settings: str
) -> Hold | None:
    config = AgentConfig(time_zone="UTC", **settings)  # type: ignore[arg-type]
    return Permission(config, tmp_path / "consent.json", lambda: now).hold(slot or staging())


def code(found: Hold | None) -> str:
    return found.code if found else ""


def test_nothing_is_held_up_that_nobody_asked_to(tmp_path: Path) -> None:
    assert hold(tmp_path) is None


def test_a_closed_window_says_when_the_next_one_opens(tmp_path: Path) -> None:
    found = hold(tmp_path, update_windows=CLOSED)
    assert found == Hold(
        "window", "window_closed", "the next maintenance window opens 2027-01-16 00:00 (UTC)"
    )
    assert hold(tmp_path, update_windows=OPEN) is None


def test_without_the_time_every_window_is_closed(tmp_path: Path) -> None:
    assert code(hold(tmp_path, now=None, update_windows=OPEN)) == "clock_unset"
    assert hold(tmp_path, now=None) is None


def test_consent_is_asked_first_and_for_this_assignment_alone(tmp_path: Path) -> None:
    file = tmp_path / "consent.json"
    asks = {"consent": "ask", "update_windows": CLOSED}
    assert code(hold(tmp_path, **asks)) == "consent_needed"
    write_consent(file, Consent(approved=["a#1", "b#2"]))
    assert code(hold(tmp_path, **asks)) == "consent_needed"
    write_consent(file, Consent(approved=["b#1"]))
    assert code(hold(tmp_path, **asks)) == "window_closed"
    write_consent(file, Consent(at_once=["b#1"]))
    assert hold(tmp_path, **asks) is None


def test_a_deferral_ends_by_itself_or_by_approval(tmp_path: Path) -> None:
    file = tmp_path / "consent.json"
    write_consent(file, Consent(deferred_until=NOW + 60))
    assert code(hold(tmp_path)) == "deferred"
    assert code(hold(tmp_path, now=None)) == "deferred"
    assert hold(tmp_path, now=NOW + 60) is None
    write_consent(file, Consent(approved=["b#1"], deferred_until=NOW + 60))
    assert hold(tmp_path) is None


@pytest.mark.parametrize("until", [1e300, 4e9])
def test_a_deferral_to_the_end_of_time_is_one(tmp_path: Path, until: float) -> None:
    write_consent(tmp_path / "consent.json", Consent(deferred_until=until))
    assert code(hold(tmp_path)) == "deferred"


def test_a_return_to_what_ran_before_waits_for_nothing(tmp_path: Path) -> None:
    write_consent(tmp_path / "consent.json", Consent(deferred_until=NOW + 60))
    asks = {"consent": "ask", "update_windows": CLOSED}
    assert hold(tmp_path, staging(5, 9), **asks) is None
    assert code(hold(tmp_path, staging(3, 4), **asks)) == "deferred"


def test_a_damaged_file_approves_nothing(tmp_path: Path) -> None:
    (tmp_path / "consent.json").write_bytes(b'{"approved": ["b#1"')
    assert code(hold(tmp_path, consent="ask")) == "consent_needed"


def test_the_file_does_not_grow(tmp_path: Path) -> None:
    write_consent(tmp_path / "consent.json", Consent(approved=[f"{n}#1" for n in range(999)]))
    kept = read_consent(tmp_path / "consent.json").approved
    assert (len(kept), kept[-1]) == (64, "998#1")


# --- the commands -------------------------------------------------------------------------------


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr("agent.consent.load_identity", lambda _: None)
    layout = Layout(tmp_path)
    bench = Bench()
    bench.take(desired(1, want("b", 5)), verified("b", 5))
    database = Database(layout.database)
    database.save(bench.state)
    database.close()
    return layout


def command(layout: Layout, *arguments: str) -> int:
    return main([*arguments, "--state", str(layout.root)])


def test_approve_names_what_is_under_way(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(layout, "approve") == 0
    assert "models/acme/reader@1.5.0 may be activated" in capsys.readouterr().err
    assert read_consent(layout.consent).approved == ["b#1"]
    assert command(layout, "approve", "--now", SLOT) == 0
    assert read_consent(layout.consent).at_once == ["b#1"]


def test_defer_takes_back_what_was_approved(layout: Layout) -> None:
    command(layout, "approve")
    assert command(layout, "defer", "--hours", "8") == 0
    consent = read_consent(layout.consent)
    assert consent.approved == []
    assert consent.deferred_until > 0
    assert command(layout, "defer", "--hours", "0") == 0
    assert read_consent(layout.consent).deferred_until == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["approve", "lamp"], 3, "a slot of this device (reader), got 'lamp'"),
        (["defer", "--hours", "169"], 2, "0 to 168 hours, got 169"),
        (["defer", "--hours", "nan"], 2, "0 to 168 hours, got nan"),
    ],
)
def test_what_cannot_be_is_said(
    layout: Layout,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    says: str,
) -> None:
    assert command(layout, *arguments) == exit_code
    assert says in capsys.readouterr().err


def test_nothing_under_way_is_nothing_to_approve(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    layout.database.unlink()
    assert command(layout, "approve") == 3
    assert "nothing was approved" in capsys.readouterr().err
    assert not layout.consent.exists()
    sys.stderr.flush()
