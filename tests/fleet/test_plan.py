"""Plans: what an operator writes is what is read, and the page about it shows a real one."""

import re
from pathlib import Path

import msgspec
import pytest

from fleet.plan import Plan, StagePlan, check_plan, share
from skerry.errors import UsageError
from skerry.trials import Shadow

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


@pytest.mark.parametrize(
    ("shadow", "message"),
    [
        (Shadow(share=0.0), "shadow.share above 0"),
        (Shadow(max_cpu=1.5), "shadow.max_cpu above 0, at most 1"),
        (Shadow(min_agreement=0.0), "shadow.min_agreement"),
        (Shadow(min_rows=0), "shadow.min_rows of at least 1"),
        (Shadow(max_seconds=0.0), "shadow.max_seconds"),
    ],
)
def test_a_shadow_that_could_never_tell_is_refused(shadow: Shadow, message: str) -> None:
    plan = Plan("reader", "1.1.0", "acme", "reader", shadow=shadow)
    with pytest.raises(UsageError, match=message):
        check_plan(plan, 3)
    assert check_plan(msgspec.structs.replace(plan, shadow=Shadow()), 3).shadow == Shadow()
