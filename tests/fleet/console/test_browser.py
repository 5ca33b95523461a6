"""The console in a real browser: no complaint of its own, no breach of its policy, and it follows."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fakes.backend import TOKEN, listening
from tests.fakes.browser import Page, open_page
from tests.fakes.busy import SMUDGED, Play, busy_backend

pytestmark = pytest.mark.chromium
PAGES = ("rollouts", "models", "devices", "drift")


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    made = busy_backend(tmp_path_factory.mktemp("busy"))
    yield made
    made.backend.store.close()


@pytest.fixture
def url(play: Play) -> Iterator[str]:
    with listening(play.backend) as address:
        yield address


@pytest.fixture
async def page(url: str) -> AsyncIterator[Page]:
    async with open_page() as opened:
        await opened.go(f"{url}/login?token={TOKEN}")
        yield opened


async def test_every_page_loads_without_a_complaint_wide_and_narrow(page: Page, url: str) -> None:
    for width in (1280, 420):
        for name in PAGES:
            await page.look(width=width, dark=width == 420)
            await page.go(f"{url}/{name}")
            assert await page.ask("document.querySelector('[aria-current]').textContent") == (
                name.capitalize()
            )
            await page.until("document.getElementById('live').textContent == 'live'")
            # nothing sticks out sideways, not even inside a card
            assert (
                await page.ask(
                    "[...document.querySelectorAll('.card, .card *')]"
                    ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1).length"
                )
                == 0
            ), (name, width)
    assert page.complaints == []


async def test_a_script_that_is_not_ours_does_not_run(page: Page, url: str) -> None:
    await page.go(f"{url}/drift")
    await page.ask(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        " document.body.append(s); })()"
    )
    assert await page.ask("window.bad === undefined")
    assert any("Content Security Policy" in said for said in page.complaints)


async def test_signing_in_by_the_form_and_not_without_the_token(url: str) -> None:
    async with open_page() as page:
        await page.go(f"{url}/devices")
        assert urlsplit(await page.ask("location.href")).path == "/login"
        for token, path in (("wrong", "/login"), (TOKEN, "/rollouts")):
            await page.ask(f"document.getElementById('token').value = '{token}'")
            await page.ask("document.querySelector('form').requestSubmit()")
            shown = f"location.pathname == '{path}' && document.readyState == 'complete'"
            await page.until(shown)
            if token == "wrong":
                await page.until("document.querySelector('[role=alert]') !== null")
        assert not await page.ask("document.cookie")  # no script may read the session


async def test_the_page_draws_itself_anew_when_something_changes(
    page: Page, url: str, play: Play
) -> None:
    await page.go(f"{url}/drift")
    await page.until("document.getElementById('live').textContent == 'live'")
    for device in SMUDGED:
        assert await page.ask(f"document.querySelector('main').textContent.includes('{device}')")
    await page.ask("window.same = true")
    play.now += timedelta(seconds=1)
    alert = play.backend.store.alerts.live_alerts("drift")[0]
    await asyncio.to_thread(play.backend.commands.acknowledge_alert, alert.alert_id, "anna")
    await page.until("document.querySelector('main').textContent.includes('seen by anna')")
    assert await page.ask("window.same")  # drawn anew, not loaded anew
    assert page.complaints == []


async def test_what_is_being_selected_is_left_alone_until_it_is_not(
    page: Page, url: str, play: Play
) -> None:
    await page.go(f"{url}/drift")
    await page.until("document.getElementById('live').textContent == 'live'")
    await asyncio.sleep(1.0)  # the first event of a stream draws the page once
    await page.ask("getSelection().selectAllChildren(document.getElementById('look'))")
    await page.ask("window.before = document.getElementById('look')")
    await asyncio.to_thread(play.run, 1)
    await asyncio.sleep(1.5)
    assert await page.ask("document.getElementById('look') === window.before")
    await page.ask("getSelection().removeAllRanges()")
    await page.until("document.getElementById('look') !== window.before")


async def test_what_the_reader_opened_stays_open(page: Page, url: str, play: Play) -> None:
    await page.go(f"{url}/rollouts")
    await page.until("document.getElementById('live').textContent == 'live'")
    await page.ask("document.querySelector('article summary').focus()")
    await page.ask("document.querySelector('article summary').click()")
    await page.ask("window.first = document.querySelector('article')")
    await asyncio.to_thread(play.run, 1)
    await page.until("document.querySelector('article') !== window.first")
    assert await page.ask("document.querySelector('article details').open")
    assert await page.ask("document.activeElement === document.querySelector('article summary')")


async def test_a_fleet_that_is_gone_is_said(page: Page, play: Play) -> None:
    with listening(play.backend) as url:
        await page.go(f"{url}/login?token={TOKEN}")
        await page.until("document.getElementById('live').textContent == 'live'")
    await page.until("document.getElementById('live').textContent == 'reconnecting'")


async def test_a_fleet_that_began_anew_asks_for_the_token_again(page: Page, play: Play) -> None:
    with listening(play.backend) as url:
        await page.go(f"{url}/login?token={TOKEN}")
        await page.until("document.getElementById('live').textContent == 'live'")
    with listening(play.backend, urlsplit(url).port or 0):
        await page.until("location.pathname == '/login'")


def test_the_play_ends_as_its_story_says(play: Play, tmp_path: Path) -> None:
    alerts = play.backend.store.alerts.live_alerts("drift")
    assert {alert.body["device"] for alert in alerts} == set(SMUDGED)
