"""A canary's verdict: failed, successful, or honestly not yet known."""

from typing import Any

import pytest

from fleet.analysis import AnalysisPlan, Verdict, analyse
from fleet.windows import DeviceSeries
from skerry.states import AnalysisState
from tests.fakes.windows import BASELINE, FakeDevice, names


def compare(
    seed: int = 1, before: int = 20, after: int = 6, everybody: float = 0.0, **canary: Any
) -> Verdict:
    """Three canaries of twelve; `everybody` is a collapse that hits all of them."""
    series = {}
    for name in names():
        device = FakeDevice(name, seed)
        is_canary = name.startswith("harbour") and name[-1] in "123"
        changed = {"collapse": everybody} | (canary | {"bundle": "new"} if is_canary else {})
        series[name] = (
            is_canary,
            DeviceSeries(
                tuple(device.window(t) for t in range(before)),
                tuple(device.window(t, **changed) for t in range(before, before + after)),
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


def test_an_effect_at_the_floor_is_not_told_apart() -> None:
    verdict = compare(collapse=0.12)
    assert verdict.state is AnalysisState.INCONCLUSIVE
    assert not verdict.insufficient


@pytest.mark.parametrize(("before", "after"), [(19, 6), (20, 5), (0, 0)])
def test_too_few_windows_are_never_a_pass(before: int, after: int) -> None:
    verdict = compare(before=before, after=after)
    assert verdict.state is AnalysisState.INCONCLUSIVE
    assert verdict.insufficient
    assert "are needed, there are" in verdict.reason


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


def test_forty_unchanged_canaries_raise_no_failure() -> None:
    verdicts = [compare(seed).state for seed in range(100, 140)]
    assert AnalysisState.FAILED not in verdicts
