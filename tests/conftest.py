"""Tests that need a foreign program skip where it is absent, and fail there in CI."""

import os

import pytest

from tests.fakes.programs import NEEDS, why_missing


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in NEEDS:
        if item.get_closest_marker(marker) is None:
            continue
        reason = why_missing(marker)
        if reason and os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        if reason:
            pytest.skip(reason)
