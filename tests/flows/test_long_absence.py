"""A device that was away for seven months: every key is another, every signature has expired here.

It comes back with a clock at 1970 and an update that waited for consent when the power went. It
serves what it served from its first second on, believes nothing that is old, and takes the newest
release in one go.
"""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.facts import Restarted
from agent.permission import Consent, write_consent
from fleet.rotation import Wanted
from skerry.trust import CatalogTarget
from skerry.wire import Cmd
from tests.attacks.harness import Outcome, Site, committed, open_site
from tests.attacks.test_time import LONG_AGO, hears_the_time, knows
from tests.fakes.trusted import make_bundle
from tests.flows.test_rotation import SECRET, Fleet

MONTHS = 7


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    monkeypatch.setenv("SKERRY_KEY_PASSPHRASE", SECRET)
    with open_site(tmp_path, monkeypatch) as site:
        site.device.settings = {"consent": "ask", "update_windows": "daily 02:00-04:00"}
        await site.device.restart()
        made = Fleet(site, tmp_path)
        try:
            yield made
        finally:
            made.store.close()
            await site.device.stop()


def publish(fleet: Fleet, version: str) -> CatalogTarget:
    bundle = make_bundle(version, model="acme-reader")
    metadata = fleet.sign(bundle, "acme", "publisher-acme")
    return fleet.site.trusted.bundles.publish(io.BytesIO(bundle), metadata, fleet.site.now).target


async def waits(site: Site, id: str, state: str) -> None:
    """Until an assignment has that state."""
    async with asyncio.timeout(10.0):
        while site.device.report(id).state != state:  # noqa: ASYNC110 - another task acts
            await asyncio.sleep(0.01)


def approve(site: Site, id: str, *, at_once: bool = False) -> None:
    names = [f"{id}#1"]
    consent = Consent(at_once=names) if at_once else Consent(approved=names)
    write_consent(site.device.layout.consent, consent)


async def install(site: Site, release: CatalogTarget) -> Outcome:
    order = site.order(release)
    site.device.hear(site.desired(site.signed(order), order))
    await waits(site, order.nonce, "waiting_consent")
    approve(site, order.nonce, at_once=True)
    return await site.device.outcome(order.nonce)


async def test_a_device_that_was_away_for_months_catches_up(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.installer.PERMIT_S", 0.01)
    site = fleet.site
    assert await install(site, publish(fleet, "2.1.0")) == committed("2.1.0")
    # the power goes while an update waits for consent
    old = site.order(publish(fleet, "2.2.0"))
    held_back = site.desired(site.signed(old), old)
    site.device.hear(held_back)
    await waits(site, old.nonce, "waiting_consent")
    await site.device.stop()

    for month in range(MONTHS):
        fleet.renew(("director", "message", "timestamp")[month % 3])
        changed = month % 3 + 1
        others = [f"root-{number}" for number in (1, 2, 3) if number != changed]
        fleet.change(Wanted({f"root-{changed}": None}), *others)
        fleet.month()
        newest = publish(fleet, f"3.{month}.0")

    true_time = site.now.timestamp()
    site.clock.now = LONG_AGO
    site.device.start()
    control = site.device.control
    await control._installer.serve()
    control._handle(Restarted())
    control._machine.resume()
    assert site.device.serves == "2.1.0"
    # somebody plays the old message again, and says yes to what waited
    site.device.hear(held_back)
    approve(site, old.nonce, at_once=True)
    outcome = await site.device.outcome(old.nonce)
    assert (outcome.state, outcome.code) == ("rejected", "signature_invalid")
    assert site.device.serves == "2.1.0"
    # on the way it has followed a chain of roots to the key with which the fleet speaks now
    ping = site.seal("cmd", Cmd("c-1", "ping"), id="c-1", exp=true_time + 60)
    site.device.hear(ping)
    assert site.device.refused == 0
    hears_the_time(site)
    assert abs(knows(site) - true_time) < 5
    assert site.device.serves == "2.1.0"

    order = site.order(newest)
    site.device.hear(site.desired(site.signed(order), order))
    await waits(site, order.nonce, "waiting_consent")
    approve(site, order.nonce)
    await waits(site, order.nonce, "waiting_window")  # it is noon, and it knows that again
    approve(site, order.nonce, at_once=True)
    assert await site.device.outcome(order.nonce) == committed(f"3.{MONTHS - 1}.0")
    (slot,) = control._machine.state.slots.values()
    assert slot.previous is not None
    assert slot.previous.ref.model_version == "2.1.0"
    # what was held back is worth nothing any more
    site.device.hear(held_back)
    assert site.device.serves == f"3.{MONTHS - 1}.0"
