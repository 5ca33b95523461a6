"""Access by a list of users: for servers that ask nobody, and what old servers are told."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.access import BROKEN_OFF, WELCOME, ListedAccess, log_in
from fleet.broker import Broker, can_ask, find_server
from fleet.broker_config import FLEET_USER, device_rights, render_mosquitto_acl
from fleet.tls_files import context_of
from skerry import topics
from skerry.errors import UnreachableError
from tests.fakes.brokers import HOST, settings_for
from tests.fakes.mqtt_client import NOT_AUTHORIZED, REFUSED_FILTER, MqttClient
from tests.fakes.mqtt_device import until
from tests.fakes.pki import Pki
from tests.fakes.reporter import FLEET, SHARDS


class Listed:
    """A broker that knows its devices from a file, and a registry that is a set."""

    def __init__(self, folder: Path) -> None:
        self.pki = Pki(folder / "pki")
        self.accepted: set[str] = set()
        self.pids: list[int] = []
        self.broker = Broker(
            settings_for(folder / "nats", self.pki), self.pki.context(FLEET_USER), self.pids.append
        )
        self.access = ListedAccess(self.broker, lambda: self.accepted)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until("a broker", lambda: self.pids)
        self.access.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._work())
        self._loop.close()

    async def _work(self) -> None:
        await self.broker.start()
        await self.broker.watch()

    def login(self, device: str) -> int:
        context = context_of(self.pki.client(device))
        return log_in(HOST, self.broker.settings.mqtt_port, context, f"{device}_secret")

    def stop(self) -> None:
        self.access.stop()
        asyncio.run_coroutine_threadsafe(self.broker.stop(), self._loop).result(10)
        self._thread.join(10)


@pytest.fixture
def listed(tmp_path: Path) -> Iterator[Listed]:
    started = Listed(tmp_path)
    yield started
    started.stop()


def test_a_device_gets_in_soon_after_it_was_accepted(listed: Listed) -> None:
    assert listed.login("dev-01") == NOT_AUTHORIZED
    listed.accepted.add("dev-01")
    until("a login", lambda: listed.login("dev-01") == WELCOME, 5.0)
    assert listed.login("dev-02") == NOT_AUTHORIZED


def test_a_device_has_its_own_topics_and_is_cut_within_a_second(listed: Listed) -> None:
    listed.accepted |= {"dev-01", "dev-02"}
    listed.access.cut("nobody")  # look at once
    until("a login", lambda: listed.login("dev-02") == WELCOME, 5.0)
    one, two = (
        MqttClient(
            listed.broker.settings.mqtt_port, context_of(listed.pki.client(name)), f"{name}_secret"
        )
        for name in ("dev-01", "dev-02")
    )
    own, other = (topics.down_filter(FLEET, name) for name in ("dev-01", "dev-02"))
    assert one.subscribe(own, other, "#") == [1, REFUSED_FILTER, REFUSED_FILTER]
    listed.accepted.remove("dev-01")
    began = time.monotonic()
    listed.access.cut("dev-01")
    until("the cut", lambda: not one.connected, 1.0)
    assert time.monotonic() - began < 1.0
    assert listed.login("dev-01") == NOT_AUTHORIZED
    assert two.connected
    one.close()
    two.close()


def test_a_stranger_is_refused(listed: Listed, tmp_path: Path) -> None:
    foreign = Pki(tmp_path / "foreign").client("dev-01")
    listed.accepted.add("dev-01")
    until("a login", lambda: listed.login("dev-01") == WELCOME, 5.0)
    context = listed.pki.context("dev-01")
    context.load_cert_chain(str(foreign.certificate), str(foreign.key))
    assert log_in(HOST, listed.broker.settings.mqtt_port, context, "x") == BROKEN_OFF


async def test_an_old_server_is_refused_with_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    program.chmod(0o755)
    monkeypatch.setenv("SKERRY_NATS_SERVER", str(program))
    pki = Pki(tmp_path / "pki")
    settings = settings_for(tmp_path / "nats", pki, issuer="A" * 56)
    broker = Broker(settings, pki.context(FLEET_USER), lambda _: None)
    with pytest.raises(UnreachableError, match=r'2\.10 or newer.* is 2\.9\.10.*"users"'):
        await broker.start()


def test_the_installed_server_asks() -> None:
    asks, version = can_ask(find_server())
    assert asks, version


def test_a_device_may_say_and_hear_only_its_own() -> None:
    rights = device_rights(FLEET, SHARDS, "dev-01")
    shard = topics.shard_of("dev-01", SHARDS)
    assert rights.publish == (
        f"skerry.v1.{FLEET}.up.{shard}.dev-01.>",
        f"skerry.v1.{FLEET}.presence.dev-01",
    )
    assert rights.subscribe == (
        f"skerry.v1.{FLEET}.dn.dev-01",
        f"skerry.v1.{FLEET}.dn.dev-01.>",
        f"skerry.v1.{FLEET}.dn.all",
        f"skerry.v1.{FLEET}.dn.all.>",
        "$MQTT.sub.>",
    )


def test_the_denied_stand_before_what_a_pattern_allows() -> None:
    text = render_mosquitto_acl(FLEET, denied=["dev-09", "dev-02"])
    assert text.index("user dev-02") < text.index("user dev-09") < text.index("pattern")
