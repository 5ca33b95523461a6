"""The state machines: what is not listed raises, every state is reached, and the drawing is current."""

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from skerry import states
from skerry.errors import InvalidTransition

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINES: dict[str, tuple[Any, type[StrEnum], frozenset[Any]]] = {
    "rollout": (states.ROLLOUT, states.RolloutState, frozenset({"archived"})),
    "stage": (states.STAGE, states.StageState, frozenset({"passed", "failed", "skipped"})),
    "assignment": (
        states.ASSIGNMENT,
        states.AssignmentState,
        states.ASSIGNMENT_ENDS - {"committed", "already_installed"},
    ),
    "analysis": (states.ANALYSIS, states.AnalysisState, frozenset({"successful", "failed"})),
    "device": (states.DEVICE, states.DeviceState, frozenset({"decommissioned"})),
}
EVERY_PAIR = [
    pytest.param(table, before, after, id=f"{name}-{before}-{after}")
    for name, (table, kind, _) in MACHINES.items()
    for before in kind
    for after in kind
]


@pytest.fixture(params=sorted(MACHINES))
def machine(request: pytest.FixtureRequest) -> tuple[Any, type[StrEnum], frozenset[Any]]:
    return MACHINES[request.param]


@pytest.mark.parametrize(("table", "before", "after"), EVERY_PAIR)
def test_a_step_is_listed_or_raises(table: Any, before: StrEnum, after: StrEnum) -> None:
    if after in table[before]:
        assert states.advance(table, before, after) is after
    else:
        with pytest.raises(InvalidTransition, match=f"{before} may be followed by .*; got {after}"):
            states.advance(table, before, after)


def test_every_state_has_its_row(machine: tuple[Any, type[StrEnum], frozenset[Any]]) -> None:
    table, kind, _ = machine
    assert set(table) == set(kind)


def test_every_state_is_reached_from_the_first(
    machine: tuple[Any, type[StrEnum], frozenset[Any]],
) -> None:
    table, kind, _ = machine
    reached, ahead = set(), [next(iter(kind))]
    while ahead:
        state = ahead.pop()
        if state not in reached:
            reached.add(state)
            ahead += table[state]
    assert reached == set(kind)


def test_ends_are_where_nothing_follows(
    machine: tuple[Any, type[StrEnum], frozenset[Any]],
) -> None:
    table, _, ends = machine
    assert {state for state, afters in table.items() if not afters} == ends


def test_no_state_follows_itself(machine: tuple[Any, type[StrEnum], frozenset[Any]]) -> None:
    table, _, _ = machine
    assert [state for state, afters in table.items() if state in afters] == []


def test_only_probation_leads_to_committed() -> None:
    before = {state for state, afters in states.ASSIGNMENT.items() if "committed" in afters}
    assert before == {"probation"}


def test_a_device_can_be_withdrawn_from_wherever_it_stands() -> None:
    for state, afters in states.ASSIGNMENT.items():
        if state not in states.ASSIGNMENT_ENDS:
            assert {"canceled", "superseded", "decommissioned"} <= afters


def test_the_drawing_is_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "draw_states.py"), "--check"]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
