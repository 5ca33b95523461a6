"""The two brokers with the access rules that Skerry generates, each a real server."""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleet.access import AskedAccess
from fleet.broker import Broker, free_port
from fleet.broker_config import (
    FLEET_USER,
    BrokerSettings,
    TlsFiles,
    device_rights,
    render_mosquitto,
    render_mosquitto_acl,
)
from fleet.callout import SELF_TEST_USER, Callout, load_issuer
from fleet.tls_files import context_of
from tests.fakes.mqtt_device import until
from tests.fakes.pki import Pki
from tests.fakes.reporter import FLEET, SHARDS

HOST = "127.0.0.1"
MOSQUITTO = shutil.which(
    "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
)


class Book:
    """A registry as the broker sees it: who may connect with which certificate."""

    def __init__(self) -> None:
        self.allowed: dict[str, set[int]] = {}
        self.asked: list[str] = []

    def may_connect(self, device_id: str, serial: int) -> bool:
        self.asked.append(device_id)
        return serial in self.allowed.get(device_id, ())


def settings_for(directory: Path, pki: Pki, *, issuer: str = "") -> BrokerSettings:
    return BrokerSettings(
        name="skerry-test",
        fleet_id=FLEET,
        shards=SHARDS,
        directory=directory,
        tls=pki.server(HOST, "localhost"),
        mqtt_port=free_port(HOST),
        service_port=free_port(HOST),
        issuer=issuer,
        password=secrets.token_urlsafe(16),
    )


class NatsServer:
    """nats-server as the fleet embeds it, watched by a loop in a thread of its own."""

    name = "nats"

    def __init__(self, directory: Path, pki: Pki | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.pki = pki or Pki(directory / "pki")
        self.book = Book()
        self.pids: list[int] = []
        issuer = load_issuer(directory)
        self.settings = settings_for(directory / "nats", self.pki, issuer=issuer.public)
        self.broker = Broker(self.settings, self.pki.context(FLEET_USER), self.pids.append)
        self.access = AskedAccess(
            self.broker,
            Callout(
                issuer,
                self.book,
                lambda device: device_rights(FLEET, SHARDS, device),
                lambda: datetime.now(UTC),
            ),
            self.pki.context(SELF_TEST_USER),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until("a broker", lambda: self.pids)
        self.access.start()

    @property
    def port(self) -> int:
        return self.settings.mqtt_port

    @property
    def log(self) -> Path:
        return self.settings.directory / "nats.log"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._work())
        self._loop.close()

    async def _work(self) -> None:
        await self.broker.start()
        await self.broker.watch()

    def accept(self, *devices: str) -> None:
        """Let the certificate in that each device was issued last."""
        for device in devices:
            if device not in self.pki.serials:
                self.pki.client(device)
            self.book.allowed.setdefault(device, set()).add(self.pki.serials[device])

    def revoke(self, device: str) -> None:
        self.book.allowed.pop(device, None)
        self.access.cut(device)

    def kill(self) -> None:
        os.kill(self.pids[-1], signal.SIGKILL)

    def stop(self) -> None:
        self.access.stop()
        asyncio.run_coroutine_threadsafe(self.broker.stop(), self._loop).result(10)
        self._thread.join(10)


class Mosquitto:
    """Debian's mosquitto, with the files of `skerry fleet broker-config mosquitto`."""

    name = "mosquitto"

    def __init__(self, directory: Path) -> None:
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed; apt-get install mosquitto")
        directory.mkdir(parents=True, exist_ok=True)
        self.pki = Pki(directory / "pki")
        self.port = free_port(HOST)
        self._acl, self._denied = directory / "acl", list[str]()
        self._acl.write_text(render_mosquitto_acl(FLEET))
        config = directory / "mosquitto.conf"
        self.log = directory / "mosquitto.log"
        crl = self.pki.revocation_list(())
        tls = self.pki.server(HOST, "localhost")
        config.write_text(
            render_mosquitto(HOST, self.port, tls, acl=self._acl, revoked=crl)
            + f"user {os.environ.get('USER', 'root')}\n"
        )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=log, stdout=log)
        until("mosquitto", self._listens)

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def accept(self, *devices: str) -> None:
        """Mosquitto takes every certificate of our authority."""
        for device in devices:
            if device not in self.pki.serials:
                self.pki.client(device)

    def revoke(self, device: str) -> None:
        self._denied.append(device)
        self._acl.write_text(render_mosquitto_acl(FLEET, denied=self._denied))
        self.pki.revocation_list([self.pki.serials[name] for name in self._denied])
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


Server = NatsServer | Mosquitto


def context_for(server: Server, device: str) -> ssl.SSLContext:
    """Return how a device speaks TLS with the certificate that it was issued last."""
    folder = server.pki.folder
    return context_of(TlsFiles(folder / f"{device}.crt", folder / f"{device}.key", server.pki.ca))
