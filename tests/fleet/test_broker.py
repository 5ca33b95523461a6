"""The embedded broker: a real nats-server, started, killed, started again, and not found."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from fleet.broker import Broker, BrokerSettings, find_server, free_port, render_config
from skerry.errors import ConflictError, UnreachableError

HOST = "127.0.0.1"


@pytest.fixture
def settings(tmp_path: Path) -> BrokerSettings:
    return BrokerSettings(
        name="skerry-test",
        directory=tmp_path / "nats",
        mqtt_port=free_port(HOST),
        service_port=free_port(HOST),
    )


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


async def test_it_starts_and_stops(settings: BrokerSettings, pids: list[int]) -> None:
    broker = Broker(settings, pids.append)
    await broker.start()
    assert pids == [broker.pid]
    await broker.stop()
    assert not alive(pids[0])


async def test_a_killed_broker_comes_back_with_what_it_kept(
    settings: BrokerSettings, pids: list[int]
) -> None:
    broker = Broker(settings, pids.append)
    await broker.start()
    watching = asyncio.create_task(broker.watch())
    await asyncio.to_thread(_publish_retained, settings.mqtt_port)
    os.kill(broker.pid, signal.SIGKILL)
    await become("a second start", lambda: len(pids) == 2)
    assert broker.pid == pids[1]
    assert await asyncio.to_thread(_read_retained, settings.mqtt_port) == b"kept"
    await broker.stop()
    await watching


async def test_a_broker_that_hangs_is_killed_and_started_again(
    settings: BrokerSettings, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.broker.PROBE_EVERY_S", 0.05)
    monkeypatch.setattr("fleet.broker.PROBE_TIMEOUT_S", 0.1)
    broker = Broker(settings, pids.append)
    await broker.start()
    watching = asyncio.create_task(broker.watch())
    os.kill(broker.pid, signal.SIGSTOP)
    await become("a second start", lambda: len(pids) == 2)
    await broker.stop()
    await watching


def test_it_dies_with_its_parent(settings: BrokerSettings) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(settings.directory), str(settings.mqtt_port),
         str(settings.service_port)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
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
from fleet.broker import Broker, BrokerSettings
async def main():
    settings = BrokerSettings(name="t", directory=Path(sys.argv[1]), mqtt_port=int(sys.argv[2]),
                              service_port=int(sys.argv[3]))
    broker = Broker(settings, lambda pid: print(pid, flush=True))
    await broker.start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as listening:
        yield listening.getsockname()[1]


async def test_a_port_in_use_is_named(tmp_path: Path, taken: int) -> None:
    settings = BrokerSettings(
        name="t", directory=tmp_path, mqtt_port=taken, service_port=free_port(HOST)
    )
    with pytest.raises(ConflictError, match=rf"port {taken} .* broker.*another port"):
        await Broker(settings, lambda _: None).start()


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
    settings: BrokerSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "broken"
    program.write_text(
        f"#!/bin/sh\necho 'unknown field \"mqtt\"' > {settings.directory}/nats.log\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("SKERRY_NATS_SERVER", str(program))
    with pytest.raises(UnreachableError, match='unknown field "mqtt"'):
        await Broker(settings, lambda _: None).start()


def test_it_listens_on_loopback_only(settings: BrokerSettings) -> None:
    text = render_config(settings)
    listens = [line.split(":", 1)[1].strip() for line in text.splitlines() if "listen:" in line]
    assert listens == [f'"{HOST}:{settings.service_port}"', f'"{HOST}:{settings.mqtt_port}"']


def _client(name: str) -> paho.Client:
    return paho.Client(CallbackAPIVersion.VERSION2, client_id=name)


def _publish_retained(port: int) -> None:
    client = _client("publisher")
    client.connect(HOST, port)
    client.loop_start()
    client.publish("t/kept", b"kept", qos=1, retain=True).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def _read_retained(port: int) -> bytes:
    client, found = _client("reader"), []
    client.on_message = lambda _c, _u, message: found.append(message.payload)
    client.connect(HOST, port)
    client.subscribe("t/kept", qos=1)
    client.loop_start()
    end = time.monotonic() + 10
    while not found and time.monotonic() < end:
        time.sleep(0.01)
    client.disconnect()
    client.loop_stop()
    return found[0] if found else b""
