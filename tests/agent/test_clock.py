"""The latest of clock, proof and floor holds; only a fresh answer to our own nonce is a proof."""

import types

import pytest

import agent.clock
from agent.clock import DeviceClock
from skerry.trust import Floor, SignedTime

NOW = 1_800_000_000.0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    world = types.SimpleNamespace(now=NOW, up=0.0, CLOCK_BOOTTIME=7)
    world.time = lambda: world.now
    world.clock_gettime = lambda _: world.up
    monkeypatch.setattr(agent.clock, "time", world)
    return world


def test_a_proof_goes_on_by_itself(world: types.SimpleNamespace) -> None:
    clock = DeviceClock()
    world.now = 0.0
    assert clock.answered(clock.ask(), NOW, "k")
    world.up += 100.0
    assert clock.now(Floor()) == NOW + 100.0
    assert clock.signed(Floor(time=5.0, time_key="j")) == [
        SignedTime(5.0, "j"), SignedTime(NOW + 100.0, "k"),
    ]  # fmt: skip


def test_the_latest_witness_holds(world: types.SimpleNamespace) -> None:
    clock = DeviceClock()
    assert clock.now(Floor(time=NOW + 1.0)) == NOW + 1.0
    assert clock.answered(clock.ask(), NOW - 50.0, "k")
    assert clock.now(Floor()) == NOW


def test_a_nonce_is_answered_once_and_in_time(world: types.SimpleNamespace) -> None:
    clock = DeviceClock()
    first, second = clock.ask(), clock.ask()
    assert not clock.answered(first, NOW, "k")
    assert not clock.answered(b"", NOW, "k")
    assert clock.answered(second, NOW, "k")
    assert not clock.answered(second, NOW + 9.0, "k")
    third = clock.ask()
    world.up += 601.0
    assert not clock.answered(third, NOW, "k")


@pytest.mark.parametrize("at", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_no_calendar_has_is_no_proof(world: types.SimpleNamespace, at: float) -> None:
    clock = DeviceClock()
    assert not clock.answered(clock.ask(), at, "k")
    assert clock.now(Floor()) == NOW


def test_a_proof_ends_with_its_key(world: types.SimpleNamespace) -> None:
    clock = DeviceClock()
    clock.answered(clock.ask(), NOW + 1e6, "k")
    clock.keep({"k", "j"})
    assert clock.now(Floor()) == NOW + 1e6
    clock.keep({"j"})
    assert clock.now(Floor()) == NOW


def test_it_asks_again_until_it_is_answered_and_then_now_and_then(
    world: types.SimpleNamespace,
) -> None:
    clock = DeviceClock()
    assert clock.due()
    nonce, asked = clock.ask(), []
    for second in range(400):
        world.up = float(second)
        if clock.due():
            asked.append(second)
            nonce = clock.ask()
    assert asked == [60, 180]
    assert clock.answered(nonce, NOW, "k")
    assert not clock.due()
    world.up += 12 * 3600.0
    assert clock.due()
