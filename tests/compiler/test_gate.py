"""A variant ships if it is good enough and proven fast enough, and the reason says so."""

import pytest

from compiler.evaluate import Quality, Slice
from compiler.gate import Ruling, check_reference, rule
from compiler.latency import Verdict
from compiler.recipe import Gate, Metric, SliceGate
from skerry.errors import GateError

GATE = Gate(max_drop=0.01, min_value=0.8)
ACCURACY = Metric("y")


def quality(value: float, drop: float, half: float = 0.004) -> Quality:
    return Quality(value, 400, drop, drop - half, drop + half, 0.99)


def ruled(q: Quality, verdict: Verdict = "faster", gate: Gate = GATE, size: int = 30) -> Ruling:
    return rule(ACCURACY, q, verdict, gate, size=size, reference_size=100)


@pytest.mark.parametrize(
    ("value", "drop", "verdict", "accepted", "reason"),
    [
        (0.95, 0.00, "faster", True, "accuracy 0.9500, as fp32"),
        (0.94, 0.006, "faster", True, "0.0060 worse than fp32"),
        (0.96, -0.01, "faster", True, "0.0100 better than fp32"),
        (0.94, 0.009, "faster", False, "is not shown; some 6,720 samples would decide"),
        (0.94, 0.012, "faster", False, "is not shown; some 1,680 samples would decide"),
        (0.93, 0.02, "faster", False, "more than max_drop 0.0100"),
        (0.79, 0.00, "faster", False, "expected accuracy of at least 0.8000 (gate.min_value)"),
        (0.95, 0.00, "slower", False, "takes more than 0.95 of fp32's CPU time"),
        (0.95, 0.00, "undecided", False, "is not proven"),
    ],
)
def test_each_way_through_the_gate(
    value: float, drop: float, verdict: Verdict, accepted: bool, reason: str
) -> None:
    ruling = ruled(quality(value, drop), verdict)
    assert ruling.accepted is accepted
    assert reason in ruling.reason


def test_a_limit_that_is_just_met_is_met_whatever_floats_make_of_it() -> None:
    assert ruled(quality(0.8, 0.95 - 0.94, half=0.0)).accepted


def test_a_reason_holds_the_numbers_and_the_sample_size() -> None:
    reason = ruled(quality(0.93, 0.02)).reason
    assert reason == (
        "accuracy 0.9300 is 0.0200 worse than fp32 (95 %: -0.0240 to -0.0160, n=400), "
        "more than max_drop 0.0100"
    )


def test_fp32_below_the_gate_fails_the_build_with_the_numbers() -> None:
    with pytest.raises(GateError) as failed:
        check_reference("shapes 1.0.0", ACCURACY, quality(0.7, 0.0), GATE)
    assert "shapes 1.0.0: expected accuracy of at least 0.8000" in str(failed.value)
    assert "got 0.7000 in fp32 on 400 samples" in str(failed.value)
    check_reference("shapes 1.0.0", ACCURACY, quality(0.8, 0.0), GATE)


def test_too_few_samples_are_undecided_and_say_how_many_it_takes() -> None:
    ruling = ruled(quality(0.95, 0.0, half=0.02))
    assert ruling.outcome == "undecided"
    assert "some 1,680 samples would decide, there are 400" in ruling.reason
    assert ruled(quality(0.95, 0.0, half=0.02 * (400 / 1680) ** 0.5)).accepted


@pytest.mark.parametrize(
    ("gate", "size", "reason"),
    [
        (Gate(max_bytes=29), 30, "30 bytes, more than 29"),
        (Gate(max_size_ratio=0.25), 30, "0.30 of fp32's bytes, more than max_size_ratio 0.25"),
    ],
)
def test_what_is_too_large_is_refused(gate: Gate, size: int, reason: str) -> None:
    ruling = ruled(quality(0.95, 0.0), gate=gate, size=size)
    assert (ruling.outcome, ruling.blames) == ("refused", "size")
    assert reason in ruling.reason


def test_lower_is_better_for_an_error() -> None:
    mae = Metric("y", name="mae")
    worse = Quality(0.5, 400, 0.1, 0.09, 0.11)
    assert not rule(mae, worse, "faster", Gate(max_drop=0.05), size=1, reference_size=2).accepted
    with pytest.raises(GateError, match=r"expected mae of at most 0\.4000 \(gate\.max_value\)"):
        check_reference("m 1.0.0", mae, worse, Gate(max_value=0.4))


def group(n: int, drop: float, half: float) -> Quality:
    part = Slice("writer", "left", n, 0.9, drop, drop - half, drop + half)
    return Quality(0.95, 400, 0.0, -0.004, 0.004, slices=(part,))


@pytest.mark.parametrize(
    ("q", "outcome"),
    [
        (group(100, 0.0, 0.015), "accepted"),
        (group(100, 0.0, 0.05), "undecided"),  # it may lose more, for all these samples show
        (group(100, 0.1, 0.01), "refused"),
        (group(100, 0.05, 0.06), "undecided"),
        (group(10, 0.5, 0.1), "accepted"),  # so few decide nothing; they are reported
    ],
)
def test_every_group_must_hold_its_own(q: Quality, outcome: str) -> None:
    gate = Gate(slices={"writer": SliceGate("writer", max_drop=0.02)})
    assert ruled(q, gate=gate).outcome == outcome


def test_a_group_of_too_few_samples_says_how_many_would_do() -> None:
    gate = Gate(slices={"writer": SliceGate("writer", max_drop=0.02)})
    reason = ruled(group(100, 0.0, 0.05), gate=gate).reason
    assert "of writer left: as fp32 (95 %: -0.0500 to +0.0500, n=100)" in reason
    assert "some 657 samples would decide, there are 100" in reason
