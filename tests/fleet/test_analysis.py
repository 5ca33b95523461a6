"""A canary's verdict: failed, successful, or honestly not yet known."""

from collections.abc import Collection
from typing import Any

import msgspec
import pytest

from fleet.analysis import AnalysisPlan, Verdict, analyse
from fleet.windows import DeviceSeries
from skerry.states import AnalysisState
from tests.fakes.windows import BASELINE, FakeDevice, names


def compare(
    seed: int = 1,
    before: int = 20,
    after: int = 6,
    everybody: float = 0.0,
    silent: Collection[str] = (),
    **canary: Any,
) -> Verdict:
    """Three canaries of twelve; `everybody` is a collapse that hits all, `silent` send no more."""
    series = {}
    for name in names():
        device = FakeDevice(name, seed)
        is_canary = name.startswith("harbour") and name[-1] in "123"
        changed = {"collapse": everybody} | (canary | {"bundle": "new"} if is_canary else {})
        series[name] = (
            is_canary,
            DeviceSeries(
                tuple(device.window(t) for t in range(before)),
                tuple(
                    device.window(t, **changed)
                    for t in range(before, before + after)
                    if name not in silent
                ),
            ),
        )
    return analyse(
        AnalysisPlan(),
        BASELINE,
        {name: s for name, (is_canary, s) in series.items() if is_canary},
        {name: s for name, (is_canary, s) in series.items() if not is_canary},
    )


def test_a_model_that_changes_nothing_passes() -> None:
    verdict = compare()
    assert verdict.state is AnalysisState.SUCCESSFUL
    assert (verdict.canaries, verdict.controls) == (3, 9)


@pytest.mark.parametrize("seed", range(5))
def test_collapsed_predictions_fail_with_metric_numbers_and_sizes(seed: int) -> None:
    verdict = compare(seed, collapse=0.35)
    assert verdict.state is AnalysisState.FAILED
    for part in ("prediction:", "floor 0.15", "3 canaries", "9 controls", "20 windows before"):
        assert part in verdict.reason


def test_what_happens_to_everybody_is_nobodys_fault() -> None:
    assert compare(everybody=0.35, collapse=0.35).state is AnalysisState.SUCCESSFUL


def test_an_effect_near_the_floor_is_too_early_to_say_until_windows_enough_have_come() -> None:
    early, late = compare(collapse=0.14), compare(collapse=0.165, after=18)
    for verdict in (early, late):
        assert verdict.state is AnalysisState.INCONCLUSIVE
        assert "not yet told apart" in verdict.reason
    assert early.insufficient
    assert not late.insufficient


@pytest.mark.parametrize(("before", "after"), [(19, 6), (20, 5), (0, 0)])
def test_too_few_windows_are_never_a_pass(before: int, after: int) -> None:
    verdict = compare(before=before, after=after)
    assert verdict.state is AnalysisState.INCONCLUSIVE
    assert verdict.insufficient
    assert "are needed, there are" in verdict.reason


def test_a_silent_control_is_left_out_and_a_silent_canary_waited_for() -> None:
    without = compare(silent=("airport-01", "airport-02"))
    assert without.state is AnalysisState.SUCCESSFUL
    assert (without.canaries, without.controls) == (3, 7)
    assert "against 7 controls (2 left out)" in without.reason
    most = compare(silent=[name for name in names() if name.startswith("airport")])
    assert most.insufficient
    assert "5 controls with as many windows are needed, there are 3" in most.reason
    assert compare(silent=("harbour-01",)).insufficient


def test_no_controls_are_not_enough_data() -> None:
    device = FakeDevice("dev-a", 1)
    windows = tuple(device.window(t) for t in range(20))
    verdict = analyse(AnalysisPlan(), BASELINE, {"dev-a": DeviceSeries(windows, windows)}, {})
    assert verdict.insufficient


def test_errors_fail_only_upward() -> None:
    verdict = compare(errors=9)
    assert verdict.state is AnalysisState.FAILED
    assert verdict.reason.startswith("errors:")


def test_latency_is_reported_and_does_not_gate_unless_asked() -> None:
    verdict = compare(latency=4.0)
    latency = next(metric for metric in verdict.metrics if metric.name == "latency_us")
    assert verdict.state is AnalysisState.SUCCESSFUL
    assert latency.effect == pytest.approx(4.0, rel=0.35)
    assert (latency.state, latency.gates) == (AnalysisState.FAILED, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": ["prediktion"]},
        {"metrics": []},
        {"min_windows_before": 1},
        {"min_windows_before": 61},
        {"min_windows_after": 0},
        {"alpha": 0.0},
        {"beta": 0.7},
        {"effect_floor": 1.5},
        {"max_wait_s": -1.0},
        {"max_wait_s": float("nan")},
        {"patience": 3},
    ],
)
def test_a_plan_that_could_never_be_carried_out_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
        msgspec.convert(wrong, AnalysisPlan)


def test_forty_unchanged_canaries_raise_no_failure() -> None:
    verdicts = [compare(seed).state for seed in range(100, 140)]
    assert AnalysisState.FAILED not in verdicts
