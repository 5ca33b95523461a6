"""Metadata is kept fresh for few bytes, whatever happened to files, disk, roots and clocks."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tuf.api.metadata import Metadata, Root

import agent.trust
from agent.download import Fetcher
from agent.trust import _News
from agent.verifier import verify_request
from agent.verify_protocol import VerifyAnswer, VerifyRequest
from fleet.api.problems import problems
from fleet.device_api import add_catalog_routes
from fleet.director import assign
from fleet.roles import sign
from skerry.canonical import from_msgpack, to_msgpack
from skerry.custom import MESSAGE_KEYS_FIELD, message_keys_field
from skerry.keys import Signer
from skerry.trust import SignedTime
from skerry.wire import Ack, Hello, open_up
from tests.attacks.device import Network, verify_here
from tests.attacks.harness import (
    DEVICE,
    NEW,
    OLD,
    Site,
    committed,
    open_site,
    refused,
)
from tests.attacks.test_time import hears_the_time
from tests.fakes.http_files import FileServer
from tests.fakes.trusted import NOW, PHRASE, TrustedFleet, make_bundle, make_fleet

MAX_BYTES = 700  # of a no-change check, before TLS


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    with open_site(tmp_path, monkeypatch) as site:
        try:
            assert await site.install(site.publish(OLD)) == committed(OLD)
            yield site
        finally:
            await site.device.stop()


async def test_the_time_of_day_is_known_or_nobody_pretends(site: Site) -> None:
    """For maintenance windows: what the fleet has proved counts before a clock that may be ahead."""
    trust = site.device.control._trust
    assert trust.wall_clock() == site.clock.now
    site.clock.now = 0.0
    assert trust.wall_clock() is None  # never set
    site.clock.now = 4_070_908_800.0
    hears_the_time(site)
    assert trust.wall_clock() == site.now.timestamp()
    site.clock.now = site.device.floor.time - 1.0
    await site.device.restart()  # which forgets the proof, and keeps the floor
    assert site.device.control._trust.wall_clock() is None


async def test_a_clock_that_the_fleet_puts_right_ends_no_update(site: Site) -> None:
    """Power came back without a clock: an order comes first, and only then the time."""
    site.wait(timedelta(days=3))
    site.clock.now = 0.0
    await site.device.restart()
    control = site.device.control
    control._tick()
    site.network.down = True
    order = site.order(site.publish(NEW))
    site.device.hear(site.desired(site.signed(order), order))
    hears_the_time(site)
    control._tick()
    (slot,) = control._machine.state.slots.values()
    assert slot.work is not None
    assert abs(slot.work.path[0].at - site.now.timestamp()) < 10
    site.network.down = False
    assert await site.device.outcome(order.nonce) == committed(NEW)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[VerifyRequest]:
    """Every verification that was asked for."""
    asked: list[VerifyRequest] = []

    async def counted(request: VerifyRequest, timeout_s: float) -> VerifyAnswer:
        asked.append(request)
        return await verify_here(request, timeout_s)

    monkeypatch.setattr(agent.trust, "verify", counted)
    return asked


def running(site: Site) -> dict[str, object]:
    """What serves, and since when."""
    slots = site.device.control._machine.state.slots
    return {name: (slot.current, slot.work) for name, slot in slots.items()}


# --- news -------------------------------------------------------------------------------------------


class Wire:
    """Passes on what is said between a client and a server, and counts the bytes."""

    def __init__(self, port: int) -> None:
        self.bytes = 0
        self._port = port

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._copy(reader, down), self._copy(up, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            self.bytes += len(data)
            writer.write(data)
        writer.close()


async def no_change(trusted: TrustedFleet, verified: Path) -> tuple[int, bool]:
    """Bytes on the wire of a look that finds nothing new, and whether a later one finds news."""
    app = web.Application(middlewares=[problems])
    add_catalog_routes(app, trusted.catalog, trusted.director)
    async with TestServer(app) as server:
        assert server.port is not None
        wire = Wire(server.port)
        news = _News(Fetcher(await wire.open() + "/tuf/catalog/metadata", timeout_s=5.0), verified)
        assert await asyncio.to_thread(news.any)
        verified.write_bytes(trusted.catalog.metadata("timestamp.json"))
        assert not await asyncio.to_thread(news.any)  # names what is held
        wire.bytes = 0
        assert not await asyncio.to_thread(news.any)
        cost = wire.bytes
        trusted.publish(make_bundle("9.0.0"))
        found = await asyncio.to_thread(news.any)
        # as long as it is not verified it stays news
        assert await asyncio.to_thread(news.any) is found
        await wire.close()
        return cost, found


async def test_no_change_costs_few_bytes_whatever_the_catalog_holds(tmp_path: Path) -> None:
    costs = {}
    for count in (1, 20):
        trusted = make_fleet(tmp_path / str(count))
        for number in range(count):
            trusted.publish(make_bundle(f"1.{number}.0"))
        costs[count], found = await no_change(trusted, tmp_path / f"{count}.json")
        assert found
    assert costs[1] == costs[20] <= MAX_BYTES


async def test_without_news_no_process_is_started(
    site: Site, children: list[VerifyRequest]
) -> None:
    trust = site.device.control._trust
    assert not await trust.look(ask=True)
    assert children == []
    site.publish()
    assert await trust.look(ask=True)
    assert [request.target for request in children] == [""]
    assert not await trust.look(ask=True)
    assert len(children) == 1


async def test_an_order_signed_anew_raises_floors_and_restarts_nothing(
    site: Site, children: list[VerifyRequest]
) -> None:
    device, before = site.device, running(site)
    order = site.order(site.trusted.catalog.releases()[0], assignment="a-1")
    served = device.supervisor.slots
    site.wait(timedelta(days=1))
    floor = device.floor
    device.hear(site.desired(site.signed(order), order))
    assert await device.control._trust.look(ask=True)
    assert len(children) == 1
    assert device.floor.metadata["director/timestamp"] == floor.metadata["director/timestamp"] + 1
    assert device.floor.metadata["catalog/timestamp"] == floor.metadata["catalog/timestamp"] + 1
    until = device.control._machine.state.until
    assert min(until.values()) >= (site.now + timedelta(days=6, hours=23)).timestamp()
    assert running(site) == before
    assert device.supervisor.slots is served
    assert not await device.control._trust.look(ask=True)


async def test_a_refresh_that_is_refused_says_why_and_heals(site: Site) -> None:
    trust = site.device.control._trust
    floor = site.device.floor
    old = site.catalog_files()
    site.publish()
    assert await trust.look(ask=True)
    await site.device.restart(lose_metadata=True)
    trust = site.device.control._trust
    risen = site.device.floor
    assert risen != floor
    site.network.serve_catalog(old)
    assert await trust.look(ask=True)
    assert trust.code == "metadata_below_floor"
    assert (site.device.floor, site.device.serves) == (risen, OLD)
    assert site.device.control._health(0.0).trust == "metadata_below_floor"
    site.network.clear()
    assert await trust.look(ask=True)
    assert trust.code == ""


async def test_a_key_that_nobody_named_costs_one_request_a_minute(
    site: Site, children: list[VerifyRequest]
) -> None:
    trust, asked = site.device.control._trust, len(site.requests)
    for _ in range(5):
        trust.doubt()
        assert not await trust.look(ask=False)
    assert len(site.requests) == asked + 1
    assert children == []
    site.wait(timedelta(minutes=2))
    trust.doubt()
    await trust.look(ask=False)
    assert len(site.requests) == asked + 2


def hellos(site: Site) -> list[Hello]:
    """What the device said when it connected, and since."""
    said = [data for topic, data in site.device.link.said if topic.endswith("/hello")]
    opened = [open_up(data, site.device.signer.public, device=DEVICE)[1] for data in said]
    return [body for body in opened if isinstance(body, Hello)]


async def test_hello_is_said_again_until_it_is_answered_and_twice_a_day(site: Site) -> None:
    control = site.device.control
    control._connected()
    control._tick()
    assert len(hellos(site)) == 1
    site.wait(timedelta(seconds=61))
    control._tick()
    first, second = hellos(site)
    assert (first.nonce != second.nonce, second.again) == (True, False)
    site.device.hear(site.seal("ack", Ack(now=site.now.timestamp(), nonce=second.nonce)))
    site.wait(timedelta(hours=11))
    control._tick()
    assert len(hellos(site)) == 2
    assert site.device.floor.time == site.now.timestamp()  # it follows, without another answer
    site.wait(timedelta(hours=2))
    control._tick()
    assert [hello.again for hello in hellos(site)] == [False, False, True]


# --- roots -------------------------------------------------------------------------------------------


def later_roots(site: Site, count: int) -> dict[str, bytes]:
    """Roots of the director after the first one, each signed by two holders."""
    root, files = site.root("director"), {}
    for _ in range(count):
        root.version += 1
        files[f"{root.version}.root.json"] = sign(root, [site.root_key(1), site.root_key(2)])
    return files


async def test_more_roots_than_a_message_carries_are_fetched(site: Site) -> None:
    roots = later_roots(site, 12)
    carried = {name: roots[name] for name in list(roots)[-8:]}
    order = site.order(site.publish())
    signed = site.signed(order)
    assert await site.tell(signed | carried, order) == refused("root_missing")
    for name in list(roots)[:-8]:
        site.network[f"/tuf/director/metadata/{name}"] = roots[name]
    order = site.order(site.trusted.catalog.release(order.path))
    assert await site.tell(site.signed(order) | carried, order) == committed(NEW)
    assert site.device.floor.metadata["director/root"] == 13


@pytest.mark.parametrize(
    ("root_floor", "code"),
    [(1, ""), (2, "root_expired")],
    ids=["a newer root", "the same root"],
)
def test_roots_come_before_the_time(tmp_path: Path, root_floor: int, code: str) -> None:
    """A time far ahead, by a key that the root no longer names, is void only if the root is newer."""
    trusted = make_fleet(tmp_path / "fleet")
    root = Metadata[Root].from_bytes(trusted.director.root).signed
    root.version = 2
    root.unrecognized_fields[MESSAGE_KEYS_FIELD] = message_keys_field([Signer.generate().public])
    holders = [
        Signer.from_pem((trusted.out / f"root-{n}.pem").read_bytes(), PHRASE) for n in (1, 2)
    ]
    order = assign(
        trusted.publish(make_bundle()).target, device=DEVICE, slot="reader", rollout="r",
        assignment_id="a",
    )  # fmt: skip
    signed = trusted.director.sign(DEVICE, [order], version=1, now=NOW)
    with FileServer() as server:
        server.files = Network(trusted)
        answer = verify_request(
            VerifyRequest(
                target=order.path,
                director=signed | {"2.root.json": sign(root, holders)},
                catalog_url=f"{server.url}/tuf/catalog/metadata",
                catalog_root=trusted.catalog.root,
                director_root=trusted.director.root,
                directory=str(tmp_path / "tuf"),
                now=NOW.timestamp(),
                timeout_s=5.0,
                signed=[SignedTime(4_070_908_800.0, trusted.keys.message.key_id)],
                root_floor=root_floor,
            )
        )
    assert answer.code == code
    assert answer.metadata["director/root"] == 2


async def test_an_expired_root_is_named(site: Site) -> None:
    release = site.publish()
    site.wait(timedelta(days=366))
    outcome = await site.install(release)
    assert outcome == refused("root_expired")
    assert "root 1 expired on" in outcome.message
    root = Metadata[Root].from_bytes(later_roots(site, 1)["2.root.json"]).signed
    root.expires = site.now + timedelta(days=365)
    order = site.order(release)
    renewed = {"2.root.json": sign(root, [site.root_key(1), site.root_key(2)])}
    # now it is the catalog's, which is another
    assert await site.tell(site.signed(order) | renewed, order) == refused("root_expired")


# --- files and disks ---------------------------------------------------------------------------------


async def test_every_damaged_file_heals_and_floors_hold(site: Site) -> None:
    first = site.order(site.publish(NEW))
    older = site.signed(first)
    tuf = site.device.layout.tuf
    names = sorted(str(path.relative_to(tuf)) for path in tuf.rglob("*.json"))
    assert len(names) >= 10
    number = 1
    for name in names:
        for damage in (b"", None, b"\xff\x00garbage" * 9, b"[" * 100_000):
            path, number = tuf / name, number + 1
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2] if damage is None else damage)
            version = f"1.{number}.0"
            assert await site.install(site.publish(version)) == committed(version), (name, damage)
    for name in names:
        (tuf / name).write_bytes(b"")
    serves = f"1.{number}.0"
    assert await site.tell(older, first) == refused("metadata_below_floor", serves=serves)


async def test_a_state_directory_that_cannot_be_written_is_tried_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    tuf = site.device.layout.tuf
    away = tuf.rename(tuf.with_name("away"))
    tuf.symlink_to("/proc/sys")  # where nobody makes a directory, root included
    order = site.order(site.publish())
    site.device.hear(site.desired(site.signed(order), order))
    await asyncio.sleep(0.3)
    slot = site.device.control._machine.state.slots["reader"]
    assert slot.work is not None
    assert (slot.work.state, site.device.serves) == ("notified", OLD)
    assert "cannot keep metadata in" in caplog.text
    tuf.unlink()
    away.rename(tuf)
    assert await site.device.outcome(order.nonce) == committed(NEW)


def test_a_full_disk_is_told_from_a_refusal(tmp_path: Path) -> None:
    """In a child that may not write a byte, as on a full disk."""
    trusted = make_fleet(tmp_path / "fleet")
    request = VerifyRequest(
        target="models/acme/reader@1.0.0", director={}, catalog_url="http://127.0.0.1:1",
        catalog_root=trusted.catalog.root, director_root=trusted.director.root,
        directory=str(tmp_path / "tuf"), now=1_800_000_000.0, timeout_s=1.0,
    )  # fmt: skip
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
        "from agent.verifier import main; main()"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], input=to_msgpack(request), capture_output=True, check=True
    )
    answer = from_msgpack(child.stdout, VerifyAnswer)
    assert (answer.code, answer.transient) == ("state_unwritable", True)
    assert str(tmp_path / "tuf") in answer.message


async def test_verifications_take_turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has python-tuf's folder for itself."""
    at_once: list[int] = [0]
    under_way = 0

    async def noted(request: VerifyRequest, timeout_s: float) -> VerifyAnswer:
        nonlocal under_way
        under_way += 1
        at_once.append(under_way)
        await asyncio.sleep(0.02)
        answer = await verify_here(request, timeout_s)
        under_way -= 1
        return answer

    monkeypatch.setattr(agent.trust, "verify", noted)
    order = site.order(site.publish())
    site.device.hear(site.desired(site.signed(order), order))
    await asyncio.gather(*(site.device.control._trust.refresh() for _ in range(3)))
    assert await site.device.outcome(order.nonce) == committed(NEW)
    assert (len(at_once), max(at_once)) == (5, 1)
