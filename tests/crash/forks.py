"""SIGKILL, or a power cut, at random instants, thousands of times, by fork from a warmed process."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.crash.ledger import Ledger
from tests.crash.lives import live, settle

DEATHS_A_DEVICE: Final = 50
ENOUGH: Final = 20  # violations


def by_fork(
    folder: Path,
    deaths: int,
    seed: int,
    *,
    kill: Callable[[int], None] = lambda pid: os.kill(pid, signal.SIGKILL),
    cuts_power: bool = False,
    now: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Let so many lives die; every fifty of them are one device, which then must come to rest.

    Args:
        folder: for the devices.
        deaths: how many.
        seed: of instants and of what happens when.
        kill: ends a process, and whatever else goes with it.
        cuts_power: whether the machine starts anew after each death.
        now: the devices' clock, Unix seconds.
    """
    rng = random.Random(seed)
    phases: Counter[str] = Counter()
    wrong: list[str] = []
    counts = Counter[str](deaths=0)
    while counts["deaths"] < deaths and len(wrong) < ENOUGH:
        counts["devices"] += 1
        root, ledger = folder / f"device-{counts['devices']}", Ledger()
        # first in peace, so that there is an old model
        wrong += settle(root, ledger, last=1, seed=rng.randrange(1 << 30), os_boot="os-0", now=now)
        whole = live(
            root, ledger, seed=rng.randrange(1 << 30), last=3, os_boot="os-0", now=now
        ).seconds
        os_boot = "os-0"
        for _ in range(min(DEATHS_A_DEVICE, deaths - counts["deaths"])):
            instant = rng.uniform(0.0, 2.0 * whole)
            death = live(
                root, ledger, seed=rng.randrange(1 << 30), kill_after_s=instant, kill=kill,
                os_boot=os_boot, now=now,
            )  # fmt: skip
            if not os.WIFSIGNALED(death.status):
                wrong.append(f"a life ended by itself in {death.phase}: {ledger.broken[-1:]}")
                break
            counts["deaths"] += 1
            phases[death.phase] += 1
            if cuts_power:
                os_boot = f"os-{counts['deaths']}"
        last = _reached(ledger) + 1
        end = settle(root, ledger, last=last, seed=rng.randrange(1 << 30), os_boot=os_boot, now=now)
        wrong += [f"device {counts['devices']}: {text}" for text in end]
        counts.update(
            releases=last, answered=len(ledger.answered), records=len(ledger.stored),
            lost=ledger.lost, reported_at_most=ledger.bound,
        )  # fmt: skip
        shutil.rmtree(root)
    return {**counts, "died_in": dict(sorted(phases.items())), "wrong": wrong[:ENOUGH]}


def _reached(ledger: Ledger) -> int:
    versions = [
        int(context.model_version.split(".")[1])
        for contexts in ledger.contexts.values()
        for context in contexts
    ]
    return max(versions, default=1)
