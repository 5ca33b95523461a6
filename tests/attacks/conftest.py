"""A site with a committed old model, and a device listener, for the attacks."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleet.store import open_store
from tests.attacks.harness import OLD, Site, committed, open_site
from tests.attacks.identity import OK, asked
from tests.fakes.listener import Listening, open_listener


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A fleet and a device that runs version 1.0.0."""
    with open_site(tmp_path, monkeypatch) as site:
        try:
            assert await site.install(site.publish(OLD)) == committed(OLD)
            yield site
        finally:
            await site.device.stop()


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    """A device listener with its registry in a database; `DEVICE` is let in before and after."""
    database = open_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    try:
        async with open_listener(tmp_path, store=database.devices) as listening:
            yield listening
            assert await asked(listening, listening.context) == OK
    finally:
        database.close()
