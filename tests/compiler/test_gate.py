"""A variant ships if it is good enough and proven fast enough, and the reason says so."""

import pytest

from compiler.evaluate import Quality
from compiler.gate import check_reference, rule
from compiler.latency import Verdict
from compiler.recipe import Gate
from skerry.errors import GateError

GATE = Gate(max_drop=0.01, min_value=0.8, max_latency_ratio=0.95)


def quality(value: float, drop: float) -> Quality:
    return Quality(value, 400, drop, drop - 0.02, drop + 0.02, 0.99)


@pytest.mark.parametrize(
    ("value", "drop", "verdict", "accepted", "reason"),
    [
        (0.95, 0.00, "faster", True, "accuracy 0.9500, as fp32"),
        (0.94, 0.01, "faster", True, "0.0100 below fp32"),
        (0.96, -0.01, "faster", True, "0.0100 above fp32"),
        (0.93, 0.02, "faster", False, "more than max_drop 0.0100"),
        (0.79, 0.00, "faster", False, "below min_value 0.8000"),
        (0.95, 0.00, "slower", False, "takes more than 0.95 of fp32's CPU time"),
        (0.95, 0.00, "undecided", False, "is not proven"),
    ],
)
def test_each_way_through_the_gate(
    value: float, drop: float, verdict: Verdict, accepted: bool, reason: str
) -> None:
    ruling = rule("accuracy", quality(value, drop), verdict, 0.3, GATE)
    assert ruling.accepted is accepted
    assert reason in ruling.reason


def test_a_limit_that_is_just_met_is_met_whatever_floats_make_of_it() -> None:
    assert rule("accuracy", quality(0.8, 0.95 - 0.94), "faster", 0.3, GATE).accepted


def test_a_reason_holds_the_numbers_and_the_sample_size() -> None:
    reason = rule("accuracy", quality(0.93, 0.02), "faster", 0.3, GATE).reason
    assert reason == (
        "accuracy 0.9300 is 0.0200 below fp32 (95 %: -0.0400 to +0.0000, n=400), "
        "more than max_drop 0.0100"
    )


def test_fp32_below_the_gate_fails_the_build_with_the_numbers() -> None:
    with pytest.raises(GateError) as failed:
        check_reference("shapes 1.0.0", "accuracy", quality(0.7, 0.0), GATE)
    assert "shapes 1.0.0: expected accuracy of at least 0.8000" in str(failed.value)
    assert "got 0.7000 in fp32 on 400 rows" in str(failed.value)
    check_reference("shapes 1.0.0", "accuracy", quality(0.8, 0.0), GATE)
