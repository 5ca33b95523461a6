"""The broker connection: jitter within its bounds, and back after every break."""

import asyncio
import dataclasses
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.mqtt import BrokerAddress, Link, LinkConfig, backoff_s, parse_broker_url
from fleet.broker import Broker
from fleet.broker_config import FLEET_USER
from fleet.tls_files import context_of
from skerry.errors import UsageError
from tests.fakes.brokers import settings_for
from tests.fakes.pki import Pki


def test_jitter_fills_its_range_and_its_ceiling_doubles_up_to_the_cap() -> None:
    rng = random.Random(7)
    for attempt, ceiling in [(0, 0.5), (1, 1.0), (4, 8.0), (12, 300.0), (10_000, 300.0)]:
        waits = [backoff_s(attempt, 0.5, 300.0, rng) for _ in range(500)]
        assert min(waits) < 0.05 * ceiling
        assert 0.95 * ceiling < max(waits) <= ceiling


def test_two_devices_do_not_wait_alike() -> None:
    mine, theirs = (
        [backoff_s(n, 0.5, 300.0, random.Random(seed)) for n in range(8)] for seed in (1, 2)
    )
    assert mine != theirs


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883, tls=False)),
        ("mqtt://127.0.0.1:4000", BrokerAddress("127.0.0.1", 4000, tls=False)),
        ("mqtts://broker", BrokerAddress("broker", 8883, tls=True)),
        ("mqtts://[::1]:99/", BrokerAddress("::1", 99, tls=True)),
    ],
)
def test_broker_addresses(url: str, address: BrokerAddress) -> None:
    assert parse_broker_url(url) == address


@pytest.mark.parametrize("url", ["", "broker:1883", "http://broker", "mqtt://", "mqtt://b:99999"])
def test_what_is_no_broker_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="mqtt://host:1883"):
        parse_broker_url(url)


class Site:
    """A real broker and the links of some devices."""

    def __init__(self, folder: Path) -> None:
        self.pki = Pki(folder / "pki")
        settings = dataclasses.replace(settings_for(folder / "nats", self.pki), host="0.0.0.0")
        # a certificate that may say and hear everything, under any client id
        self.files = self.pki.client(FLEET_USER)
        self.broker = Broker(settings, context_of(self.files), lambda _pid: None)
        self.tasks: list[asyncio.Task[None]] = []

    def link(
        self,
        name: str,
        received: Callable[[str, bytes], None] = lambda _topic, _data: None,
        connected: Callable[[], None] = lambda: None,
        host: str = "127.0.0.1",
        ca: Path | None = None,
    ) -> Link:
        config = LinkConfig(
            address=BrokerAddress(host, self.broker.settings.mqtt_port, tls=True),
            client_id=name,
            filters=[f"skerry/to/{name}/#"],
            will_topic=f"presence/{name}",
            will=b"gone",
            keepalive_s=30,
            base_s=0.05,
            cap_s=0.5,
            ca_file=ca or self.files.ca,
            cert_file=self.files.certificate,
            key_file=self.files.key,
        )
        link = Link(config, received=received, connected=connected, rng=random.Random(1))
        self.tasks.append(asyncio.create_task(link.run()))
        return link


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    await site.broker.start()
    watching = asyncio.create_task(site.broker.watch())
    yield site
    for task in [*site.tasks, watching]:
        task.cancel()
    await asyncio.gather(*site.tasks, watching, return_exceptions=True)
    await site.broker.stop()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20.0):
        while not holds():  # noqa: ASYNC110 - it waits for another process
            await asyncio.sleep(0.01)


async def test_messages_go_both_ways_and_large_ones_whole(site: Site) -> None:
    heard: list[tuple[str, bytes]] = []
    hearing = site.link("cam-1", received=lambda topic, data: heard.append((topic, data)))
    saying = site.link("cam-2")
    await until(lambda: hearing.connected and saying.connected)
    large = os.urandom(100_000)
    assert saying.publish("skerry/to/cam-1/ack", large)
    assert saying.publish("skerry/to/cam-1/cmd", b"x", qos=0)
    await until(lambda: len(heard) == 2)
    assert sorted(heard) == [("skerry/to/cam-1/ack", large), ("skerry/to/cam-1/cmd", b"x")]


async def test_it_comes_back_when_the_broker_was_killed(site: Site) -> None:
    connects: list[int] = []
    link = site.link("cam-1", connected=lambda: connects.append(1))
    await until(lambda: link.connected)
    os.kill(site.broker.pid, signal.SIGKILL)
    await until(lambda: len(connects) == 2)
    assert link.publish("skerry/to/nobody", b"x")


async def test_without_a_connection_nothing_is_taken(site: Site) -> None:
    link = site.link("cam-1")
    assert not link.publish("skerry/to/nobody", b"x")


async def test_a_handler_that_fails_does_not_end_the_connection(site: Site) -> None:
    heard: list[bytes] = []

    def take(_topic: str, data: bytes) -> None:
        heard.append(data)
        if data == b"bad":
            raise ValueError("unexpected")

    hearing = site.link("cam-1", received=take)
    saying = site.link("cam-2")
    await until(lambda: hearing.connected and saying.connected)
    for data in (b"bad", b"good"):
        saying.publish("skerry/to/cam-1/ack", data)
    await until(lambda: heard == [b"bad", b"good"])
    assert hearing.connected


async def test_a_session_that_is_taken_over_is_won_back(site: Site) -> None:
    first = site.link("cam-1")
    await until(lambda: first.connected)
    second = site.link("cam-1")
    await until(lambda: second.connected and not first.connected)
    site.tasks[1].cancel()
    await until(lambda: first.connected)


async def test_a_broker_of_another_authority_is_not_spoken_to(site: Site, tmp_path: Path) -> None:
    good = site.link("cam-1")
    bad = site.link("cam-2", ca=Pki(tmp_path / "foreign").ca)
    await until(lambda: good.connected)
    await asyncio.sleep(0.3)
    assert not bad.connected


async def test_a_broker_of_another_name_is_not_spoken_to(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    good = site.link("cam-1", host="localhost")
    bad = site.link("cam-2", host="127.0.0.2")  # the same broker, by a name it does not have
    await until(lambda: good.connected)
    await until(lambda: "127.0.0.2" in caplog.text)
    assert not bad.connected
