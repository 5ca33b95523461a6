"""Whole real processes: fleet, broker, one agent; killed, and behind a network that fails.

One publisher makes a series of releases; a rollout of the next one runs at all times, so that
deaths fall into every state of an update. Clients ask all the while, and repeat what broke off.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from devices.demo.traffic import MODEL, Traffic
from devices.demo.world import World, _free_ports, wait_for
from skerry.errors import SkerryError
from tests.crash.proxy import FaultProxy, Manner

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "digits"
DEVICE: Final = "harbour-01"
VERSIONS: Final = ("1.0.0", "1.1.0")
LONGEST_S: Final = 2.5  # of a life
FAULT_S: Final = 4.0
MANNERS: Final[tuple[Manner, ...]] = ("stall", "reset", "throttle", "refuse")
PROBATION: Final = {"min_answered": 10, "min_seconds": 0.5, "timeout_s": 20.0}


class Site:
    """A fleet with one device behind proxies, and traffic; use it as a context."""

    def __init__(self, seed: int) -> None:
        self._stack = ExitStack()
        self._seed = seed
        self.rollouts: list[str] = []
        self.wrong: list[str] = []
        self.turn = 0

    def __enter__(self) -> "Site":
        self.world = world = self._stack.enter_context(World([DEVICE]))
        world.start_fleet()
        world.api.put("/policy", {"window_s": 1.0, "records": "all"})
        for version in VERSIONS:
            self._publish(version)
        info = world.run_info
        self.proxies = {
            name: self._stack.enter_context(FaultProxy("127.0.0.1", urlsplit(info[key]).port or 0))
            for name, key in (("fleet", "device_url"), ("broker", "broker_url"))
        }
        world._ports = _free_ports(1)
        world._enrol(DEVICE)
        self.agent = world.agents[DEVICE]
        self._config = world.root / "agent.toml"
        broker = urlsplit(info["broker_url"]).scheme
        self._config.write_text(
            f'fleet_url = "https://127.0.0.1:{self.proxies["fleet"].port}"\n'
            f'broker_url = "{broker}://127.0.0.1:{self.proxies["broker"].port}"\n'
            "reconnect_cap_s = 1.0\nresend_s = 2.0\nkeepalive_s = 5\ndisk_reserve_bytes = 0\n"
        )
        self.start()
        self.traffic = Traffic({DEVICE: self.agent.url}, EXAMPLES, seed=self._seed, rate_hz=40)
        self.traffic.start()
        self.roll_out()
        wait_for("a committed release", self.is_over, 60)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.__exit__(None, None, None)

    def start(self) -> None:
        self.agent.process = self.world._start(
            ["-m", "agent", "run", "--state", str(self.agent.state), "--port",
             str(self.agent.port), "--config", str(self._config)],
            f"{DEVICE}.log",
        )  # fmt: skip

    def roll_out(self) -> None:
        """Begin the next rollout, to and fro; a version that failed is tried again."""
        if self.rollouts and self._rollout()["state"] == "completed":
            self.turn += 1
        plan = {
            "model": MODEL, "model_version": VERSIONS[self.turn % 2],
            "publisher": "acme", "slot": MODEL, "stages": [{"name": "all"}],
            "probation": PROBATION, "on_failure": "pause",
        }  # fmt: skip
        self.rollouts.append(self.world.api.post("/rollouts", plan)["rollout_id"])

    def is_over(self) -> bool:
        return self._rollout()["state"] not in {"running", "scheduled", "rolling_back"}

    def answered(self) -> int:
        return len(self.traffic.books[DEVICE].answered)

    def answers_again(self, within_s: float) -> bool:
        """Wait until one more request is answered."""
        before = self.answered()
        try:
            wait_for("an answer", lambda: self.answered() > before, within_s, 0.02)
        except SkerryError:
            return False
        return True

    def account(self) -> dict[str, int]:
        """Stop asking, wait until all is stored, and hold it against what was answered."""
        self.traffic.stop()
        book = self.traffic.books[DEVICE]
        api = self.world.api

        def settled() -> bool:
            totals = api.get("/accounting")
            return bool(min(totals["distinct_ids"], totals["sketch_rows"]) >= len(book.answered))

        try:
            wait_for("every answer stored and sketched", settled, 90)
        except SkerryError as error:
            self.wrong.append(str(error))
        time.sleep(2.0)
        totals = api.get("/accounting")
        if not totals["rows"] == totals["distinct_ids"] == totals["sketch_rows"]:
            self.wrong.append(f"counted otherwise than stored: {totals}")
        strangers = set(book.served) - set(VERSIONS)
        if strangers:
            self.wrong.append(f"answered by {strangers}")
        return {"answered": len(book.answered), "asked_again": book.retried, "stored": totals["rows"],
                "counted": totals["sketch_rows"]}  # fmt: skip

    def doing(self) -> str:
        """Return what the device says it is doing."""
        try:
            found = self._rollout()["assignments"]
        except SkerryError:
            return "unknown"
        return str(found[-1]["state"]) if found else "none"

    def _rollout(self) -> dict[str, Any]:
        found: dict[str, Any] = self.world.api.get(f"/rollouts/{self.rollouts[-1]}")
        return found

    def _publish(self, version: str) -> None:
        world, out = self.world, self.world.root / "bundles" / version
        recipe = EXAMPLES / f"reader-{version}.toml"
        built = json.loads(world.skerry("build", recipe, "--out", out, "--json"))
        fleet, signed = ("--fleet", world.run_info["api_url"]), out / "signed.json"
        key = world.keys / "publisher-acme.pem"
        world.skerry(
            "sign", built["bundle"], "--publisher", "acme", "--key", key, "--out", signed, *fleet
        )
        token = ("--token-file", world.data / "admin.token")
        world.skerry("publish", built["bundle"], signed, *fleet, *token)


def real_kills(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill the agent's real processes: both, control alone, serve alone."""
    del folder  # the world has one of its own
    rng = random.Random(seed)
    died: Counter[str] = Counter()
    states: Counter[str] = Counter()
    with Site(seed) as site:
        for _ in range(kills):
            if site.is_over():
                site.roll_out()
            time.sleep(rng.uniform(0.0, LONGEST_S))
            who = rng.choice(("both", "both", "control", "serve"))
            states[site.doing()] += 1
            # what a process that has just started says of itself may still be of the one before
            assert site.agent.process is not None
            control = site.agent.process.pid
            serve = site.world.agent_status(DEVICE).get("serve_pid")
            for pid in {"control": (control,), "serve": (serve,)}.get(who, (control, serve)):
                if pid:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            died[who] += 1
            if who != "serve":
                site.agent.process.wait(10)
                site.start()
            if not site.answers_again(30.0):
                site.wrong.append(f"bricked: no answer in 30 s after kill {died.total()} of {who}")
                break
        counts = site.account()
        rollouts = len(site.rollouts)
    return {"kills": died.total(), **died, "died_in": dict(sorted(states.items())),
            "rollouts": rollouts, **counts, "wrong": site.wrong}  # fmt: skip


def network_faults(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Stall, reset, throttle and refuse broker and fleet in turn, and kill the broker."""
    del folder
    faults: Counter[str] = Counter()
    with Site(seed) as site:
        for _ in range(rounds):
            for name, proxy in site.proxies.items():
                for manner in MANNERS:
                    if site.is_over():
                        site.roll_out()
                    proxy.set(manner)
                    end = time.monotonic() + FAULT_S
                    while time.monotonic() < end:
                        if not site.answers_again(5.0):
                            site.wrong.append(f"no answer while the {name} is in {manner}")
                            break
                        time.sleep(0.2)
                    proxy.set("pass")
                    faults[f"{name} {manner}"] += 1
            site.world.kill_broker(site.world.broker_pid())
            faults["broker killed"] += 1
        broken = {name: proxy.broken for name, proxy in site.proxies.items()}
        counts = site.account()
    return {**faults, "connections_broken": broken, **counts, "wrong": site.wrong}
