"""The embedded broker: a real nats-server, started, killed, started again, and not found."""

import asyncio
import dataclasses
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.access import log_in
from fleet.broker import Broker, can_ask, find_server
from fleet.broker_config import FLEET_USER, BrokerSettings, render_nats
from skerry.errors import ConflictError, UnreachableError
from tests.fakes.brokers import settings_for
from tests.fakes.pki import Pki

HOST = "127.0.0.1"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def settings(tmp_path: Path, pki: Pki) -> BrokerSettings:
    return settings_for(tmp_path / "nats", pki)


@pytest.fixture
def context(pki: Pki) -> ssl.SSLContext:
    return pki.context(FLEET_USER)


@pytest.fixture
def pids() -> list[int]:
    return []


async def become(what: str, holds: object, timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()


async def test_it_starts_and_stops(
    settings: BrokerSettings, context: ssl.SSLContext, pids: list[int]
) -> None:
    broker = Broker(settings, context, pids.append)
    await broker.start()
    assert pids == [broker.pid]
    await broker.stop()
    assert not alive(pids[0])


async def test_a_killed_broker_comes_back_with_what_it_kept(
    settings: BrokerSettings, context: ssl.SSLContext, pids: list[int]
) -> None:
    broker = Broker(settings, context, pids.append)
    await broker.start()
    watching = asyncio.create_task(broker.watch())
    await asyncio.to_thread(_publish_retained, settings.mqtt_port, context)
    os.kill(broker.pid, signal.SIGKILL)
    await become("a second start", lambda: len(pids) == 2)
    assert broker.pid == pids[1]
    assert await asyncio.to_thread(_read_retained, settings.mqtt_port, context) == b"kept"
    await broker.stop()
    await watching


async def test_a_broker_that_hangs_is_killed_and_started_again(
    settings: BrokerSettings,
    context: ssl.SSLContext,
    pids: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleet.broker.PROBE_EVERY_S", 0.05)
    monkeypatch.setattr("fleet.broker.PROBE_TIMEOUT_S", 0.1)
    broker = Broker(settings, context, pids.append)
    await broker.start()
    watching = asyncio.create_task(broker.watch())
    os.kill(broker.pid, signal.SIGSTOP)
    await become("a second start", lambda: len(pids) == 2)
    await broker.stop()
    await watching


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    end = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < end, "the broker outlived its parent"
        time.sleep(0.02)


_PARENT = """
import asyncio, sys
from pathlib import Path
from fleet.broker import Broker
from tests.fakes.brokers import settings_for
from tests.fakes.pki import Pki
async def main():
    pki = Pki(Path(sys.argv[1]) / "pki")
    settings = settings_for(Path(sys.argv[1]) / "nats", pki)
    broker = Broker(settings, pki.context("_fleet"), lambda pid: print(pid, flush=True))
    await broker.start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as listening:
        yield listening.getsockname()[1]


async def test_a_port_in_use_is_named(
    settings: BrokerSettings, context: ssl.SSLContext, taken: int
) -> None:
    settings = dataclasses.replace(settings, mqtt_port=taken)
    with pytest.raises(ConflictError, match=rf"port {taken} .* broker.*another port"):
        await Broker(settings, context, lambda _: None).start()


def test_a_missing_program_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SKERRY_NATS_SERVER", str(tmp_path / "nats-server"))
    with pytest.raises(UnreachableError, match="SKERRY_NATS_SERVER"):
        find_server()
    monkeypatch.delenv("SKERRY_NATS_SERVER")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(UnreachableError, match="pip install"):
        find_server()


async def test_a_program_that_ends_at_once_is_reported_with_its_last_words(
    settings: BrokerSettings,
    context: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    program = tmp_path / "broken"
    program.write_text(
        f"#!/bin/sh\necho 'unknown field \"mqtt\"' > {settings.directory}/nats.log\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("SKERRY_NATS_SERVER", str(program))
    with pytest.raises(UnreachableError, match='unknown field "mqtt"'):
        await Broker(settings, context, lambda _: None).start()


async def test_it_answers_only_who_shows_our_certificate(
    settings: BrokerSettings, context: ssl.SSLContext
) -> None:
    broker = Broker(settings, context, lambda _: None)
    await broker.start()
    plain = ssl.create_default_context(cafile=str(settings.tls.ca))
    ports = HOST, settings.mqtt_port
    welcome = await asyncio.to_thread(log_in, *ports, context, "x")
    stranger = await asyncio.to_thread(log_in, *ports, plain, "x")
    await broker.stop()
    assert (welcome, stranger) == (0, -1)


def test_the_service_port_is_on_loopback_wherever_the_devices_port_is(
    settings: BrokerSettings,
) -> None:
    text = render_nats(dataclasses.replace(settings, host="0.0.0.0"))
    listens = [line.split(":", 1)[1].strip() for line in text.splitlines() if "listen:" in line]
    assert listens == [f'"{HOST}:{settings.service_port}"', f'"0.0.0.0:{settings.mqtt_port}"']


async def test_it_listens_on_every_address_and_is_reached_by_this_machine(
    settings: BrokerSettings, context: ssl.SSLContext, pids: list[int]
) -> None:
    broker = Broker(dataclasses.replace(settings, host="0.0.0.0"), context, pids.append)
    await broker.start()
    await broker.stop()
    assert pids


async def test_its_configuration_is_readable_by_nobody_else(
    settings: BrokerSettings, context: ssl.SSLContext
) -> None:
    broker = Broker(settings, context, lambda _: None)
    await broker.start()
    await broker.stop()
    assert settings.config_file.stat().st_mode & 0o777 == 0o600
    assert settings.password in settings.config_file.read_text()


@pytest.mark.parametrize(
    ("said", "asks"),
    [("nats-server: v2.15.1", True), ("nats-server: v2.10.0-RC.1", True),
     ("nats-server: v2.9.10", False), ("nats-server: 1.4.1", False)],
)  # fmt: skip
def test_the_version_tells_whether_it_can_ask(tmp_path: Path, said: str, asks: bool) -> None:
    program = tmp_path / "nats-server"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    assert can_ask(program) == (asks, said.split()[-1].removeprefix("v"))


def test_a_program_of_no_version_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    with pytest.raises(UnreachableError, match="to tell a version, got 'hello"):
        can_ask(program)


def _client(name: str, context: ssl.SSLContext) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name)
    client.tls_set_context(context)
    return client


def _publish_retained(port: int, context: ssl.SSLContext) -> None:
    client = _client("publisher", context)
    client.connect(HOST, port)
    client.loop_start()
    client.publish("skerry/kept", b"kept", qos=1, retain=True).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def _read_retained(port: int, context: ssl.SSLContext) -> bytes:
    client, found = _client("reader", context), []
    client.on_message = lambda _c, _u, message: found.append(message.payload)
    client.connect(HOST, port)
    client.subscribe("skerry/kept", qos=1)
    client.loop_start()
    end = time.monotonic() + 10
    while not found and time.monotonic() < end:
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()
    return found[0] if found else b""
