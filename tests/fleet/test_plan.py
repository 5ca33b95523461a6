"""Plans: what an operator writes is what is read, and the page about it shows a real one."""

import re
from pathlib import Path

import msgspec
import pytest

from fleet.plan import Plan, StagePlan, check_plan, share

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "ideas" / "rollout.md"


def test_the_plan_in_the_documents_is_a_plan() -> None:
    found = re.search(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    plan = msgspec.toml.decode(found[1], type=Plan)
    assert check_plan(plan, 12).stages[0].analysis is not None
    assert plan.target == "models/acme/reader@1.1.0"


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `max_sample`"):
        msgspec.json.decode(b'{"name": "all", "max_sample": 3}', type=StagePlan)


@pytest.mark.parametrize(
    ("stage", "taken", "expected"),
    [
        (StagePlan("few", count=3), 0, 3),
        (StagePlan("few", count=3), 10, 2),
        (StagePlan("tenth", percent=10), 0, 2),
        (StagePlan("half", percent=50), 2, 4),
        (StagePlan("tenth", percent=10), 5, 0),
        (StagePlan("rest"), 5, 7),
        (StagePlan("rest"), 12, 0),
    ],
)
def test_a_stage_takes_its_share_of_twelve(stage: StagePlan, taken: int, expected: int) -> None:
    assert share(stage, 12, taken) == expected
