"""The processes of the story: one fleet and its agents, in a directory that goes away."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from devices.demo.api import FleetApi
from skerry.errors import SkerryError

__all__ = ["AgentProcess", "World", "wait_for"]


def wait_for(what: str, ready: Callable[[], Any], timeout_s: float, every_s: float = 0.1) -> Any:
    """Call `ready` until it returns something true, and return that.

    Raises:
        SkerryError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = ready()
        if value:
            return value
        if time.monotonic() > deadline:
            raise SkerryError(f"expected {what} within {timeout_s:.0f} s; it did not happen")
        time.sleep(every_s)


@dataclass(slots=True)
class AgentProcess:
    """One device: its state directory, its port and its control process."""

    device: str
    state: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the device answers predictions."""
        return f"http://127.0.0.1:{self.port}"


class World:
    """Starts the processes, kills the ones that the story wants killed, leaves nothing behind."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices: Final = tuple(devices)
        self.root = Path(tempfile.mkdtemp(prefix="skerry-demo-"))
        self.data = self.root / "fleet"
        self.keys = self.root / "keys"
        self.agents: dict[str, AgentProcess] = {}
        self.api: FleetApi
        self.run_info: dict[str, Any] = {}
        self.agent_settings = ""  # of every agent, in TOML
        self._fleet: subprocess.Popen[bytes] | None = None
        # one core is two here: a math library that starts a thread per core only gets in the way
        self._env = os.environ | {
            "SKERRY_KEY_PASSPHRASE": secrets.token_urlsafe(24),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # --- commands -------------------------------------------------------------

    def skerry(self, *arguments: str | Path) -> str:
        """Run a `skerry` command and return what it printed on stdout."""
        return self._command([sys.executable, "-P", "-m", "skerry", *map(str, arguments)])

    def agent_command(self, *arguments: str | Path) -> str:
        """Run a `skerry-agent` command and return what it printed on stdout."""
        return self._command([sys.executable, "-P", "-m", "agent", *map(str, arguments)])

    def agent_status(self, device: str) -> dict[str, Any]:
        """Return what `skerry-agent status --json` says of a device."""
        state = self.agents[device].state
        status: dict[str, Any] = json.loads(
            self.agent_command("status", "--state", state, "--json")
        )
        return status

    def _command(self, command: Sequence[str]) -> str:
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            tail = done.stderr.strip()[-1500:]
            raise SkerryError(f"`{' '.join(command[3:6])}` left with {done.returncode}: {tail}")
        return done.stdout

    # --- fleet ----------------------------------------------------------------

    def start_fleet(self) -> None:
        """Make a fleet with its keys, start it, and wait until it is ready."""
        self.skerry("fleet", "init", "--data", self.data, "--fleet-id", "demo")
        self.skerry(
            "keys", "ceremony", "--data", self.data, "--out", self.keys, "--publisher", "acme"
        )
        ports = ["--port", "0", "--device-port", "0", "--broker-port", "0"]
        self._fleet = self._start(
            ["-m", "skerry", "fleet", "run", "--data", str(self.data), *ports], "fleet.log"
        )
        self.run_info = wait_for("a fleet that is ready", self._fleet_ready, 30)
        token = (self.data / "admin.token").read_text().strip()
        self.api = FleetApi(self.run_info["api_url"], token)

    def broker_pid(self) -> int:
        """Return the process id of the broker that runs now."""
        return int(json.loads((self.data / "run.json").read_text())["broker_pid"])

    def freeze_broker(self) -> int:
        """Make the broker hang, and return its process id."""
        pid = self.broker_pid()
        os.kill(pid, signal.SIGSTOP)
        return pid

    def kill_broker(self, pid: int) -> None:
        """End the broker with SIGKILL; the fleet starts it again."""
        os.kill(pid, signal.SIGKILL)

    def _fleet_ready(self) -> dict[str, Any] | None:
        assert self._fleet is not None
        if self._fleet.poll() is not None:
            log = (self.root / "fleet.log").read_text(errors="replace")[-1500:]
            raise SkerryError(f"the fleet left with {self._fleet.returncode}:\n{log}")
        path = self.data / "run.json"
        with suppress(FileNotFoundError, json.JSONDecodeError):
            info: dict[str, Any] = json.loads(path.read_text())
            return info
        return None

    # --- agents ---------------------------------------------------------------

    def start_agents(self) -> None:
        """Preauthorize, enrol and start every device, each with its own one-time token."""
        self._ports = _free_ports(len(self.devices))
        with ThreadPoolExecutor(max_workers=3) as pool:
            list(pool.map(self._enrol, self.devices))
        for device in self.devices:
            self.start_agent(device)

    def start_agent(self, device: str) -> None:
        """Start the agent of an enrolled device."""
        agent = self.agents[device]
        command = ["-m", "agent", "run", "--state", str(agent.state), "--port", str(agent.port)]
        if self.agent_settings:
            settings = self.root / "agent.toml"
            settings.write_text(self.agent_settings)
            command += ["--config", str(settings)]
        agent.process = self._start(command, f"{device}.log")

    def freeze_agent(self, device: str, in_flight: Callable[[], int]) -> tuple[dict[str, Any], int]:
        """Stop a device's processes at a moment when requests and records are under way.

        Returns:
            The device's status as it stands frozen, and its requests in flight.
        """
        for _ in range(20):
            pids = self.agent_status(device)
            for name in ("control_pid", "serve_pid"):
                os.kill(pids[name], signal.SIGSTOP)
            time.sleep(0.1)
            status, waiting = self.agent_status(device), in_flight()
            if waiting and status["outbox_records"]:
                return status, waiting
            for name in ("control_pid", "serve_pid"):
                os.kill(pids[name], signal.SIGCONT)
        raise SkerryError(f"expected requests and records under way on {device}; there were none")

    def kill_agent(self, device: str, pids: Sequence[int]) -> None:
        """End a device's processes with SIGKILL."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        process = self.agents[device].process
        if process is not None:
            process.wait(10)

    def _enrol(self, device: str) -> None:
        site = device.rsplit("-", 1)[0]
        answer = self.api.post(
            "/devices/preauthorize", {"device_id": device, "tags": {"site": site}}
        )
        state = self.root / "devices" / device
        self.agent_command("enroll", "--state", state, "--token", answer["token"])
        self.agents[device] = AgentProcess(device, state, self._ports.pop())

    # --- the end --------------------------------------------------------------

    def wait(self) -> None:
        """Stay until the fleet ends."""
        if self._fleet is not None:
            self._fleet.wait()

    def stop(self) -> None:
        """End every process, agents first, and remove the directory."""
        processes = [agent.process for agent in self.agents.values() if agent.process]
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        self._end(processes)
        if self._fleet is not None:
            self._fleet.send_signal(signal.SIGTERM)
            self._end([self._fleet])
        if "SKERRY_DEMO_KEEP" not in os.environ:
            shutil.rmtree(self.root, ignore_errors=True)

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        deadline = time.monotonic() + 8
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                # its children are in its process group: none may outlive the story
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(5)

    def _start(self, arguments: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        with (self.root / log).open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", *arguments],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C reaches the story alone, which ends the others in order
            )


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, each another: they are held until all are found."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
