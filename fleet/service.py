"""The fleet service: wires the parts together, runs them, and ends them in order.

    broker   a child process, watched
    store    SQLite or PostgreSQL, migrated
    ingest   MQTT -> transactions -> acks              two threads
    engine   rollouts, analyses, drift, renewal        a thread for each tick
    http     two listeners: operators, devices         this event loop

Listeners are bound first, so that a port in use is found before anything is started;
``run.json`` is written last, when everything answers.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
from aiohttp import web

from fleet.access import Access, AskedAccess, ListedAccess, accepted_devices
from fleet.api.app import make_app
from fleet.blobs import Blobs
from fleet.broker import Broker, broker_settings
from fleet.broker_config import FLEET_USER, device_rights
from fleet.bundles import Bundles
from fleet.ca import Authority
from fleet.callout import SELF_TEST_USER, Callout, Issuer, load_issuer
from fleet.catalog import Catalog
from fleet.commands import Commands
from fleet.config import FleetConfig
from fleet.database import Database
from fleet.device_api import DeviceListener, device_app
from fleet.director import Director
from fleet.dispatch import Dispatcher
from fleet.engine import Engine
from fleet.files import write_atomic
from fleet.ingest import Ingest
from fleet.keystore import OnlineKeys, load_online_keys
from fleet.mqtt import FleetMqtt, IngestWorker, Sender
from fleet.process import bound, only_one, read_key_file, read_token
from fleet.registry import Registry
from fleet.rotation import settle_at_start
from fleet.store import open_store
from fleet.tls import device_context
from fleet.tls_files import context_of, make_client, make_server, reached_as
from fleet.upkeep import Upkeep
from fleet.watch import DriftWatch
from skerry.canonical import to_json
from skerry.errors import (
    SkerryError,
    UnreachableError,
)
from skerry.wire import Ack, Hello

__all__ = ["RunInfo", "Service", "run", "serve"]

log = logging.getLogger(__name__)

MQTT_READY_TIMEOUT_S: Final = 15.0
CLIENT_SECRET_BYTES: Final = 12


class RunInfo(msgspec.Struct, frozen=True):
    """Where a running fleet is found: ``<data>/run.json``."""

    fleet_id: str
    api_url: str
    console_url: str
    device_url: str
    broker_url: str
    pid: int
    broker_pid: int
    started_at: float


class Service:
    """A fleet service; `fleet.api` sees it as its `Backend`."""

    def __init__(self, config: FleetConfig, api_port: int, device_port: int) -> None:
        """Wire the parts; nothing is started yet.

        Args:
            config: the fleet's settings.
            api_port: where the operators' listener is bound.
            device_port: where the devices' listener is bound.

        Raises:
            UsageError: no name by which devices reach it.
            NotFoundError: the key ceremony has not been, or a key is missing.
            TrustError: keys or metadata do not belong together.
            UnreachableError: the database or the broker's program is not there.
        """
        self.config: Final = config
        self.admin_token: Final = read_token(config)
        host = reached_as(config)
        self._api_url = f"http://{host}:{api_port}"
        self._device_url = f"https://{host}:{device_port}"
        now = utc_now()
        settle_at_start(config.data, now)
        keys = load_online_keys(config.keys_dir, os.environ)
        self.catalog: Final = Catalog(config.tuf_dir / "catalog", keys, now)
        director = Director(config.tuf_dir / "director", keys)
        authority = Authority(
            keys.issuing,
            read_key_file(config, "issuing.crt"),
            read_key_file(config, "authority.crt"),
        )
        blobs = Blobs(config.blobs_dir)
        self.tls: Final = make_server(config, authority, now)
        asks = config.broker_auth == "callout"
        issuer = load_issuer(config.keys_dir) if asks else None
        context = context_of(make_client(config.tls_dir, authority, FLEET_USER, now))
        self.broker: Final = Broker(
            broker_settings(config, self.tls, issuer.public if issuer else ""),
            context,
            self._broker_started,
        )
        self.store: Final = open_store(config.db_url)
        self._sender: Final = Sender(config.fleet_id, keys.message)
        sender = self._sender
        dispatcher = Dispatcher(director, self.store.releases)
        self.engine: Final = Engine(
            self.store,
            dispatcher,
            sender,
            DriftWatch(self.store, windows=config.drift_windows),
            drift_every_s=config.drift_every_s,
            keep_predictions_s=config.keep_predictions_s,
            keep_windows_s=config.keep_windows_s,
            housekeeping=(
                lambda now: self.upkeep.look(now),
                lambda now: self.commands.quarantine.look(now),
            ),
        )
        self.upkeep: Final = Upkeep(
            config.data,
            keys,
            self.catalog,
            director,
            alerts=self.store.alerts,
            changed=self._keys_changed,
        )
        registry = Registry(
            self.store.devices,
            authority,
            lambda: (self.catalog.root, director.root),
            # a broker that asks nobody does not bind the client id to a certificate: it is a secret
            client_id=str if asks else _secret_client_id,
            on_cut=lambda device: self.access.cut(device),
        )
        self.access: Final = self._make_access(issuer, registry, authority, now)
        self.commands: Final = Commands(
            store=self.store,
            dispatcher=dispatcher,
            engine=self.engine,
            sender=sender,
            registry=registry,
            bundles=Bundles(blobs, self.catalog),
            catalog=self.catalog,
            fleet_url=self._device_url,
            clock=utc_now,
        )
        ingest = Ingest(
            self.store.telemetry,
            _Replies(sender, self.engine),
            fleet_id=config.fleet_id,
            shards=config.shards,
            credit=config.credit,
            on_fork=self.commands.quarantine.heard_fork,
            on_stranger=self.commands.quarantine.heard_stranger,
        )
        self.mqtt: Final = FleetMqtt(
            fleet_id=config.fleet_id,
            shards=config.shards,
            host=self.broker.settings.reachable,
            port=self.broker.settings.mqtt_port,
            context=context,
            worker=IngestWorker(
                ingest,
                lambda: utc_now().timestamp(),
                commit_every_s=config.commit_every_s,
                commit_at_most=config.commit_at_most,
            ),
            sender=sender,
        )
        self.device_listener: Final = DeviceListener(
            registry=registry,
            catalog=self.catalog,
            director=director,
            blobs=blobs,
            ca=authority.pem,
            fleet_id=config.fleet_id,
            broker_url=lambda: self.broker_url,
            shards=config.shards,
            clock=utc_now,
        )
        self._started_at = 0.0
        self._send_all = False
        self._stopping = asyncio.Event()

    @property
    def database(self) -> Database:
        """Where everything is kept."""
        return self.store.database

    @property
    def broker_url(self) -> str:
        """Where devices find the broker."""
        return f"mqtts://{reached_as(self.config)}:{self.broker.settings.mqtt_port}"

    @property
    def is_ready(self) -> bool:
        """Whether broker, its access, ingest and engine are at work."""
        return (
            self._started_at > 0.0
            and self.broker.pid != 0
            and self.mqtt.connected
            and self.access.ready
        )

    @property
    def run_info(self) -> RunInfo:
        """Where this fleet is found."""
        return RunInfo(
            fleet_id=self.config.fleet_id,
            api_url=self._api_url,
            console_url=self._api_url + "/",
            device_url=self._device_url,
            broker_url=self.broker_url,
            pid=os.getpid(),
            broker_pid=self.broker.pid,
            started_at=self._started_at,
        )

    async def start(self) -> None:
        """Start everything but the listeners.

        Raises:
            ConflictError: the broker's port is in use.
            UnreachableError: the broker does not start.
        """
        brought = await asyncio.to_thread(self.commands.reconcile)
        if brought:
            log.info("%d releases were in the catalog alone; they are in the database now", brought)
        await self.broker.start()
        await asyncio.to_thread(self.access.start)
        self.mqtt.start()
        await asyncio.to_thread(self.engine.start)
        if not await asyncio.to_thread(self.mqtt.wait_connected, MQTT_READY_TIMEOUT_S):
            raise UnreachableError(
                f"expected the broker at {self.broker_url} to take the fleet's connections "
                f"within {MQTT_READY_TIMEOUT_S:g} s; see {self.config.broker_dir / 'nats.log'}"
            )

    async def run(self, on_ready: Callable[[RunInfo], None] | None = None) -> None:
        """Work until `stop`; `run.json` tells where, from now on."""
        self._started_at = utc_now().timestamp()
        self._write_run_file()
        if on_ready is not None:
            on_ready(self.run_info)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.broker.watch(), name="broker")
            tasks.create_task(self._drive(), name="engine")
            await self._stopping.wait()
            # MQTT before the broker, so that the last acks leave
            await asyncio.to_thread(self.mqtt.stop)
            await asyncio.to_thread(self.access.stop)
            await self.broker.stop()

    def stop(self) -> None:
        """Ask the service to end."""
        self._stopping.set()

    async def close(self) -> None:
        """End every part, in order; nothing that was stored is lost by it."""
        self._stopping.set()
        await asyncio.to_thread(self.mqtt.stop)
        await asyncio.to_thread(self.access.stop)
        await self.broker.stop()
        self.store.close()
        self.config.run_file.unlink(missing_ok=True)

    async def _drive(self) -> None:
        failing = False
        while not self._stopping.is_set():
            try:
                if self._send_all:  # a new broker may have lost what the old one kept
                    self._send_all = False
                    await asyncio.to_thread(self.engine.start)
                await asyncio.to_thread(self.engine.tick, utc_now())
                failing = False
            except Exception:  # whatever it is, rollouts must go on when it is over
                if not failing:
                    log.exception("the engine stumbled; it is tried again")
                failing = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.tick_s):
                    await self._stopping.wait()

    def _make_access(
        self, issuer: Issuer | None, registry: Registry, authority: Authority, now: datetime
    ) -> Access:
        if issuer is None:
            return ListedAccess(self.broker, lambda: accepted_devices(self.store.database))
        config = self.config
        callout = Callout(
            issuer,
            registry,
            lambda device: device_rights(config.fleet_id, config.shards, device),
            utc_now,
        )
        tester = make_client(config.tls_dir, authority, SELF_TEST_USER, now)
        return AskedAccess(self.broker, callout, context_of(tester))

    def _keys_changed(self, keys: OnlineKeys, now: datetime) -> None:
        self._sender.sign_with(keys.message)
        self.engine.renew_desired(now)

    def _broker_started(self, pid: int) -> None:
        log.info("broker ready, process %d, at %s", pid, self.broker_url)
        if self._started_at:
            self._write_run_file()
            self._send_all = True

    def _write_run_file(self) -> None:
        write_atomic(self.config.run_file, to_json(self.run_info) + b"\n")


@dataclass(frozen=True, slots=True)
class _Replies:
    """`fleet.ingest.Replies`: acks go to the sender, hellos are answered by the engine."""

    sender: Sender
    engine: Engine

    def ack(self, device: str, ack: Ack) -> None:
        self.sender.ack(device, ack)

    def hello(self, device: str, hello: Hello) -> None:
        try:
            self.engine.hello(device, hello, utc_now())
        except SkerryError:
            log.exception("the hello of %s could not be answered", device)


def _secret_client_id(device: str) -> str:
    return f"{device}_{secrets.token_hex(CLIENT_SECRET_BYTES)}"


async def serve(config: FleetConfig, on_ready: Callable[[RunInfo], None] | None = None) -> None:
    """Run a fleet service until SIGTERM or SIGINT.

    Raises:
        SkerryError: it cannot start; the message says what to do.
    """
    with (
        only_one(config),
        bound(config.host, config.port, "operators") as api_socket,
        bound(config.host, config.device_port, "devices") as device_socket,
    ):
        service = Service(config, api_socket.getsockname()[1], device_socket.getsockname()[1])
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        devices = device_app(service.device_listener)
        context = device_context(service.tls, service.device_listener.ca)
        runners = [
            (web.AppRunner(make_app(service), access_log=None), api_socket, None),
            (web.AppRunner(devices, access_log=None), device_socket, context),
        ]
        try:
            await service.start()
            for runner, listening, tls in runners:
                await runner.setup()
                await web.SockSite(runner, listening, ssl_context=tls).start()
            await service.run(on_ready)
        finally:
            for runner, *_ in runners:
                await runner.cleanup()
            await service.close()


def run(config: FleetConfig, on_ready: Callable[[RunInfo], None] | None = None) -> None:
    """Run a fleet service until it is told to stop.

    Raises:
        SkerryError: it cannot start; the message says what to do.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    for name in ("alembic", "tuf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    asyncio.run(serve(config, on_ready))


def utc_now() -> datetime:
    """Return the present, aware UTC."""
    return datetime.now(UTC)
