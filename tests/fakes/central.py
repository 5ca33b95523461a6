"""A fleet in small for one real agent: real trust, real device listener, real broker.

It stores what the device says in memory, once, and acknowledges it, as ingest does.
"""

import asyncio
import io
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from aiohttp.test_utils import TestServer

from agent.mqtt import BrokerAddress, Link, LinkConfig
from compiler.build import Built
from fleet.access import AskedAccess
from fleet.broker import Broker, broker_settings
from fleet.broker_config import FLEET_USER, device_rights
from fleet.callout import SELF_TEST_USER, Callout, load_issuer
from fleet.config import FleetConfig
from fleet.device_api import DeviceListener, device_app
from fleet.director import assign
from fleet.files import make_folder
from fleet.registry import Registry
from fleet.tls import device_context
from fleet.tls_files import context_of, make_client, make_server
from skerry import topics
from skerry.bundle import write_bundle
from skerry.canonical import sha256, to_json
from skerry.keys import PublicKey, Signer
from skerry.manifest import FileRef
from skerry.records import Item, Prediction, SketchWindow, width
from skerry.trust import CatalogTarget
from skerry.wire import (
    Ack,
    AssignmentReport,
    Batch,
    Cmd,
    Desired,
    Hello,
    Policy,
    Probation,
    Reported,
    Result,
    SlotDesired,
    open_up,
    peek_up,
    seal_down,
)
from tests.fakes.registry_store import MemoryRegistryStore
from tests.fakes.serving import linear_release
from tests.fakes.trusted import make_fleet

FLEET, SHARDS = "demo", 4


class Central:
    """Make it with `open`, end it with `close`."""

    def __init__(self, folder: Path) -> None:
        self.trusted = make_fleet(folder / "fleet", now=datetime.now(UTC))
        self.store = MemoryRegistryStore()
        self.registry = Registry(
            self.store,
            self.trusted.authority,
            lambda: (self.trusted.catalog.root, self.trusted.director.root),
        )
        authority, now = self.trusted.authority, datetime.now(UTC)
        config = FleetConfig(data=folder / "central", fleet_id=FLEET, shards=SHARDS, broker_port=0)
        issuer = load_issuer(make_folder(config.keys_dir))
        self._tls = make_server(config, authority, now)
        self._files = make_client(config.tls_dir, authority, FLEET_USER, now)
        self.broker = Broker(
            broker_settings(config, self._tls, issuer.public),
            context_of(self._files),
            lambda _pid: None,
        )
        self.access = AskedAccess(
            self.broker,
            Callout(
                issuer,
                self.registry,
                lambda device: device_rights(FLEET, SHARDS, device),
                lambda: datetime.now(UTC),
            ),
            context_of(make_client(config.tls_dir, authority, SELF_TEST_USER, now)),
        )
        self.folder = folder
        self.answering = True
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)  # of who issues certificates
        self.hellos: list[Hello] = []
        self.reported: Reported | None = None
        self.reports: dict[str, AssignmentReport] = {}
        self.results: dict[str, Result] = {}
        self.records: dict[tuple[str, int], Item] = {}
        self.upto: dict[str, int] = {}
        self._versions = 0

    async def open(self) -> None:
        await self.broker.start()
        await asyncio.to_thread(self.access.start)
        self._tasks = [asyncio.create_task(self.broker.watch())]
        app = device_app(
            DeviceListener(
                registry=self.registry,
                catalog=self.trusted.catalog,
                director=self.trusted.director,
                blobs=self.trusted.blobs,
                ca=self.trusted.authority.pem,
                fleet_id=FLEET,
                broker_url=lambda: f"mqtts://127.0.0.1:{self.broker.settings.mqtt_port}",
                shards=SHARDS,
                clock=lambda: self.clock(),
            )
        )
        self.server = TestServer(app)
        context = device_context(self._tls, self.trusted.authority.pem)
        await self.server.start_server(ssl=context)
        config = LinkConfig(
            address=BrokerAddress("127.0.0.1", self.broker.settings.mqtt_port, tls=True),
            client_id="central",
            filters=[topics.up_filter(FLEET, f"{shard:02x}") for shard in range(SHARDS)],
            will_topic="skerry/v1/central",
            will=b"",
            keepalive_s=30,
            base_s=0.05,
            cap_s=0.5,
            ca_file=self._files.ca,
            cert_file=self._files.certificate,
            key_file=self._files.key,
        )
        self.link = Link(config, received=self._take, connected=lambda: None, rng=random.Random(1))
        self._tasks.append(asyncio.create_task(self.link.run()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.close()
        await asyncio.to_thread(self.access.stop)
        await self.broker.stop()

    # --- what an operator does -----------------------------------------------------------

    def token(self, device: str, *, again: bool = False) -> str:
        url = str(self.server.make_url("")).rstrip("/")
        return self.registry.preauthorize(
            device, tags={}, fleet_url=url, now=self.clock(), again=again
        )

    def publish(self, version: str, *, seed: int = 0) -> CatalogTarget:
        """Publish a release of a linear model."""
        linear_release(self.folder / version, version=version, seed=seed)
        return self._publish(version)

    def publish_mixed(self, version: str, *, seed: int, golden_of: str) -> CatalogTarget:
        """Publish a release whose golden set is another release's."""
        release = linear_release(self.folder / version, version=version, seed=seed)
        golden = (self.folder / golden_of / "golden").read_bytes()
        (self.folder / version / "golden").write_bytes(golden)
        reference = FileRef(sha256(golden), len(golden))
        manifest = msgspec.structs.replace(release.manifest, golden=reference)
        (self.folder / version / "manifest").write_bytes(to_json(manifest))
        return self._publish(version)

    def publish_built(self, made: Built) -> CatalogTarget:
        """Publish what the compiler built."""
        return self.trusted.publish(made.bundle, now=datetime.now(UTC)).target

    def publish_needing(self, version: str, *needs: str) -> CatalogTarget:
        """Publish a release whose manifest requires something of a device."""
        release = linear_release(self.folder / version, version=version)
        manifest = msgspec.structs.replace(release.manifest, requires=list(needs))
        (self.folder / version / "manifest").write_bytes(to_json(manifest))
        return self._publish(version)

    def blob_file(self, release: CatalogTarget, name: str) -> Path:
        """Where the fleet keeps a file of a published release."""
        version = release.path.rpartition("@")[2]
        digest = sha256((self.folder / version / name).read_bytes()).removeprefix("sha256:")
        (found,) = (self.folder / "fleet").rglob(digest)
        return found

    def _publish(self, version: str) -> CatalogTarget:
        bundle = bundle_of(self.folder / version)
        return self.trusted.publish(bundle, now=datetime.now(UTC)).target

    def desire(
        self, device: str, release: CatalogTarget, id: str, probation: Probation | None = None
    ) -> None:
        """Tell a device what to run."""
        self._versions += 1
        order = assign(release, device=device, slot="reader", rollout="r-1", assignment_id=id)
        director = self.trusted.director.sign(
            device, [order], version=self._versions, now=datetime.now(UTC)
        )
        want = SlotDesired(
            id, "r-1", release.path, "sha256:" + release.sha256,
            probation=probation or Probation(min_answered=10, min_seconds=0.2, timeout_s=20.0),
        )  # fmt: skip
        data = seal_down(
            self._signer, dev=device, type="desired", version=self._versions,
            body=Desired({"reader": want}, director),
        )  # fmt: skip
        self.link.publish(topics.down(FLEET, device, "desired"), data, retain=True)

    def set_policy(self, policy: Policy) -> None:
        data = seal_down(
            self._signer, dev="all", type="policy", body=policy, version=policy.version
        )
        self.link.publish(topics.policy(FLEET), data, retain=True)

    def command(self, device: str, command: Cmd) -> None:
        """Ask something of a device; the answer comes into `results`."""
        data = seal_down(
            self._signer, dev=device, type="cmd", body=command, id=command.id, exp=time.time() + 60
        )
        self.link.publish(topics.down(FLEET, device, "cmd"), data)

    # --- what it has heard ----------------------------------------------------------------

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.records.values() if isinstance(item, Prediction)]

    @property
    def counted(self) -> int:
        return sum(w.n for w in self.records.values() if isinstance(w, SketchWindow))

    def state(self, id: str) -> str:
        report = self.reports.get(id)
        return "" if report is None else report.state

    async def until(self, holds: Callable[[], object], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - it waits for other processes
                await asyncio.sleep(0.02)

    @property
    def _signer(self) -> Signer:
        return self.trusted.keys.message

    def _take(self, topic: str, data: bytes) -> None:
        device = peek_up(data)
        record = self.store.record(device)
        if record is None or not self.answering:
            return
        up, body = open_up(data, PublicKey(record.report_key), device=device)
        match body:
            case Hello():
                self.hellos.append(body)
            case Reported():
                self.reported = body
                self.reports |= {report.assignment_id: report for report in body.assignments}
            case Result():
                self.results[body.id] = body
            case Batch():
                self._store(up.boot, body)
        ack = Ack(
            upto=dict(self.upto),
            reported=self.reported.version if self.reported else 0,
            now=time.time(),
            nonce=body.nonce if isinstance(body, Hello) else b"",
        )
        self.link.publish(
            topics.down(FLEET, device, "ack"),
            seal_down(self._signer, dev=device, type="ack", body=ack),
        )

    def _store(self, boot: str, batch: Batch) -> None:
        upto = max(self.upto.get(boot, 0), batch.dropped_before - 1)
        if batch.first > upto + 1:
            return
        seq = batch.first
        for item in batch.items:
            if seq > upto:
                assert (boot, seq) not in self.records
                self.records[boot, seq] = item
            seq += width(item)
        self.upto[boot] = max(upto, batch.last)


def bundle_of(folder: Path) -> bytes:
    """The bundle file of a release on disk."""
    layers = {
        "model.onnx": (folder / "model").read_bytes(),
        "baseline.msgpack": (folder / "baseline").read_bytes(),
        "golden.msgpack": (folder / "golden").read_bytes(),
        "evaluation.json": b"",
        "card.md": b"",
    }
    out = io.BytesIO()
    write_bundle(out, (folder / "manifest").read_bytes(), layers)
    return out.getvalue()
