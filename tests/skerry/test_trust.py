"""The trust checks of our own: each rule refuses what TUF would let pass."""

from typing import Any

import msgspec
import pytest

from skerry.errors import TrustError
from skerry.trust import (
    CatalogTarget,
    DirectorTarget,
    check_assignment,
    check_floor,
    parse_target,
    target_path,
)

PATH = target_path("acme", "reader", "1.1.0")
RELEASED = CatalogTarget(
    path=PATH, length=9, sha256="ab" * 32, release_counter=2, hw_classes=["any"], min_agent="0.1.0"
)
ASSIGNED = DirectorTarget(
    path=PATH, length=9, sha256="ab" * 32, device="dev-1", slot="reader", rollout="r-1", nonce="a-1"
)


def check(
    assigned: DirectorTarget = ASSIGNED, released: CatalogTarget = RELEASED, **changed: Any
) -> None:
    facts: dict[str, Any] = {
        "device": "dev-1",
        "slot": "reader",
        "assignment_id": "a-1",
        "hw_class": "linux-x86_64-avx2",
        "agent_version": "0.1.0",
        "floor": 2,
        "fall_back_to": frozenset(),
    }
    check_assignment(assigned, released, **(facts | changed))


def test_what_director_and_catalog_agree_on_may_run() -> None:
    check()


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("wrong_device", {"device": "dev-2"}),
        ("wrong_assignment", {"slot": "other"}),
        ("wrong_assignment", {"assignment_id": "a-0"}),
        ("release_below_floor", {"floor": 3}),
        ("disagreement", {"released": msgspec.structs.replace(RELEASED, sha256="cd" * 32)}),
        ("disagreement", {"released": msgspec.structs.replace(RELEASED, length=8)}),
        ("wrong_hardware", {"released": msgspec.structs.replace(RELEASED, hw_classes=["linux-a"])}),
        ("old_agent", {"released": msgspec.structs.replace(RELEASED, min_agent="0.2.0")}),
    ],
)
def test_each_rule_refuses_by_its_name(code: str, change: dict[str, Any]) -> None:
    with pytest.raises(TrustError) as refused:
        check(**change)
    assert refused.value.code == code


def test_a_wanted_fallback_may_go_below_the_floor() -> None:
    check(floor=3, fall_back_to=frozenset({"sha256:" + "ab" * 32}))


def test_metadata_below_its_floor_is_a_replay() -> None:
    check_floor({"director/targets": 4}, {"director/targets": 4, "catalog/timestamp": 1})
    with pytest.raises(TrustError) as refused:
        check_floor({"director/targets": 4}, {"director/targets": 3})
    assert refused.value.code == "metadata_below_floor"


def test_target_paths_come_back_and_others_are_refused() -> None:
    parsed = parse_target(PATH)
    assert (parsed.publisher, parsed.model, parsed.model_version) == ("acme", "reader", "1.1.0")
    for wrong in ("models/acme/reader", "models/../reader@1.0.0", "models/acme/x/reader@1.0.0"):
        with pytest.raises(TrustError):
            parse_target(wrong)
