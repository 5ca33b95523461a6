"""An hour on a whole real device: two models, steady traffic, an update every few minutes.

    python -m tests.crash.soak [--minutes 60] [--rate 50] [--update-every 300] [--json FILE]

A fleet with its broker, one agent, two models in two slots. Clients ask both models with ids of
their own, and nothing is asked again before its answer was noted. Memory (that they allocated), descriptors and
threads of both processes and the disk are looked at every few seconds. It is right if no request
failed, everything answered was counted once, every update was committed, and nothing grows:

    control    one process for the whole time: the slope of its memory, and its descriptors
    serve      a new process with each update: the youngest beside the oldest
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from devices.demo.world import World, wait_for
from skerry.errors import SkerryError
from skerry.io.client import Client

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "examples" / "digits"
DEVICE: Final = "harbour-01"
MODELS: Final = ("reader", "checker")
VERSIONS: Final = ("1.0.0", "1.1.0")
WARM_S: Final = 300.0  # of a process, before its memory says anything; less in a short run
GROWS: Final = 0.05  # of the memory at first
SLOPE_MIB_H: Final = 1.0
PROBATION: Final = {"min_answered": 100, "min_seconds": 5.0, "timeout_s": 60.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the device."""

    at_s: float
    control_kib: int
    serve_kib: int
    control_fds: int
    serve_fds: int
    threads: int  # of both
    disk_kib: int
    serve_pid: int


@dataclass(frozen=True, slots=True)
class Slope:
    """A line through samples, by least squares, and its 95 % interval."""

    per_hour: float
    low: float
    high: float


def slope(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """Return how fast values rise, an hour.

    The residuals of a process's memory hang together, so the interval is that of the means of
    twelve pieces, each as one observation.
    """
    pieces = [p for p in np.array_split(np.arange(len(at_s)), 12) if len(p)]
    x = np.array([np.mean([at_s[i] for i in piece]) for piece in pieces]) / 3600
    y = np.array([np.mean([values[i] for i in piece]) for piece in pieces])
    if len(x) < 3:
        return Slope(0.0, -float("inf"), float("inf"))
    rise, base = np.polyfit(x, y, 1)
    rest = y - (rise * x + base)
    spread = float(np.sqrt((rest @ rest) / (len(x) - 2) / ((x - x.mean()) @ (x - x.mean()))))
    reach = 2.23 * spread  # Student's t with ten degrees of freedom
    return Slope(float(rise), float(rise) - reach, float(rise) + reach)


def faults(samples: Sequence[Sample], warm_s: float) -> tuple[list[str], dict[str, Any]]:
    """Return what grows, and the figures that say so.

    Args:
        samples: in their order.
        warm_s: what came before is not looked at.
    """
    found = [sample for sample in samples if sample.at_s >= warm_s]
    if len(found) < 6:
        return ["too few samples to say whether anything grows"], {}
    third = len(found) // 3
    first, last = found[:third], found[-third:]
    line = slope([s.at_s for s in found], [s.control_kib / 1024 for s in found])
    control = [statistics.mean(s.control_kib for s in part) / 1024 for part in (first, last)]
    serve = [statistics.median(s.serve_kib for s in part) / 1024 for part in (first, last)]
    wrong = []
    if line.low > 0.0 and line.per_hour > SLOPE_MIB_H:
        wrong.append(f"control grows by {line.per_hour:.2f} MiB an hour (at least {line.low:.2f})")
    for name, (before, after) in (("control", control), ("serve", serve)):
        if after > before * (1.0 + GROWS):
            wrong.append(f"{name} grew from {before:.1f} to {after:.1f} MiB")
    for name in ("control_fds", "serve_fds", "threads"):
        before, after = (
            statistics.median(getattr(s, name) for s in part) for part in (first, last)
        )
        if after > before:
            wrong.append(f"{name} rose from {before:g} to {after:g}")
    return wrong, {
        "control_mib": [round(value, 2) for value in control],
        "control_mib_per_hour": [round(v, 2) for v in (line.per_hour, line.low, line.high)],
        "serve_mib": [round(value, 2) for value in serve],
        "serve_processes": len({s.serve_pid for s in samples}),
        "control_descriptors": sorted({s.control_fds for s in found}),
        "serve_descriptors": sorted({s.serve_fds for s in found}),
        "threads": sorted({s.threads for s in found}),
        "disk_mib": [round(s.disk_kib / 1024, 1) for s in (found[0], found[-1])],
    }


class Asker:
    """Asks one model at a steady rate, each id until it is answered."""

    def __init__(self, url: str, model: str, rate_hz: float, seed: int) -> None:
        self._url, self._model, self._interval_s = url, model, 1.0 / rate_hz
        self._rng = np.random.default_rng(seed)
        with np.load(EXAMPLES / "evaluation.npz") as data:
            self._images = data["image"]
        self._stop = threading.Event()
        self.answered = 0
        self.failed: list[str] = []
        self.versions: Counter[str] = Counter()
        self.took_ms: list[float] = []
        self._thread = threading.Thread(target=self._run, name=model)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with Client(self._url) as client:
            self._await_model(client)
            due, number = time.monotonic(), 0
            while not self._stop.is_set():
                time.sleep(max(0.0, due - time.monotonic()))
                due = max(due + self._interval_s, time.monotonic() - self._interval_s)
                number += 1
                place = int(self._rng.integers(len(self._images)))
                image = self._images[place : place + 1]
                self._ask(client, f"{self._model}-{number}", image)

    def _await_model(self, client: Client) -> None:
        while not self._stop.is_set():
            try:
                if client.ready(self._model):
                    return
            except SkerryError:
                pass  # nothing is in service yet
            self._stop.wait(0.1)

    def _ask(self, client: Client, id: str, image: Any) -> None:
        while True:
            began = time.perf_counter()
            try:
                answer = client.predict(self._model, {"image": image}, id=id)
                break
            except SkerryError as error:
                self.failed.append(f"{id}: {error}")
                if self._stop.is_set():
                    return
                time.sleep(0.05)
        self.took_ms.append((time.perf_counter() - began) * 1000)
        self.answered += 1
        self.versions[answer.model_version] += 1


class Soak:
    """The device, what is asked of it, and what was seen."""

    def __init__(self, world: World, rate_hz: float) -> None:
        self._world = world
        self._turns = dict.fromkeys(MODELS, 0)
        self.samples: list[Sample] = []
        self.committed = 0
        self.wrong: list[str] = []
        world.start_fleet()
        world.api.put("/policy", {"window_s": 10.0, "records": "all"})
        self._recipes = world.root / "recipes"
        shutil.copytree(EXAMPLES, self._recipes)
        for model in MODELS:
            for version in VERSIONS:
                self._publish(model, version)
        world.start_agents()
        url = world.agents[DEVICE].url
        self.askers = [
            Asker(url, model, rate_hz / len(MODELS), seed) for seed, model in enumerate(MODELS)
        ]
        for model in MODELS:
            self.update(model)

    def update(self, model: str) -> None:
        """Roll the other version of a model out, and wait until the device has committed it."""
        version = VERSIONS[self._turns[model] % len(VERSIONS)]
        self._turns[model] += 1
        api = self._world.api
        plan = {
            "model": model, "model_version": version, "publisher": "acme", "slot": model,
            "stages": [{"name": "all"}], "probation": PROBATION, "on_failure": "pause",
        }  # fmt: skip
        id = api.post("/rollouts", plan)["rollout_id"]
        over = {"completed", "paused", "failed", "rolled_back"}
        state = wait_for(
            f"{model} {version}",
            lambda: (s := api.get(f"/rollouts/{id}")["state"]) in over and s, 120,
        )  # fmt: skip
        print(f"{model} {version}: {state}", file=sys.stderr, flush=True)
        if state == "completed":
            self.committed += 1
        else:
            self.wrong.append(f"the rollout of {model} {version} is {state}")

    def look(self, at_s: float) -> None:
        """Take a sample."""
        status = self._world.agent_status(DEVICE)
        control, serve = status["control_pid"], status["serve_pid"]
        state = self._world.agents[DEVICE].state
        try:
            self.samples.append(
                Sample(
                    at_s, anonymous_kib(control), anonymous_kib(serve), descriptors(control),
                    descriptors(serve), threads(control) + threads(serve), disk_kib(state), serve,
                )
            )  # fmt: skip
        except (FileNotFoundError, ProcessLookupError):
            return  # serve was replaced in this moment

    def account(self) -> dict[str, int]:
        """Stop asking, wait until the fleet has everything, and hold it against what was answered."""
        for asker in self.askers:
            asker.stop()
        answered, api = sum(a.answered for a in self.askers), self._world.api

        def settled() -> bool:
            found = api.get("/accounting")
            return bool(min(found["distinct_ids"], found["sketch_rows"]) >= answered)

        try:
            wait_for("every answer stored and counted", settled, 120)
        except SkerryError as error:
            self.wrong.append(str(error))
        time.sleep(2.0)
        found = api.get("/accounting")
        if not answered == found["rows"] == found["distinct_ids"] == found["sketch_rows"]:
            self.wrong.append(f"{answered} answered, {found}")
        return {"answered": answered, "stored": found["rows"], "counted": found["sketch_rows"]}

    def _publish(self, model: str, version: str) -> None:
        world, out = self._world, self._world.root / "bundles" / f"{model}-{version}"
        recipe = self._recipes / f"{model}-{version}.toml"
        text = (self._recipes / f"reader-{version}.toml").read_text()
        recipe.write_text(text.replace('name = "reader"', f'name = "{model}"', 1))
        built = json.loads(world.skerry("build", recipe, "--out", out, "--json"))
        fleet, signed = ("--fleet", world.run_info["api_url"]), out / "signed.json"
        key = world.keys / "publisher-acme.pem"
        world.skerry(
            "sign", built["bundle"], "--publisher", "acme", "--key", key, "--out", signed, *fleet
        )
        token = ("--token-file", world.data / "admin.token")
        world.skerry("publish", built["bundle"], signed, *fleet, *token)


def anonymous_kib(pid: int) -> int:
    """Return the memory that a process has allocated, by the kernel.

    What it maps from files is left out: its share changes with who else runs Python here.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss_Anon:"))


def descriptors(pid: int) -> int:
    """Return how many files and sockets a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - names alone


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - names alone


def disk_kib(state: Path) -> int:
    """Return what a state directory takes on the disk."""
    total = 0
    for path in state.rglob("*"):
        try:
            total += path.lstat().st_blocks // 2
        except FileNotFoundError:
            continue
    return total


def soak(
    minutes: float, rate_hz: float, update_every_s: float, look_every_s: float
) -> dict[str, Any]:
    """Run it; the figures, with `wrong` for what is not as it should be."""
    length_s = minutes * 60
    with World([DEVICE]) as world:
        site = Soak(world, rate_hz)
        first = site.committed
        began = time.monotonic()
        updates, next_update, next_look = 0, update_every_s, 0.0
        while (now := time.monotonic() - began) < length_s:
            if now >= next_update and now < length_s - 30:
                site.update(MODELS[updates % len(MODELS)])
                updates += 1
                next_update += update_every_s
            elif now >= next_look:
                site.look(now)
                next_look = now + look_every_s
            time.sleep(0.2)
        counts = site.account()
    grows, figures = faults(site.samples, min(WARM_S, length_s / 4))
    failed = [text for asker in site.askers for text in asker.failed]
    if failed:
        site.wrong.append(f"{len(failed)} requests failed, such as {failed[0]}")
    if site.committed - first != updates:
        site.wrong.append(f"{updates} updates, {site.committed - first} committed")
    took = np.concatenate([asker.took_ms for asker in site.askers])
    return {
        "minutes": minutes, "rate_hz": rate_hz, "update_every_s": update_every_s,
        "models": len(MODELS), "updates": updates, "committed": site.committed - first,
        "failed_requests": len(failed), **counts, **figures,
        "latency_ms": [round(float(v), 2) for v in np.quantile(took, (0.5, 0.99, 0.999))],
        "samples": [list(asdict(sample).values()) for sample in site.samples],
        "wrong": site.wrong + grows,
    }  # fmt: skip


def main() -> int:
    """Run from the command line; the exit code is 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="make soak", description="Let a device run for an hour.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--rate", type=float, default=50.0, help="requests a second, of both models"
    )
    parser.add_argument("--update-every", type=float, default=300.0, help="seconds")
    parser.add_argument("--look-every", type=float, default=10.0, help="seconds")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    found = soak(args.minutes, args.rate, args.update_every, args.look_every)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    machine = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    whole = {"command": "make soak", "commit": commit, "machine": machine, **found}
    if args.json is not None:
        args.json.write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps({key: value for key, value in whole.items() if key != "samples"}, indent=1))
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
