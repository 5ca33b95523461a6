"""A site with a committed old model, for every attack."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attacks.harness import OLD, Site, committed, open_site


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """A fleet and a device that runs version 1.0.0."""
    with open_site(tmp_path, monkeypatch) as site:
        try:
            assert await site.install(site.publish(OLD)) == committed(OLD)
            yield site
        finally:
            await site.device.stop()
