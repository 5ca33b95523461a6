"""A fleet that sends a byte now and then, for ever. Row 8 of the attack table."""

import asyncio
import time
from datetime import timedelta

import pytest

from agent.facts import Ticked
from tests.attacks.harness import Site, committed
from tests.fakes.http_files import FileServer

WEIGHTS = bytes(range(256)) * 400
BEFORE, AFTER = "2.0.0", "2.1.0"
QUICK = {"download_min_bytes_s": 1000, "download_slow_s": 0.4}


@pytest.fixture
async def running(site: Site) -> Site:
    """A device that runs a release, and is in a hurry from now on."""
    site.device.settings = dict(QUICK)
    assert await site.install(site.publish(BEFORE, weights=WEIGHTS)) == committed(BEFORE)
    await site.device.restart()
    return site


async def under_way(site: Site) -> str:
    """Order the next release; the assignment's id."""
    order = site.order(site.publish(AFTER, weights=WEIGHTS[::-1]))
    site.device.hear(site.desired(site.signed(order), order))
    return order.nonce


async def told(site: Site, id: str, code: str) -> None:
    async with asyncio.timeout(40.0):
        while site.device.report(id).code != code:  # noqa: ASYNC110 - another task acts
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("after", [0, 101_000], ids=["from the start", "at 99 %"])
async def test_row_08_a_fleet_that_drips_is_given_up_and_the_old_model_serves(
    running: Site, after: int
) -> None:
    site = running
    assert site.server is not None
    site.server.drips = lambda path: "/blobs/" in path
    site.server.drip_s, site.server.drip_after = 0.05, after
    began = time.monotonic()
    id = await under_way(site)
    await told(site, id, "slow_retrieval")
    assert time.monotonic() - began < 40.0  # a drip to the end would take many minutes
    report = site.device.report(id)
    assert report.state == "downloading"
    assert "fewer than 1000 bytes a second" in (report.message or "")
    assert site.device.serves == BEFORE
    # the drip ends: it goes on with what came, and ends well
    site.server.drip_s = 0.0
    assert await site.device.outcome(id) == committed(AFTER)


async def test_row_08_a_fleet_that_drips_for_ever_cannot_keep_an_update_open(running: Site) -> None:
    site = running
    assert site.server is not None
    site.server.drips = lambda path: "/blobs/" in path
    site.server.drip_s = 0.05
    id = await under_way(site)
    await told(site, id, "slow_retrieval")
    site.wait(timedelta(days=1))
    site.device.control._handle(Ticked())
    outcome = await site.device.outcome(id)
    assert (outcome.state, outcome.code) == ("timed_out", "slow_retrieval")
    assert site.device.serves == BEFORE


async def test_row_08_a_mirror_that_drips_gives_way_to_the_fleet(running: Site) -> None:
    site = running
    assert site.server is not None
    with FileServer() as mirror:
        mirror.files = site.server.files
        mirror.drip_s = 0.05
        site.device.settings |= {"mirrors": (mirror.url,)}
        await site.device.restart()
        assert await site.install(site.publish(AFTER, weights=WEIGHTS)) == committed(AFTER)
        assert mirror.requests
