"""Devices whose clock is decades off, or jumps, killed like the others."""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.crash.forks import by_fork

JUMP_CHANCE: Final = 0.02  # each time that somebody looks
STARTS: Final = {
    "1970": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
    "2038": datetime(2038, 1, 19, 3, 14, 6, tzinfo=UTC),  # two seconds before 2^31
    "2099": datetime(2099, 12, 31, 23, 59, 58, tzinfo=UTC),
}


def clocks(folder: Path, deaths: int, seed: int) -> dict[str, Any]:
    """Kill devices by each clock; a quarter of the deaths goes to each."""
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name, now in _clocks(seed).items():
        result = by_fork(folder / name, max(1, deaths // 4), seed, now=now)
        wrong += [f"{name}: {text}" for text in result.pop("wrong")]
        found[name] = {key: result[key] for key in ("deaths", "releases", "answered", "records")}
    return {**found, "wrong": wrong}


def _clocks(seed: int) -> dict[str, Callable[[], float]]:
    begin = time.time()

    def running(start: float) -> Callable[[], float]:
        return lambda: start + time.time() - begin

    return {name: running(at.timestamp()) for name, at in STARTS.items()} | {"jumps": Jumps(seed)}


class Jumps:
    """A clock that jumps between the years."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._offset = 0.0

    def __call__(self) -> float:
        if self._rng.random() < JUMP_CHANCE:
            to = self._rng.choice([*(at.timestamp() for at in STARTS.values()), time.time()])
            self._offset = to - time.time() + self._rng.uniform(0.0, 86_400.0)
        return time.time() + self._offset
