"""Runs damaged inputs through a parser, in this process, and notes what must not happen.

    crash    anything but the parser's documented errors escapes
    hang     an input takes longer than `HANG_S` of CPU; a timer ends it
    growth   the process holds over `GROWTH_BYTES` more than before

An input whose outcome is new (another error, or none) joins the seeds, so that damage adds up.
A run is a function of its seed. The input under way lies in a mapped file, which outlives a
crash of the interpreter itself.
"""

import mmap
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.mutate import damage_bytes

HANG_S = 1.0
GROWTH_BYTES = 64 << 20
MAX_POOL = 128
SETTLE = 500  # inputs before the memory held is first looked at
LOOK_EVERY = 64
_NUMBERS = re.compile(r"[0-9]+|'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True)
class Target:
    """A parser, what it may raise, and how its inputs are made.

    Attributes:
        parse: takes bytes; what it returns does not matter.
        errors: that it documents.
        seeds: good inputs.
        make: another way to an input than damage to the bytes of one.
        longest: bytes of an input; now and then up to eight times as many.
    """

    name: str
    parse: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]
    make: Callable[[Random, bytes], bytes] | None = None
    longest: int = 16 << 10


@dataclass
class Outcome:
    """What a run found."""

    inputs: int = 0
    seconds: float = 0.0
    accepted: int = 0
    worst_ms: float = 0.0
    growth_bytes: int = 0
    failures: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.failures and self.growth_bytes <= GROWTH_BYTES


class Hang(BaseException):
    """Raised by the timer; no parser catches it."""


def run(target: Target, inputs: int, *, seed: int = 1, under_way: Path | None = None) -> Outcome:
    """Run so many damaged inputs; stops early at the tenth failure."""
    rng = Random(f"{target.name} {seed}")
    pool, kinds, outcome = list(target.seeds), set[str](), Outcome()
    shown = _map(under_way, 16 * target.longest) if under_way is not None else None
    before, began = signal.signal(signal.SIGPROF, _ring), time.perf_counter()
    held = 0
    try:
        for number in range(inputs):
            data = _input(rng, target, pool)
            if shown is not None:
                shown[: len(data) + 8] = len(data).to_bytes(8, "big") + data
            kind = _one(target, data, outcome)
            if kind not in kinds:
                kinds.add(kind)
                if len(pool) < MAX_POOL + len(target.seeds) and len(data) <= target.longest:
                    pool.append(data)
            if number % LOOK_EVERY == 0 and number >= min(SETTLE, inputs // 4):
                now = _rss()
                held = held or now
                outcome.growth_bytes = max(outcome.growth_bytes, now - held)
            outcome.inputs += 1
            if len(outcome.failures) >= 10:
                break
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
    outcome.seconds = time.perf_counter() - began
    return outcome


def _one(target: Target, data: bytes, outcome: Outcome) -> str:
    """Parse one input; return what kind of outcome it was."""
    began = time.process_time()  # a neighbour's load is no hang
    try:
        kind = _timed(target, data, outcome)
    except Hang:
        kind = f"hang: {time.process_time() - began:.1f} s"
        outcome.failures.append((kind, data))
    outcome.worst_ms = max(outcome.worst_ms, (time.process_time() - began) * 1000)
    return kind


def _timed(target: Target, data: bytes, outcome: Outcome) -> str:
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        target.parse(data)
        outcome.accepted += 1
        return "accepted"
    except target.errors as error:
        return f"{type(error).__name__} {_NUMBERS.sub('', str(error))[:60]}"
    except (Hang, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever else escapes is what is looked for
        kind = f"crash: {type(error).__name__}: {str(error)[:120]}"
        outcome.failures.append((kind, data))
        return kind
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def _input(rng: Random, target: Target, pool: list[bytes]) -> bytes:
    longest = target.longest * (8 if rng.random() < 0.002 else 1)
    # half of them from what is good, or damage to damage never gets past the first look
    fresh = pool if rng.random() < 0.5 else target.seeds
    chosen = fresh[int(rng.random() * len(fresh))]
    if target.make is not None and rng.random() < 0.6:
        return target.make(rng, chosen)[:longest]
    return damage_bytes(rng, chosen, pool, longest=longest)


def _ring(_number: int, _frame: FrameType | None) -> None:
    raise Hang


def _rss() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - opened a hundred thousand times
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _map(path: Path, size: int) -> mmap.mmap:
    path.write_bytes(bytes(size + 8))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def shown(path: Path) -> bytes:
    """Return the input that was under way when a run's process died."""
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "big")]
