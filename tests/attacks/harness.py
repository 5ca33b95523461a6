"""What every attack is made against: a fleet with its trust, and a device that runs a model.

The fleet's keys, ceremony, catalog and director are real, and so are its signed bundles. The device
is the agent's own `Control` with its database, update machine, installer, verifier and downloads;
its serving process, smoke run and connection are played here, and the verifier runs in a thread
rather than in a child of its own. The network between them is a mapping that an attack may change.
"""

import io
import time
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
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
import agent.trust
from compiler.sign import release_of
from fleet.director import assign
from fleet.roles import sign
from skerry.bundle import read_bundle
from skerry.canonical import sha256, to_msgpack
from skerry.custom import catalog_custom, director_custom
from skerry.errors import NotFoundError
from skerry.keys import Signer
from skerry.manifest import Manifest
from skerry.trust import CatalogTarget, DirectorTarget
from skerry.wire import (
    Desired,
    DownBody,
    DownType,
    Probation,
    SlotDesired,
    seal_down,
)
from tests.attacks.device import (
    DEVICE,
    HW_CLASS,
    INVENTORY,
    NEW,
    OLD,
    SLOT,
    Device,
    Network,
    Outcome,
    committed,
    refused,
    verify_here,
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
    "cut",
    "director_targets",
    "flipped",
    "open_site",
    "refused",
    "resign",
    "unsigned",
]

Files = dict[str, bytes]


@dataclass
class Site:
    """A fleet, one device of it, the network between them, and the time."""

    trusted: TrustedFleet
    network: Network
    device: Device
    clock: types.SimpleNamespace
    server: FileServer
    director_versions: int = 0
    desired_versions: int = 0
    orders: int = 0

    @property
    def requests(self) -> list[tuple[str, str | None]]:
        """What was asked for over HTTP: path and range."""
        return self.server.requests

    def manifest(self, release: CatalogTarget) -> Manifest:
        """The manifest of a published release."""
        return self.trusted.bundles.open(release).manifest

    @property
    def now(self) -> datetime:
        """The true time, which the fleet knows."""
        return self._now

    _now: datetime = NOW

    def wait(self, delta: timedelta, *, renew: bool = True) -> None:
        """Let time pass, for the fleet and for the device."""
        self._now += delta
        self.clock.now += delta.total_seconds()
        self.clock.up += delta.total_seconds()
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
    clock = types.SimpleNamespace(
        now=NOW.timestamp(), up=0.0, monotonic=time.monotonic, CLOCK_BOOTTIME=time.CLOCK_BOOTTIME
    )
    clock.time = lambda: clock.now
    clock.clock_gettime = lambda _: clock.up
    patch.setattr(agent.clock, "time", clock)
    patch.setattr(agent.trust, "verify", verify_here)
    patch.setattr(agent.control, "take_inventory", lambda _: INVENTORY)
    trusted = make_fleet(folder / "fleet", ("acme", "globex"))
    with FileServer() as server:
        server.files = network = Network(trusted)
        yield Site(trusted, network, Device(folder / "device", server.url, trusted), clock, server)


def flipped(data: bytes) -> bytes:
    """One bit of the payload is another."""
    payload, key_id, signature = msgspec.msgpack.decode(data)
    return to_msgpack([payload[:-1] + bytes([payload[-1] ^ 1]), key_id, signature])


def unsigned(data: bytes) -> bytes:
    payload, key_id, _ = msgspec.msgpack.decode(data)
    return to_msgpack([payload, key_id, b""])


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]
