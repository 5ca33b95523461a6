"""Each server by itself, with the small model alone: start, memory at rest, after load, growth."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.serving.figures import middle
from benchmarks.serving.models import Case
from benchmarks.serving.paired import Load
from benchmarks.serving.servers import FORMS, PEERS, Agent, Bare, Peer, message

REST_S = 1.0
LOADED = 3_000  # requests before memory is looked at again
FULL = 20_000  # requests after which nothing that is bounded may still grow
STEP, STEPS = 2_000, 24  # of the requests after that, between looks at the agent's memory

__all__ = ["measure"]


def measure(
    envs: Path, folder: Path, cases: dict[str, Case], *, repeat: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return figures by server; every start is of new processes, servers in turn."""
    case = cases["table"]
    found: dict[str, dict[str, list[float]]] = {}
    load = Load()
    for number in range(repeat):
        say(f"start {number + 1} of {repeat}")
        bare = Bare(envs, folder, ["table"])
        bare.run("table", LOADED)
        time.sleep(REST_S)
        _note(found, "bare", start_s=bare.start_s, after_load_mib=bare.memory_mib(), processes=1)
        bare.stop()
        for name in (*PEERS, "skerry"):
            server: Any = (
                Agent(envs, folder, [case])
                if name == "skerry"
                else Peer(name, envs, folder, ["table"])
            )
            time.sleep(REST_S)
            rest = server.memory_mib()
            request = message(name, case, FORMS[name][0]).hex()
            load.burst(address=server.address, message=request, clients=1, requests=LOADED // 2)
            load.burst(address=server.address, message=request, clients=8, requests=LOADED // 2)
            time.sleep(REST_S)
            _note(
                found, name, start_s=server.start_s, rest_mib=rest,
                after_load_mib=server.memory_mib(), processes=len(server.pids()),
            )  # fmt: skip
            if name == "skerry" and number == 0:
                seen = _growth(server, load, request)
            server.stop()
    load.stop()
    made: dict[str, Any] = {
        name: {figure: middle(values, 2) for figure, values in row.items()}
        for name, row in found.items()
    }
    made["skerry"]["memory_mib_by_requests"] = seen
    values = list(seen.values())
    half = len(values) // 2  # rows wait in memory until they are counted: only peaks compare
    grown = (max(values[half:]) - max(values[:half])) * 1024
    made["skerry"]["slope_kib_per_1000"] = round(grown / (half * STEP / 1000), 2)
    return made


def _growth(server: Any, load: Load, request: str) -> dict[str, float]:
    seen = {}
    load.burst(address=server.address, message=request, clients=4, requests=FULL)
    for number in range(1, STEPS + 1):
        load.burst(address=server.address, message=request, clients=4, requests=STEP)
        seen[str(FULL + number * STEP)] = round(server.memory_mib(), 2)
    return seen


def _note(found: dict[str, dict[str, list[float]]], name: str, **figures: float) -> None:
    for figure, value in figures.items():
        found.setdefault(name, {}).setdefault(figure, []).append(value)
