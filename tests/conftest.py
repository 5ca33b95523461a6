"""What holds for every test: foreign programs that may be absent, and examples that repeat.

A test that needs a foreign program skips where it is absent, and fails there in CI. Property tests
draw the same examples every time; `--hypothesis-profile=explore` draws new ones, ten times as many.
"""

import os

import pytest
from hypothesis import settings

from tests.fakes.programs import NEEDS, OPTIONAL, why_missing

settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("steady")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in NEEDS:
        if item.get_closest_marker(marker) is None:
            continue
        reason = why_missing(marker)
        if reason and os.environ.get("CI") == "true" and marker not in OPTIONAL:
            pytest.fail(reason, pytrace=False)
        if reason:
            pytest.skip(reason)
