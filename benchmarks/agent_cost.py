"""What the agent costs beside bare `session.run`, FastAPI, MLServer, BentoML and LitServe.

    python benchmarks/agent_cost.py [--rounds 9] [--only alone,paired,...] [--out agent]

    alone    each server by itself with one small model: start, memory at rest and after load
    imports  memory of each import of the serving process, on top of bare onnxruntime
    paired   all servers with two models, asked in turn: CPU per request, rate, latencies

Each server runs in an environment of its own under --envs (made by serving/environments.py), the
agent in one with a device's packages. CPU time is that of every process of a server, from the
kernel, less what it takes at rest. Ratios are taken within a round. Parts that were not asked for
are kept from the last run of the same name.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import RESULTS, write  # noqa: E402 - after the path is set
from benchmarks.serving import alone, imports, paired, tables  # noqa: E402
from benchmarks.serving.environments import NAMES, make  # noqa: E402
from benchmarks.serving.figures import Goals  # noqa: E402
from benchmarks.serving.models import make_models  # noqa: E402
from benchmarks.serving.servers import PEERS, Agent, Bare, Peer  # noqa: E402


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


def run_alone(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start and memory."""
    return alone.measure(given.envs, folder, make_models(folder), repeat=given.repeat, say=say)


def run_imports(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Memory by import."""
    return imports.measure(given.envs, folder, make_models(folder), repeat=given.repeat)


def run_paired(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """CPU, rate and latency."""
    cases = make_models(folder)
    bare = Bare(given.envs, folder, list(cases))
    servers: list[Any] = []
    try:
        targets = []
        for name in PEERS:
            servers.append(Peer(name, given.envs, folder, list(cases)))
            targets.append(paired.Target(name, servers[-1], name))
        servers.append(Agent(given.envs, folder, list(cases.values())))
        targets.append(paired.Target("skerry", servers[-1], "skerry"))
        targets.append(paired.Target("skerry-unix", servers[-1], "skerry", library=True))
        found = paired.measure(
            targets, bare, cases, rounds=given.rounds, burst_s=given.burst, say=say
        )
    finally:
        for server in servers:
            server.stop()
        bare.stop()
    return {"rounds": given.rounds, "cells": paired.summary(found), "ratios": ratios(found)}


def ratios(found: paired.Rounds) -> dict[str, list[float]]:
    """What the goals speak of."""
    made = {
        f"{key} to bare": paired.ratio(found, key, f"bare - {key.split()[-2]} 1")
        for key in found
        if not key.startswith("bare")
    }
    for key in found:
        if key.startswith("skerry"):
            other = f"mlserver json {' '.join(key.split()[-2:])}"
            made[f"{key} to mlserver"] = paired.ratio(found, key, other)
    return made


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "alone": run_alone,
    "imports": run_imports,
    "paired": run_paired,
}


def judge(parts: dict[str, Any]) -> list[dict[str, object]]:
    """Compare with the goals."""
    goals = Goals()
    if found := parts.get("alone"):
        memory = found["skerry"]["after_load_mib"][0] - found["bare"]["after_load_mib"][0]
        goals.at_most(
            "memory of serve, beyond bare onnxruntime with the model", 12, round(memory, 1), "MiB"
        )
        slope = found["skerry"]["slope_kib_per_1000"]
        goals.at_most(
            "growth of serve's memory in its last 20,000 requests",
            1,
            slope,
            "KiB per 1,000 requests",
        )
        goals.at_most("start to ready", 1.2, found["skerry"]["start_s"], "s")
    if found := parts.get("paired"):
        made = found["ratios"]
        goals.at_most(
            "CPU of a binary tabular request, to MLServer's",
            0.12,
            made["skerry binary table 1 to mlserver"],
            "x",
        )
        goals.at_most(
            "the same, to bare session.run", 5, made["skerry binary table 1 to bare"], "x"
        )
        goals.at_most(
            "the same over the Unix socket with the Python client, to bare session.run",
            3,
            made["skerry-unix client table 1 to bare"],
            "x",
        )
        goals.at_most(
            "CPU of a binary CNN request, to bare session.run",
            1.25,
            made["skerry binary cnn 1 to bare"],
            "x",
        )
    return goals.rows


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--burst", type=float, default=0.5, help="seconds of one burst")
    parser.add_argument("--repeat", type=int, default=5, help="starts of one server")
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--envs", type=Path, default=Path("/tmp/agent-peers"))
    parser.add_argument("--out", default="agent")
    given = parser.parse_args()
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"expected some of {', '.join(PARTS)}; got {', '.join(unknown)}")
    for name in NAMES:
        make(given.envs, name)
    kept = RESULTS / f"{given.out}.json"
    parts = json.loads(kept.read_text())["parts"] if kept.exists() else {}
    folder = Path(tempfile.mkdtemp(prefix="agent-cost-"))
    try:
        for name in wanted:
            say(f"{name} ...")
            parts[name] = PARTS[name](given, folder)
            parts[name]["only"] = f"--only {name}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = {"goals": judge(parts), "parts": parts}
    write(given.out, found, quiet=True)
    tables.write_tables(given.out)


if __name__ == "__main__":
    main()
