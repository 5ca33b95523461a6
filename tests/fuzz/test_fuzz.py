"""Damaged input is refused with the documented error, soon, and without growth."""

import os
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.fuzz.harness import HANG_S, Outcome, Target, run
from tests.fuzz.targets import all_targets

INPUTS = 2000
TARGETS = all_targets()


@pytest.mark.parametrize("name", TARGETS)
def test_no_damage_gets_past_the_parser(name: str) -> None:
    target = TARGETS[name]
    outcome = run(target, INPUTS)
    assert outcome.failures == []
    assert outcome.good
    assert outcome.worst_ms < HANG_S * 1000
    assert outcome.inputs == INPUTS


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_whole_is_accepted(name: str) -> None:
    target = TARGETS[name]
    target.parse(target.seeds[0])


def fuzz(parse: object, seeds: tuple[bytes, ...] = (b"seed" * 20,)) -> Outcome:
    return run(Target("made up", parse, (ValueError,), seeds), 400)  # type: ignore[arg-type]


def test_the_fuzzer_sees_a_crash() -> None:
    def crashes(data: bytes) -> None:
        if len(data) < 40:
            raise KeyError(data)
        raise ValueError

    assert fuzz(crashes).failures[0][0].startswith("crash: KeyError")


def test_the_fuzzer_sees_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "HANG_S", 0.05)

    def hangs(data: bytes) -> None:
        while data != b"seed" * 20:
            pass

    found = run(Target("made up", hangs, (), (b"seed" * 20,)), 3).failures
    assert found
    assert found[0][0].startswith("hang")


def test_the_fuzzer_sees_growth() -> None:
    kept: list[bytes] = []
    outcome = fuzz(lambda data: kept.append(bytes([len(data) % 256]) * (1 << 20)))
    assert outcome.growth_bytes > 64 << 20
    assert not outcome.good


def test_a_run_is_a_function_of_its_seed() -> None:
    seen: list[list[bytes]] = [[], []]
    for inputs in seen:
        run(Target("t", inputs.append, (), (b"0123456789" * 9,)), 200, seed=5)
    assert seen[0] == seen[1]


def test_the_input_under_way_outlives_the_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        run(Target("t", lambda data: os.kill(os.getpid(), 9), (), (b"good" * 99,)), 5,
            under_way=tmp_path / "input")  # fmt: skip
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9
    assert 0 < len(harness.shown(tmp_path / "input")) < 1 << 16
