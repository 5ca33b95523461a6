"""Does the canary behave differently? Its change against the controls' concurrent change.

Units are devices and windows, never rows: rows of one device share its lens and its
hour. For each device, a metric's mean after minus its mean before; the canaries'
mean change minus the controls' mean change is the effect, so that what happens to
everybody at once is nobody's fault. Its spread comes from the devices' changes,
moderated by the spread of windows within devices, so that three canaries are enough.

A metric
- **failed** if its effect is at least the floor and beyond chance (`alpha`),
- **successful** if what it may be at most (`beta`) stays below the floor,
- **inconclusive** otherwise, or without enough windows: never passed on silence. As long
  as more windows can still come, that is said to be too early (`insufficient`).

`prediction` compares class distributions by total variation (half the sum of
absolute differences, 0 to 1), with the part that chance alone gives taken off.
`errors` is a rate and fails only upward. `confidence` and `latency_us` are reported,
in baseline standard deviations and as a ratio of medians, and gate only when asked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet.stats import moderate, student_quantile, student_two_sided
from fleet.windows import MAX_BEFORE, DeviceSeries, DeviceWindow
from skerry.manifest import Baseline
from skerry.sketch import CategoricalCounts, NumericCounts, NumericSpec, big_to_int
from skerry.states import AnalysisState

__all__ = ["AnalysisPlan", "MetricResult", "Verdict", "analyse"]

Floats = NDArray[np.float64]
Series = Mapping[str, DeviceSeries]
Score = Callable[[DeviceWindow], Floats]
Changes = tuple[Floats, int, Floats]  # devices' changes, how many are canaries, noise
METRICS: Final = ("prediction", "errors", "confidence", "latency_us")
MIN_CONTROL: Final = 2  # devices
CONTROL_SHARE: Final = 0.5  # of the controls that must have enough windows; others are left out
FIXED_POINT: Final = 1_000_000  # scale of every column's sums, `sketch.NumericSpec`


class AnalysisPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stage's analysis asks for before it gives a verdict."""

    metrics: tuple[str, ...] = ("prediction", "errors")  # those that gate; others are reported
    min_windows_before: int = 20  # of each device
    min_windows_after: int = 6  # of each device
    max_windows_after: int = 18  # of each device: what they cannot tell apart is inconclusive
    min_window_n: int = 30  # predictions in a window
    effect_floor: float = 0.15  # of `prediction`, total variation
    error_floor: float = 0.02  # of `errors`, rate
    confidence_floor: float = 0.5  # of `confidence`, baseline standard deviations
    latency_floor: float = 1.5  # of `latency_us`, ratio
    alpha: float = 0.001  # chance of failing a metric that has not changed, at one look
    beta: float = 0.003  # chance of passing a metric whose effect is its floor, at one look
    max_wait_s: float = 60.0  # for enough windows, after the bake

    def __post_init__(self) -> None:
        """Refuse what no analysis could be made with; a decoder turns it into its own error."""
        unknown = sorted(set(self.metrics) - set(METRICS))
        if unknown or not self.metrics:
            raise ValueError(f"expected metrics of {', '.join(METRICS)}, got {unknown or 'none'}")
        # a variance needs two windows, and no more than MAX_BEFORE are looked at
        for name, low, high in (
            ("min_windows_before", 2, MAX_BEFORE), ("min_windows_after", 1, 10_000),
            ("min_window_n", 1, 1 << 40), ("alpha", 1e-9, 0.5), ("beta", 1e-9, 0.5),
            ("effect_floor", 1e-9, 1.0), ("error_floor", 1e-9, 1.0), ("max_wait_s", 0.0, 1e9),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"expected {name} of {low:g} to {high:g}, got {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric's effect and what it was held against.

    `low` is what the effect is at least, at confidence 1 - alpha; `high` what it is at
    most, at 1 - beta: what it takes to be failed, and what it takes to pass.
    """

    name: str
    state: AnalysisState
    gates: bool
    effect: float
    low: float
    high: float
    floor: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an analysis says, in a state, a sentence, and the numbers behind it."""

    state: AnalysisState
    reason: str
    insufficient: bool
    metrics: tuple[MetricResult, ...]
    canaries: int
    controls: int
    windows_before: int  # the fewest of any device
    windows_after: int


def analyse(plan: AnalysisPlan, baseline: Baseline, canary: Series, control: Series) -> Verdict:
    """Compare the canaries' change with the controls'.

    Args:
        plan: what is asked for.
        baseline: of the new bundle; says how `confidence` and `latency_us` are counted.
        canary: series of the devices with the new bundle, from `windows.split`.
        control: series of the others.
    """
    ready = {d: series for d, series in control.items() if _enough(plan, series)}
    compared = [*canary.values(), *ready.values()]
    before = min((len(series.before) for series in compared), default=0)
    after = min((len(series.after) for series in compared), default=0)
    aside = f" ({len(control) - len(ready)} left out)" if len(ready) < len(control) else ""
    sizes = (
        f"{len(canary)} canaries against {len(ready)} controls{aside}, "
        f"at least {before} windows before and {after} after on each"
    )
    missing = _missing(plan, canary, len(control), len(ready))
    if missing:
        return Verdict(
            AnalysisState.INCONCLUSIVE, f"not enough data: {missing} ({sizes})", True, (),
            len(canary), len(ready), before, after,
        )  # fmt: skip
    results = tuple(_measure(plan, baseline, canary, ready))
    gating = [result for result in results if result.gates]
    state, worst = _overall(gating)
    early = state is AnalysisState.INCONCLUSIVE and after < plan.max_windows_after
    return Verdict(
        state, f"{_sentence(worst, plan)}; {sizes}", early, results,
        len(canary), len(ready), before, after,
    )  # fmt: skip


def _enough(plan: AnalysisPlan, series: DeviceSeries) -> bool:
    return (
        len(series.before) >= plan.min_windows_before
        and len(series.after) >= plan.min_windows_after
    )


def _missing(plan: AnalysisPlan, canary: Series, controls: int, ready: int) -> str | None:
    """Say what is missing; a silent control is left out, a silent canary is waited for."""
    if not canary or controls < MIN_CONTROL:
        return f"a comparison needs a canary and {MIN_CONTROL} controls"
    before = min(len(series.before) for series in canary.values())
    after = min(len(series.after) for series in canary.values())
    if before < plan.min_windows_before:
        return f"{plan.min_windows_before} windows before are needed, there are {before}"
    if after < plan.min_windows_after:
        return f"{plan.min_windows_after} windows after are needed, there are {after}"
    needed = max(MIN_CONTROL, math.ceil(controls * CONTROL_SHARE))
    if ready < needed:
        return f"{needed} controls with as many windows are needed, there are {ready}"
    return None


def _measure(
    plan: AnalysisPlan, baseline: Baseline, canary: Series, control: Series
) -> list[MetricResult]:
    results = []
    if _has_classes(canary):
        values = _changes(canary, control, _class_shares)
        distance = _distance(*values, plan)
        results.append(_result(plan, "prediction", *distance, plan.effect_floor))
    rates = _changes(canary, control, lambda w: np.array([w.errors / max(1, w.n + w.errors)]))
    results.append(_result(plan, "errors", *_difference(*rates, plan), plan.error_floor))
    scale = _spread(baseline)
    if scale is not None:
        # only a fall of confidence can be bad news
        falls = _changes(canary, control, lambda w: np.array([-_mean_confidence(w) / scale]))
        results.append(
            _result(plan, "confidence", *_difference(*falls, plan), plan.confidence_floor)
        )
    logs = _changes(canary, control, lambda w: np.array([_log_median(w, baseline)]))
    effect, low, high, p = _difference(*logs, plan)
    results.append(
        _result(plan, "latency_us", math.exp(effect), math.exp(low), math.exp(high), p,
                plan.latency_floor)
    )  # fmt: skip
    return results


def _result(
    plan: AnalysisPlan, name: str, effect: float, low: float, high: float, p: float, floor: float
) -> MetricResult:
    if effect >= floor and p <= plan.alpha:
        state = AnalysisState.FAILED
    elif high < floor:
        state = AnalysisState.SUCCESSFUL
    else:
        state = AnalysisState.INCONCLUSIVE
    return MetricResult(name, state, name in plan.metrics, effect, low, high, floor, p)


def _overall(gating: Sequence[MetricResult]) -> tuple[AnalysisState, MetricResult | None]:
    for state in (AnalysisState.FAILED, AnalysisState.INCONCLUSIVE):
        for result in gating:
            if result.state is state:
                return state, result
    if not gating:
        return AnalysisState.INCONCLUSIVE, None
    return AnalysisState.SUCCESSFUL, max(gating, key=lambda r: r.effect / r.floor)


def _sentence(result: MetricResult | None, plan: AnalysisPlan) -> str:
    if result is None:
        return f"none of the gating metrics ({', '.join(plan.metrics)}) can be measured here"
    what = {
        "prediction": "the distribution of predictions moved by {} (total variation)",
        "errors": "the error rate rose by {}",
        "confidence": "confidence fell by {} baseline standard deviations",
        "latency_us": "latency is {} times what it was",
    }[result.name].format(f"{result.effect:.3f}")
    interval = f"interval {result.low:.3f} to {result.high:.3f}"
    held = f"beyond the controls ({interval}), floor {result.floor:g}"
    ending = {
        AnalysisState.FAILED: "too much",
        AnalysisState.SUCCESSFUL: "within bounds",
    }.get(result.state, "not yet told apart from too much")
    return f"{result.name}: {what} {held}: {ending}"


# --- change, device by device ---------------------------------------------------


def _changes(canary: Series, control: Series, score: Score) -> Changes:
    """Return the devices' change vectors and what windows within devices say of their noise."""
    rows, noise = [], []
    for series in (*canary.values(), *control.values()):
        before = np.array([score(window) for window in series.before])
        after = np.array([score(window) for window in series.after])
        rows.append(after.mean(0) - before.mean(0))
        # windows of a device before the change: what its mean would do by chance
        noise.append(before.var(0, ddof=1) * (1 / len(before) + 1 / len(after)))
    return np.array(rows), len(canary), np.mean(noise, axis=0)


def _standard_error(changes: Floats, canaries: int, noise: Floats) -> tuple[Floats, float]:
    groups = changes[:canaries], changes[canaries:]
    dof = sum(len(group) - 1 for group in groups)
    squares = sum(((group - group.mean(0)) ** 2).sum(0) for group in groups)
    variance, total_dof = moderate(np.asarray(squares) / max(1, dof), noise, dof)
    return np.sqrt(variance * (1 / len(groups[0]) + 1 / len(groups[1]))), total_dof


def _difference(
    changes: Floats, canaries: int, noise: Floats, plan: AnalysisPlan
) -> tuple[float, float, float, float]:
    """Return effect, interval and p-value of a scalar metric."""
    error, dof = _standard_error(changes, canaries, noise)
    effect = float(changes[:canaries].mean() - changes[canaries:].mean())
    if error[0] == 0.0:
        return effect, effect, effect, 0.0 if effect else 1.0
    below, above = _reach(plan, dof)
    low, high = effect - below * float(error[0]), effect + above * float(error[0])
    return effect, low, high, student_two_sided(effect / float(error[0]), dof)


def _distance(
    changes: Floats, canaries: int, noise: Floats, plan: AnalysisPlan
) -> tuple[float, float, float, float]:
    """Return total variation without its expectation by chance, interval and p-value.

    The p-value is the smallest of the classes', times their number (Bonferroni).
    """
    error, dof = _standard_error(changes, canaries, noise)
    vector = changes[:canaries].mean(0) - changes[canaries:].mean(0)
    effect = float(np.sqrt(np.maximum(vector**2 - error**2, 0.0)).sum()) / 2.0
    # classes share one sum: their errors are taken as independent, which errs outward
    spread = float(np.sqrt((error**2).sum())) / 2.0
    below, above = _reach(plan, dof)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.nan_to_num(np.abs(vector) / error, nan=0.0, posinf=math.inf)
    p_value = min(1.0, student_two_sided(float(scores.max()), dof) * len(vector))
    return effect, max(0.0, effect - below * spread), min(1.0, effect + above * spread), p_value


def _reach(plan: AnalysisPlan, dof: float) -> tuple[float, float]:
    """Return how many standard errors an interval goes down, and up."""
    return student_quantile(plan.alpha, dof), student_quantile(2.0 * plan.beta, dof)


# --- one number, or one vector, of a window --------------------------------------


def _has_classes(canary: Series) -> bool:
    return all(
        isinstance(window.columns.get("prediction"), CategoricalCounts)
        for series in canary.values()
        for window in (*series.before, *series.after)
    )


def _class_shares(window: DeviceWindow) -> Floats:
    column = window.columns["prediction"]
    assert isinstance(column, CategoricalCounts)
    cells = [*column.counts, column.other, column.unseen, column.missing]
    return np.array(cells, dtype=np.float64) / max(1, column.n)


def _mean(column: NumericCounts, scale: int) -> float:
    """Return the mean of a counted column; rows beyond the edges count as its extremes."""
    inside = sum(column.bins)
    outside = column.below * (column.min or 0.0) + column.above * (column.max or 0.0)
    rows = inside + column.below + column.above
    return (big_to_int(column.sum) / scale + outside) / max(1, rows)


def _mean_confidence(window: DeviceWindow) -> float:
    column = window.columns.get("confidence")
    return _mean(column, FIXED_POINT) if isinstance(column, NumericCounts) else 0.0


def _spread(baseline: Baseline) -> float | None:
    """Return the baseline's standard deviation of confidence, if it knows one."""
    known = baseline.columns.get("confidence")
    if known is None or not isinstance(known.counts, NumericCounts) or not known.counts.n:
        return None
    square = big_to_int(known.counts.sum_sq) / FIXED_POINT**2 / known.counts.n
    return max(math.sqrt(max(0.0, square - _mean(known.counts, FIXED_POINT) ** 2)), 1e-9)


def _log_median(window: DeviceWindow, baseline: Baseline) -> float:
    column, known = window.columns.get("latency_us"), baseline.columns.get("latency_us")
    if not isinstance(column, NumericCounts) or known is None:
        return 0.0
    if not isinstance(known.spec, NumericSpec) or len(column.bins) != len(known.spec.edges) - 1:
        return 0.0
    edges = np.asarray(known.spec.edges)
    cells = np.array([column.below, *column.bins, column.above], dtype=np.float64)
    reached = int(np.searchsorted(np.cumsum(cells), cells.sum() / 2.0))
    return math.log(max(float(edges[min(max(reached - 1, 0), len(edges) - 1)]), 1.0))
