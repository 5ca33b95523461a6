"""What every attack is made against: a fleet with its trust, and a device that runs a model.

The fleet's keys, ceremony, catalog and director are real, and so are its signed bundles. The device
is the agent's own `Control` with its database, update machine, installer, verifier and downloads;
its serving process, smoke run and connection are played here, and the verifier runs in a thread
rather than in a child of its own. The network between them is a mapping that an attack may change.
"""

import asyncio
import io
import random
import socket
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import (
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

import agent.clock
import agent.control
import agent.installer
from agent.config import AgentConfig, Layout
from agent.control import Control
from agent.facts import Stage, Staged
from agent.identity import Identity, Record
from agent.state import Database
from agent.verifier import verify_request
from agent.verify import VerifyAnswer, VerifyRequest
from compiler.sign import release_of
from fleet.director import assign
from fleet.roles import sign
from skerry.bundle import read_bundle
from skerry.canonical import sha256
from skerry.custom import catalog_custom, director_custom
from skerry.errors import NotFoundError
from skerry.keys import Signer
from skerry.profile import Inventory, hw_class
from skerry.trust import CatalogTarget, DirectorTarget
from skerry.wire import (
    AssignmentReport,
    Desired,
    DownBody,
    DownType,
    LiveStats,
    Probation,
    SlotDesired,
    seal_down,
)
from tests.fakes.http_files import FileServer
from tests.fakes.trusted import NOW, PHRASE, TrustedFleet, make_bundle, make_fleet

__all__ = [
    "DEVICE",
    "HW_CLASS",
    "NEW",
    "NOW",
    "OLD",
    "SLOT",
    "Device",
    "Files",
    "Outcome",
    "Site",
    "catalog_file",
    "committed",
    "director_targets",
    "open_site",
    "refused",
    "resign",
]

DEVICE, SLOT, FLEET = "cam-1", "reader", "demo"
OLD, NEW = "1.0.0", "1.1.0"
PATIENCE_S = 5.0
HEALTHY = LiveStats(answered=100, errors=0, p50_us=900.0, p99_us=2_000.0, seconds=10.0)
INVENTORY = Inventory(
    agent="0.1.0", platform="linux-x86_64", isa=["avx2"], providers=["CPUExecutionProvider"]
)
Files = dict[str, bytes]


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

    def set_window(self, window_s: float) -> None:
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
        self.database = Database(self.layout.database)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.control = Control(
                self.layout, AgentConfig(disk_reserve_bytes=0, download_timeout_s=2.0),
                self._identity, self.database, listener,
            )  # fmt: skip
        self.link, self.supervisor = _Link(), _Supervisor()
        self.control._link = self.link  # type: ignore[assignment]
        self.control._supervisor = self.supervisor  # type: ignore[assignment]
        installer = self.control._installer
        installer._supervisor = self.supervisor  # type: ignore[assignment]
        installer._rng = _Soon()

        async def stage(effect: Stage) -> None:
            await installer._files.fetch_variant(effect.release, effect.variant)
            installer._handle(Staged(effect.slot, effect.assignment_id, effect.variant))

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
        self._identity = self.control._identity = identity

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


@dataclass
class Site:
    """A fleet, one device of it, the network between them, and the time."""

    trusted: TrustedFleet
    network: Network
    device: Device
    clock: types.SimpleNamespace
    director_versions: int = 0
    desired_versions: int = 0
    orders: int = 0

    @property
    def now(self) -> datetime:
        """The true time, which the fleet knows."""
        return self._now

    _now: datetime = NOW

    def wait(self, delta: timedelta, *, renew: bool = True) -> None:
        """Let time pass, for the fleet and for the device."""
        self._now += delta
        self.clock.now += delta.total_seconds()
        if renew:
            self.trusted.catalog.renew(self.now)

    # --- what the fleet does ------------------------------------------------------------

    def publish(self, version: str = NEW, **bundle: Any) -> CatalogTarget:
        """Publish a release."""
        return self.trusted.publish(make_bundle(version, **bundle), now=self.now).target

    def unsigned_release(self, bundle: bytes, counter: int = 9) -> CatalogTarget:
        """A release whose blobs are there, and which no publisher has signed."""
        read = read_bundle(io.BytesIO(bundle))
        for data in (read.config, *read.blobs.values()):
            self.network[f"/v2/{read.manifest.model}/blobs/{sha256(data)}"] = data
        digest = sha256(read.oci)
        self.network[f"/v2/{read.manifest.model}/manifests/{digest}"] = read.oci
        release = release_of(read, "acme")
        return CatalogTarget(
            release.path, release.length, release.sha256, counter, release.hw_classes,
            release.min_agent,
        )  # fmt: skip

    def order(
        self,
        release: CatalogTarget,
        *,
        device: str = DEVICE,
        slot: str = SLOT,
        assignment: str | None = None,
    ) -> DirectorTarget:
        """Assign a release; under a new name, if none is given."""
        if assignment is None:
            self.orders += 1
            assignment = f"a-{self.orders}"
        return assign(release, device=device, slot=slot, rollout="r-1", assignment_id=assignment)

    def signed(self, *orders: DirectorTarget) -> Files:
        """The director's metadata for a device, as the fleet signs it."""
        self.director_versions += 1
        return self.trusted.director.sign(
            orders[0].device, orders, version=self.director_versions, now=self.now
        )

    def seal(
        self,
        type: DownType,
        body: DownBody,
        *,
        signer: Signer | None = None,
        dev: str = DEVICE,
        version: int = 0,
        id: str = "",
        exp: float | None = None,
    ) -> bytes:
        """A message as the fleet signs it."""
        return seal_down(
            signer or self.trusted.keys.message, dev=dev, type=type, body=body, version=version,
            id=id, exp=exp,
        )  # fmt: skip

    def desired(
        self, files: Files, order: DirectorTarget, *, signer: Signer | None = None
    ) -> bytes:
        """The message that tells the device to carry out an order."""
        self.desired_versions += 1
        want = SlotDesired(
            order.nonce, order.rollout, order.path, "sha256:" + order.sha256,
            probation=Probation(min_answered=30, min_seconds=3.0),
        )  # fmt: skip
        return self.seal(
            "desired", Desired({SLOT: want}, files), signer=signer, version=self.desired_versions
        )

    async def tell(self, files: Files, order: DirectorTarget) -> Outcome:
        """Let the device carry out an order with this metadata of the director; the outcome."""
        self.device.hear(self.desired(files, order))
        return await self.device.outcome(order.nonce)

    async def install(self, release: CatalogTarget) -> Outcome:
        """The honest way: assign a release, sign, send; the outcome."""
        order = self.order(release)
        return await self.tell(self.signed(order), order)

    # --- what an attacker can do ---------------------------------------------------------

    def catalog_files(self) -> Files:
        """The catalog's present metadata, under the names by which devices ask for it."""
        catalog, files = self.trusted.catalog, {}
        for role in ("targets", "snapshot", *catalog.publishers):
            try:
                data = catalog.metadata(f"{role}.json")
            except NotFoundError:
                continue
            version = Metadata[Targets].from_bytes(data).signed.version
            files[f"{version}.{role}.json"] = data
        return files | {"timestamp.json": catalog.metadata("timestamp.json")}

    def director_signs(
        self, targets: Targets, *, signer: Signer | None = None, version: int | None = None
    ) -> Files:
        """The director's metadata, as one who has its key may make it."""
        if version is None:
            self.director_versions += 1
            version = self.director_versions
        key = [signer or self.trusted.keys.director]
        targets.version, targets.expires = version, self.now + timedelta(days=30)
        snapshot = Snapshot(
            version=version, expires=self.now + timedelta(days=30),
            meta={"targets.json": MetaFile(version)},
        )  # fmt: skip
        timestamp = Timestamp(
            version=version, expires=self.now + timedelta(days=7), snapshot_meta=MetaFile(version)
        )
        return {
            f"{version}.targets.json": sign(targets, key),
            f"{version}.snapshot.json": sign(snapshot, key),
            "timestamp.json": sign(timestamp, key),
        }

    def catalog_signs(
        self,
        publishers: Files,
        *,
        targets: bytes | None = None,
        keys: tuple[Signer, Signer] | None = None,
        versions: tuple[int, int] | None = None,
    ) -> Files:
        """A catalog as one who has its online keys may make it.

        Args:
            publishers: their metadata, by name.
            targets: the catalog's own, signed by root keys; None for what is there.
            keys: of snapshot and timestamp.
            versions: of snapshot and timestamp; one above what the catalog has.
        """
        catalog = self.trusted.catalog
        top = targets or catalog.metadata("targets.json")
        names = {"targets": top, **publishers}
        files = {f"{_version(data)}.{name}.json": data for name, data in names.items()}
        snapshot_key, timestamp_key = keys or (
            self.trusted.keys.snapshot, self.trusted.keys.timestamp,
        )  # fmt: skip
        n, m = versions or (
            _version(catalog.metadata("snapshot.json")) + 1,
            _version(catalog.metadata("timestamp.json")) + 1,
        )
        meta = {f"{name}.json": MetaFile(_version(data)) for name, data in names.items()}
        snapshot = Snapshot(version=n, expires=self.now + timedelta(days=30), meta=meta)
        timestamp = Timestamp(
            version=m, expires=self.now + timedelta(days=7), snapshot_meta=MetaFile(n)
        )
        return files | {
            f"{n}.snapshot.json": sign(snapshot, [snapshot_key]),
            "timestamp.json": sign(timestamp, [timestamp_key]),
        }

    def publisher_signs(
        self,
        *releases: CatalogTarget,
        signers: Sequence[Signer],
        version: int = 2,
        delegations: Delegations | None = None,
    ) -> bytes:
        """A publisher's metadata, as one who has these keys may make it."""
        role = Targets(version=version, expires=self.now + timedelta(days=90))
        role.targets = {release.path: catalog_file(release) for release in releases}
        role.delegations = delegations
        return sign(role, signers)

    def root_key(self, number: int) -> Signer:
        """One of the three root keys, which the ceremony put into the hands of three people."""
        return Signer.from_pem((self.trusted.out / f"root-{number}.pem").read_bytes(), PHRASE)

    def root(self, repository: str) -> Root:
        """The latest root of a repository, to be changed and signed anew."""
        place = {"catalog": self.trusted.catalog, "director": self.trusted.director}
        return Metadata[Root].from_bytes(place[repository].root).signed  # type: ignore[attr-defined]


def catalog_file(release: CatalogTarget) -> TargetFile:
    """A release as a target of the catalog."""
    extra = {"custom": catalog_custom(release)}
    return TargetFile(release.length, {"sha256": release.sha256}, release.path, extra)


def director_targets(*orders: DirectorTarget) -> Targets:
    """Orders as targets of the director."""
    role = Targets()
    role.targets = {
        order.path: TargetFile(
            order.length, {"sha256": order.sha256}, order.path, {"custom": director_custom(order)}
        )
        for order in orders
    }
    return role


def _version(data: bytes) -> int:
    return int(Metadata.from_bytes(data).signed.version)


def resign(data: bytes, signer: Signer, **changes: Any) -> bytes:
    """Return metadata with attributes of its signed part changed, signed by a key."""
    signed = Metadata.from_bytes(data).signed
    for name, value in changes.items():
        setattr(signed, name, value)
    return sign(signed, [signer])


@contextmanager
def open_site(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose device has nothing committed yet."""
    clock = types.SimpleNamespace(now=NOW.timestamp(), monotonic=time.monotonic)
    clock.time = lambda: clock.now
    patch.setattr(agent.clock, "time", clock)
    patch.setattr(agent.control, "verify", _verify)
    patch.setattr(agent.control, "take_inventory", lambda _: INVENTORY)
    trusted = make_fleet(folder / "fleet", ("acme", "globex"))
    with FileServer() as server:
        server.files = network = Network(trusted)
        yield Site(trusted, network, Device(folder / "device", server.url, trusted), clock)


async def _verify(request: VerifyRequest, timeout_s: float) -> VerifyAnswer:
    return await asyncio.to_thread(verify_request, request)


HW_CLASS = hw_class(INVENTORY)
