"""A fleet's device listener over TLS, in this process, and a device that has enrolled there."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, TCPConnector
from aiohttp.test_utils import TestServer

from agent.enroll import enroll
from fleet.bundles import Published
from fleet.ca import Authority
from fleet.config import FleetConfig
from fleet.device_api import DeviceListener, device_app
from fleet.registry import Registry, RegistryStore
from fleet.tls import device_context
from fleet.tls_files import make_server
from skerry.io.tls import client_context
from skerry.profile import Inventory
from skerry.token import EnrolmentToken, parse_token
from tests.fakes.registry_store import MemoryRegistryStore
from tests.fakes.trusted import TrustedFleet, make_bundle, make_fleet

DEVICE = "dev-1"


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Listening:
    """A fleet's device listener that listens, with one bundle published; `DEVICE` has enrolled."""

    trusted: TrustedFleet
    store: Any  # `MemoryRegistryStore`, or a real one
    registry: Registry
    published: Published
    url: str
    folder: Path
    cut: list[str]
    listener: DeviceListener
    clock: Callable[[], datetime] = utc_now
    http: ClientSession = field(init=False)

    def token(self, device: str, *, again: bool = False) -> EnrolmentToken:
        made = self.registry.preauthorize(
            device, tags={}, fleet_url=self.url, now=self.clock(), again=again
        )
        return parse_token(made)

    async def enrol(self, device: str) -> Path:
        """Enrol a device, and return where its identity lies."""
        folder = self.folder / device
        facts = Inventory(agent="0.1.0")
        await asyncio.to_thread(enroll, folder, self.token(device), facts)
        return folder

    def answers_ca(self, pem: str) -> None:
        """Name these authorities to devices from now on."""
        object.__setattr__(self.listener, "ca", pem)

    @property
    def identity(self) -> Path:
        """Of `DEVICE`."""
        return self.folder / DEVICE

    @property
    def context(self) -> ssl.SSLContext:
        """With the certificate of `DEVICE`."""
        return self.shows(self.identity)

    def shows(self, identity: Path) -> ssl.SSLContext:
        """With the certificate of a device."""
        device = identity / "device.pem"
        return client_context(identity / "ca.crt", device, device)

    @property
    def layer(self) -> tuple[str, bytes]:
        return max(self.published.bundle.blobs.items(), key=lambda item: len(item[1]))


@contextlib.asynccontextmanager
async def open_listener(
    folder: Path,
    *,
    weights: bytes = b"weights",
    age: timedelta = timedelta(),
    fleet_id: str = "demo",
    store: RegistryStore | None = None,
    authority: Authority | None = None,
) -> AsyncIterator[Listening]:
    """Open a device listener with a fleet of its own.

    Args:
        folder: for everything.
        weights: of the model in the bundle.
        fleet_id: of the fleet.
        store: of the registry; in memory if not given.
        authority: issues certificates, to devices that have enrolled before; its own if not given.
        age: how long ago `DEVICE` enrolled; TLS itself knows no time but the present.
    """
    trusted = make_fleet(folder / "fleet", now=utc_now())
    published = trusted.publish(make_bundle(weights=weights), now=utc_now())
    store, cut = store or MemoryRegistryStore(), list[str]()
    issuer = authority or trusted.authority
    registry = Registry(
        store, issuer, lambda: (trusted.catalog.root, trusted.director.root),
        on_cut=cut.append,
    )  # fmt: skip
    listener = DeviceListener(
        registry=registry,
        catalog=trusted.catalog,
        director=trusted.director,
        blobs=trusted.blobs,
        ca=issuer.pem,
        fleet_id=fleet_id,
        broker_url=lambda: "mqtts://127.0.0.1:8883",
        shards=4,
        clock=lambda: listening.clock(),
    )
    config = FleetConfig(data=folder / "listener", fleet_id=fleet_id)
    files = make_server(config, issuer, utc_now())
    listening = Listening(trusted, store, registry, published, "", folder, cut, listener)
    server = TestServer(device_app(listener))
    await server.start_server(ssl=device_context(files, issuer.pem))
    try:
        listening.url = str(server.make_url("")).rstrip("/")
        if authority is None:
            listening.clock = lambda: utc_now() - age
            await listening.enrol(DEVICE)
            listening.clock = utc_now
        connector = TCPConnector(ssl=listening.context) if authority is None else None
        async with ClientSession(connector=connector) as http:
            listening.http = http
            yield listening
    finally:
        await server.close()
