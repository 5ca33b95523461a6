"""Selectors pick devices; the order is fixed by the seed and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.targeting import Candidate, ordered, parse, select
from skerry.errors import UsageError

FLEET = [
    Candidate("dev-1", {"site": "north"}, "linux-x86_64-avx2", "linux-x86_64", "0.1.0"),
    Candidate("dev-2", {"site": "north", "line": "a"}, "linux-aarch64", "linux-aarch64", "0.1.0"),
    Candidate("dev-3", {"site": "south"}, "linux-x86_64-vnni", "linux-x86_64", "0.2.0"),
    Candidate("dev-4", {}, "", "", ""),
]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("all", {"dev-1", "dev-2", "dev-3", "dev-4"}),
        ("site=north", {"dev-1", "dev-2"}),
        ("site=north|south", {"dev-1", "dev-2", "dev-3"}),
        ("site=north,hw_class=linux-x86_64*", {"dev-1"}),
        ("hw_class=linux-x86_64*", {"dev-1", "dev-3"}),
        ("id=dev-1|dev-4", {"dev-1", "dev-4"}),
        ("id=dev-1 | dev-4 , site=north", {"dev-1"}),
        ("site!=north", {"dev-3", "dev-4"}),
        ("site=*", {"dev-1", "dev-2", "dev-3"}),
        ("site!=*", {"dev-4"}),
        ("agent=0.2.0,platform=linux-x86_64", {"dev-3"}),
        ("site=moon", set()),
    ],
)
def test_a_selector_matches_as_it_reads(selector: str, expected: set[str]) -> None:
    assert set(select(selector, FLEET, "seed")) == expected


@pytest.mark.parametrize(
    "selector", ["", "site", "site=", "=north", "site=a|", "Site=a", "site=a b", "all,site=a", "a=b,,c=d",
                 "site=no*rth", "x" * 5000]
)  # fmt: skip
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(UsageError, match="expected a selector"):
        parse(selector)


def test_the_order_is_by_seed_and_not_by_name() -> None:
    names = [f"dev-{n:03}" for n in range(200)]
    first, second = ordered(names, "rollout-1"), ordered(names, "rollout-2")
    assert first == ordered(reversed(names), "rollout-1")
    assert first != second
    assert sorted(first) == names
    assert len(set(first[:20]) & set(names[:20])) < 10
    assert ordered(["dev-1", "dev-2", "dev-3", "dev-4"], "r-1") == FROZEN


FROZEN = ["dev-3", "dev-2", "dev-4", "dev-1"]


@given(st.lists(st.sampled_from([c.device for c in FLEET])), st.text(max_size=9))
def test_taking_a_device_away_leaves_the_others_in_order(names: list[str], seed: str) -> None:
    whole = ordered([c.device for c in FLEET], seed)
    assert ordered(names, seed) == [device for device in whole if device in names]
