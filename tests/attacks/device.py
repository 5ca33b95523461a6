"""The device of every attack: the agent's own control process, and the network before it."""

import asyncio
import random
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config import AgentConfig, Layout
from agent.control import Control
from agent.facts import Stage
from agent.identity import Identity, Record
from agent.last_good import open_database
from agent.serve_protocol import InputSettings
from agent.verifier import verify_request
from agent.verify_protocol import VerifyAnswer, VerifyRequest
from skerry.errors import NotFoundError
from skerry.keys import Signer
from skerry.profile import Inventory, hw_class
from skerry.wire import (
    AssignmentReport,
    LiveStats,
)
from tests.fakes.trusted import TrustedFleet

DEVICE, SLOT, FLEET = "cam-1", "reader", "demo"
OLD, NEW = "1.0.0", "1.1.0"
PATIENCE_S = 5.0
HEALTHY = LiveStats(answered=100, errors=0, p50_us=900.0, p99_us=2_000.0, seconds=10.0)
INVENTORY = Inventory(
    agent="0.1.0",
    platform="linux-x86_64",
    isa=["avx2"],
    providers=["CPUExecutionProvider"],
    onnxruntime="1.32.0",
)
HW_CLASS = hw_class(INVENTORY)


@dataclass(frozen=True)
class Outcome:
    """How an assignment ended, and which version serves now; the message is for people."""

    state: str
    code: str
    serves: str
    message: str = field(default="", compare=False)


def refused(code: str, serves: str = OLD) -> Outcome:
    """What an attack shall come to: this code, and the old model still serves."""
    return Outcome("rejected", code, serves)


def committed(serves: str = NEW) -> Outcome:
    """What the same comes to without the attack."""
    return Outcome("committed", "", serves)


class Network(dict[str, bytes]):
    """What a device may fetch from the fleet: path -> body. An entry hides what the fleet has.

    A path in `blocked` is not there; while `down`, a connection breaks before an answer.
    """

    def __init__(self, trusted: TrustedFleet) -> None:
        super().__init__()
        self._trusted = trusted
        self.blocked: set[str] = set()
        self.down = False

    def get(self, path: str, _: Any = None) -> bytes | None:  # type: ignore[override]
        if self.down:
            raise ConnectionResetError(path)
        if path in self.blocked:
            return None
        if path in self:
            return self[path]
        name = path.rpartition("/")[2]
        try:
            if path.startswith("/tuf/catalog/metadata/"):
                return self._trusted.catalog.metadata(name)
            if path.startswith("/tuf/director/metadata/"):
                return self._trusted.director.metadata(name)
            if path.startswith("/v2/"):
                return self._trusted.blobs.read(name)
        except NotFoundError:
            pass
        return None

    def serve_catalog(self, files: Mapping[str, bytes]) -> None:
        """Let the catalog have these files in place of its own."""
        for name, data in files.items():
            self[f"/tuf/catalog/metadata/{name}"] = data


class _Supervisor:
    """Stands for the serving process: whatever shall serve does, and answers well."""

    def __init__(self) -> None:
        self.slots: dict[str, str] = {}
        self.pid, self.unrecorded, self.restarts, self.window_s = 1, 0, 0, 0.0

    async def ensure(self, slots: Sequence[Any]) -> None:
        self.slots = {slot.slot: slot.model_version for slot in slots}

    def live(self, slot: str, bundle: str, now: float) -> LiveStats:
        return HEALTHY

    def set_recording(self, window_s: float, inputs: InputSettings) -> None:
        self.window_s = window_s


class _Link:
    """Stands for the connection: keeps what the device says."""

    def __init__(self) -> None:
        self.said: list[tuple[str, bytes]] = []
        self.connected, self.spread_s = True, 0.0
        self.trusted = 0

    def publish(self, topic: str, data: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        self.said.append((topic, data))
        return True

    def proven(self) -> None:
        self.trusted += 1


class _Soon(random.Random):
    """Waits between tries are short here."""

    def uniform(self, a: float, b: float) -> float:
        return 0.001


class Device:
    """A device: what it serves, and what came of its assignments."""

    def __init__(self, folder: Path, fleet_url: str, trusted: TrustedFleet) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {}  # of the agent, from the next start on
        self.signer = Signer.generate()
        self.layout = Layout(folder)
        record = Record(DEVICE, DEVICE, FLEET, fleet_url, "mqtt://127.0.0.1:1", 4)
        self._identity = Identity(
            record, self.signer, trusted.catalog.root, trusted.director.root, self.layout.identity
        )
        folder.mkdir()
        self.start()

    def start(self) -> None:
        """Start the control process, again if need be: only what is on the disk remains."""
        self.database = open_database(self.layout)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.control = Control(
                self.layout,
                AgentConfig(disk_reserve_bytes=0, download_timeout_s=2.0, **self.settings),
                self._identity, self.database, [listener],
            )  # fmt: skip
        self.link, self.supervisor = _Link(), _Supervisor()
        self.control._link = self.link  # type: ignore[assignment]
        self.control._supervisor = self.supervisor  # type: ignore[assignment]
        installer = self.control._installer
        installer._supervisor = installer._settler._supervisor = self.supervisor  # type: ignore[assignment]
        installer._rng = _Soon()

        async def stage(effect: Stage) -> None:
            await installer._files.fetch_variant(effect.release, effect.variant)
            staged = installer._staged(effect.slot, effect.assignment_id, effect.variant, [])
            installer._handle(staged)

        installer._stage = stage  # type: ignore[method-assign]

    async def stop(self) -> None:
        """End the control process."""
        await self.control._installer.stop()
        self.database.close()

    async def restart(self, *, lose_metadata: bool = False) -> None:
        """End the control process and start it again, perhaps after the disk lost some files."""
        await self.stop()
        if lose_metadata:
            for path in sorted(self.layout.tuf.rglob("*"), reverse=True):
                path.unlink() if path.is_file() or path.is_symlink() else path.rmdir()
        self.start()
        await self.control._installer.serve()

    def hear(self, payload: bytes) -> None:
        """Take what the broker delivers."""
        self.control._received(f"skerry/v1/{FLEET}/dn/{DEVICE}/any", payload)

    @property
    def identity(self) -> Identity:
        """With the roots that this device trusts."""
        return self._identity

    @identity.setter
    def identity(self, identity: Identity) -> None:
        self._identity = self.control._identity = self.control._trust.identity = identity

    @property
    def serves(self) -> str:
        """The version that answers requests in the slot; it must be what is committed."""
        return self.supervisor.slots.get(SLOT, "")

    @property
    def refused(self) -> int:
        """So many messages of the broker were refused."""
        return self.control._uplink.refused

    @property
    def refusals(self) -> dict[str, int]:
        """The same by code."""
        return dict(self.control._uplink.refusals)

    @property
    def floor(self) -> Any:
        """What the device will not go below."""
        return self.database.load().floor  # type: ignore[union-attr]

    def report(self, assignment: str) -> AssignmentReport:
        """What the device tells the fleet of an assignment."""
        told = {report.assignment_id: report for report in self.control._reported().assignments}
        return told[assignment]

    async def outcome(self, assignment: str) -> Outcome:
        """Wait until an assignment has ended."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                slot = self.control._machine.state.slots.get(SLOT)
                if slot is not None and slot.work is None:
                    break
                await asyncio.sleep(0.002)
        report = self.report(assignment)
        return Outcome(report.state, report.code or "", self.serves, report.message or "")


async def verify_here(request: VerifyRequest, timeout_s: float) -> VerifyAnswer:
    """Verify in a thread, where the agent starts a child."""
    return await asyncio.to_thread(verify_request, request)
