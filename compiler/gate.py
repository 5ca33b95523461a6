"""The gate: whether a variant ships, and the reason in words.

In order: the model must reach `min_value`; the variant may lose at most `max_drop`;
it must be proven faster. Not proven either way is `undecided`: fp32 ships, and that
is a result, no failure. A reason holds no timing, so that it can be part of a bundle
that is the same wherever it is built.
"""

from dataclasses import dataclass

from compiler.evaluate import Quality
from compiler.latency import Verdict
from compiler.recipe import Gate
from skerry.errors import GateError

__all__ = ["Ruling", "check_reference", "rule"]

ROUNDING = 1e-9  # 0.02 - 0.01 is not quite 0.01


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether a variant ships, and why."""

    accepted: bool
    reason: str


def check_reference(model: str, metric: str, quality: Quality, gate: Gate) -> None:
    """Refuse a model that is not good enough even unquantized.

    Raises:
        GateError: below `min_value`.
    """
    if quality.value < gate.min_value - ROUNDING:
        raise GateError(
            f"{model}: expected {metric} of at least {gate.min_value:.4f} (gate.min_value), "
            f"got {quality.value:.4f} in fp32 on {quality.n} rows; nothing was built. "
            "Train it further, or lower the gate knowingly"
        )


def rule(metric: str, quality: Quality, verdict: Verdict, size_ratio: float, gate: Gate) -> Ruling:
    """Decide on a quantized variant.

    Args:
        metric: its name, for the reason.
        quality: against fp32.
        verdict: of the latency measurement.
        size_ratio: bytes over fp32's bytes.
        gate: the recipe's.
    """
    value, interval = f"{metric} {quality.value:.4f}", _interval(quality)
    if quality.value < gate.min_value - ROUNDING:
        return Ruling(False, f"{value} is below min_value {gate.min_value:.4f}")
    if quality.drop > gate.max_drop + ROUNDING:
        return Ruling(
            False,
            f"{value} is {quality.drop:.4f} below fp32 {interval}, "
            f"more than max_drop {gate.max_drop:.4f}",
        )
    limit = f"{gate.max_latency_ratio:g} of fp32's CPU time"
    if verdict == "slower":
        return Ruling(False, f"{value} holds, but it takes more than {limit}")
    if verdict == "undecided":
        return Ruling(False, f"{value} holds, but that it stays within {limit} is not proven")
    return Ruling(
        True,
        f"{value}, {_drop(quality)} {interval}, within {limit}, {size_ratio:.2f} of its bytes",
    )


def _drop(quality: Quality) -> str:
    if quality.drop == 0:
        return "as fp32"
    return f"{abs(quality.drop):.4f} {'below' if quality.drop > 0 else 'above'} fp32"


def _interval(quality: Quality) -> str:
    low, high = (round(-end, 4) + 0.0 for end in (quality.drop_high, quality.drop_low))  # no -0.0
    return f"(95 %: {low:+.4f} to {high:+.4f}, n={quality.n})"
