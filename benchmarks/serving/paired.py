"""CPU, rate and latency of every server, in turn, round by round; ratios within a round."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.serving.figures import middle
from benchmarks.serving.models import Case
from benchmarks.serving.process import usage
from benchmarks.serving.servers import FORMS, Bare, message

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLIENTS = (1, 8)
IDLE_S = 3.0
MIN_REQUESTS = 60
Rounds = dict[str, dict[str, list[Any]]]

__all__ = ["CLIENTS", "Load", "Target", "measure", "ratio", "summary"]


class Load:
    """The load generator's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "load.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def burst(self, **given: Any) -> dict[str, Any]:
        """Ask so often; return what came."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        got: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in got or set(got["statuses"]) != {"200"}:
            raise SystemExit(f"expected answers with status 200 from {given['address']}: {got}")
        return got

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(5)


class Target:
    """A server under one name, and the ways in which it is asked."""

    def __init__(self, name: str, server: Any, kind: str, *, library: bool = False) -> None:
        self.name, self.server, self.kind, self.library = name, server, kind, library
        self.idle_us_per_s = 0.0

    def cells(self, cases: dict[str, Case]) -> list[tuple[str, dict[str, Any]]]:
        """Every burst that is to be measured: its key and its request."""
        address = self.server.address
        if self.library:
            return [
                (f"{self.name} client {c.name} 1", {
                    "library": True, "address": self.server.url, "model": c.name,
                    "input": c.input, "row": c.row.tobytes().hex(), "shape": list(c.row.shape),
                })
                for c in cases.values()
            ]  # fmt: skip
        return [
            (f"{self.name} {form} {case.name} {clients}", {
                "address": address, "message": message(self.kind, case, form).hex(),
                "clients": clients,
            })
            for form in FORMS[self.kind]
            for case in cases.values()
            for clients in CLIENTS
        ]  # fmt: skip


def measure(
    targets: list[Target], bare: Bare, cases: dict[str, Case], *, rounds: int, burst_s: float,
    say: Callable[[str], None],
) -> Rounds:  # fmt: skip
    """Return every figure of every round, by cell.

    Each round visits every cell once, in an order of its own, and bare `session.run` between them.
    """
    load, rng, found = Load(), random.Random(5), {}
    cells = []
    for target in targets:
        before, began = usage(target.server.pids()), time.perf_counter()
        time.sleep(IDLE_S)
        spent = usage(target.server.pids()).since(before)
        target.idle_us_per_s = spent / (time.perf_counter() - began)
        for key, given in target.cells(cases):
            warm = load.burst(**given, requests=MIN_REQUESTS)
            warm = load.burst(**given, requests=MIN_REQUESTS)
            wanted = int(burst_s * MIN_REQUESTS / warm["seconds"])
            cells.append((key, target, given, max(MIN_REQUESTS, wanted)))
    found = {key: {} for key, *_ in cells} | {f"bare - {name} 1": {} for name in cases}
    for name in cases:
        bare.run(name, 200)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}, {len(cells)} bursts")
        rng.shuffle(cells)
        every = max(1, len(cells) // 4)  # so often in a round, bare runs
        bare_us: dict[str, list[float]] = {name: [] for name in cases}
        for place, (key, target, given, requests) in enumerate(cells):
            if place % every == 0:
                for name in cases:
                    bare_us[name].append(bare.run(name, 4000 if name == "table" else 300))
            pids = target.server.pids()
            before = usage(pids)
            got = load.burst(**given, requests=requests)
            cpu = usage(pids).since(before) - target.idle_us_per_s * got["seconds"]
            row = found[key]
            for figure, value in (
                ("cpu_us", cpu / requests), ("rps", requests / got["seconds"]),
                ("p50_us", got["p50_us"]), ("p99_us", got["p99_us"]),
                ("client_cpu_us", got["client_cpu_us"]),
            ):  # fmt: skip
                row.setdefault(figure, []).append(value)
        for name in cases:
            ordered = sorted(bare_us[name])
            found[f"bare - {name} 1"].setdefault("cpu_us", []).append(ordered[len(ordered) // 2])
    load.stop()
    return found


def ratio(found: Rounds, one: str, other: str) -> list[float]:
    """Return CPU per request of one cell to another's: median of the rounds' ratios, interval."""
    pairs = zip(found[one]["cpu_us"], found[other]["cpu_us"], strict=True)
    return middle([a / b for a, b in pairs], 3)


def summary(found: Rounds) -> dict[str, dict[str, list[float]]]:
    """Return medians with intervals."""
    return {key: {name: middle(v) for name, v in row.items()} for key, row in found.items()}
