"""The gate: whether a variant ships, and the reason in words.

In order: the metric must reach its value; the variant may lose at most `max_drop`, and
that must be shown by the samples, for the whole and for every group; its bytes and its
memory must fit; it must be proven faster, or, where `max_size_ratio` asks for bytes
instead, small enough and not proven slower. What is not proven either way is `undecided`:
fp32 ships, and that is a result, no failure. A reason holds no timing, so that it can
be part of a bundle that is the same wherever it is built.
"""

from dataclasses import dataclass
from typing import Literal

from compiler.evaluate import Quality, Slice, samples_needed
from compiler.latency import Verdict
from compiler.recipe import Gate, Metric
from skerry.errors import GateError

__all__ = ["Outcome", "Ruling", "check_reference", "holds", "rule"]

ROUNDING = 1e-9  # 0.02 - 0.01 is not quite 0.01

Outcome = Literal["accepted", "refused", "undecided"]


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether a variant ships, and why; `quality` where its outputs are to blame."""

    outcome: Outcome
    reason: str
    blames: Literal["quality", "size", "speed", ""] = ""

    @property
    def accepted(self) -> bool:
        """Whether it ships."""
        return self.outcome == "accepted"


def check_reference(model: str, metric: Metric, quality: Quality, gate: Gate) -> None:
    """Refuse a model that is not good enough even unquantized.

    Raises:
        GateError: its metric does not reach the gate's value.
    """
    short = _short_of(metric, quality, gate)
    if short:
        raise GateError(
            f"{model}: expected {short}, got {quality.value:.4f} in fp32 on {quality.n} samples; "
            "nothing was built. Train it further, or lower the gate knowingly"
        )


def holds(metric: Metric, quality: Quality, gate: Gate, *, than: str = "fp32") -> Ruling:
    """Decide on outputs alone, compared with those of `than`."""
    value = f"{metric.name} {quality.value:.4f}"
    short = _short_of(metric, quality, gate)
    if short:
        return Ruling("refused", f"{value}, expected {short}", "quality")
    limit = gate.max_drop
    if quality.drop_low > limit + ROUNDING:
        return Ruling(
            "refused",
            f"{value} is {quality.drop:.4f} worse than {than} {_interval(quality)}, "
            f"more than max_drop {limit:.4f}",
            "quality",
        )
    if quality.drop_high > limit + ROUNDING:
        return Ruling(
            "undecided",
            f"{value}, {_drop(quality, than)} {_interval(quality)}: that it loses no more than max_drop "
            f"{limit:.4f} is not shown; {_more(quality, limit)}",
            "quality",
        )
    return _slices_hold(metric, quality, gate, than)


def rule(
    metric: Metric,
    quality: Quality,
    verdict: Verdict,
    gate: Gate,
    *,
    size: int,
    reference_size: int,
) -> Ruling:
    """Decide on a variant.

    Args:
        metric: the recipe's.
        quality: against fp32.
        verdict: of the measurements of time and memory.
        gate: the recipe's.
        size: bytes.
        reference_size: fp32's bytes.
    """
    outputs = holds(metric, quality, gate)
    if not outputs.accepted:
        return outputs
    value, ratio = outputs.reason, size / reference_size
    if gate.max_bytes is not None and size > gate.max_bytes:
        return Ruling("refused", f"{value}; {size} bytes, more than {gate.max_bytes}", "size")
    if verdict == "too_large":
        return Ruling(
            "refused", f"{value}; it takes more memory than {gate.max_memory_mb:g} MB", "size"
        )
    if gate.max_size_ratio is not None and ratio > gate.max_size_ratio:
        return Ruling(
            "refused",
            f"{value}; {ratio:.2f} of fp32's bytes, more than max_size_ratio "
            f"{gate.max_size_ratio:g}",
            "size",
        )
    limit = f"{gate.latency_ratio:g} of fp32's CPU time"
    if verdict == "too_slow":
        return Ruling(
            "refused", f"{value} holds, but it takes more than {gate.max_latency_us:g} us", "speed"
        )
    if verdict == "slower":
        return Ruling("refused", f"{value} holds, but it takes more than {limit}", "speed")
    if verdict == "undecided":
        return Ruling(
            "undecided", f"{value} holds, but that it stays within {limit} is not proven", "speed"
        )
    return Ruling("accepted", f"{value}, within {limit}, {ratio:.2f} of its bytes")


def _slices_hold(metric: Metric, quality: Quality, gate: Gate, than: str) -> Ruling:
    for part in quality.slices:
        limits = gate.slices[part.name]
        if part.n < limits.min_samples:
            continue
        limit = gate.max_drop if limits.max_drop is None else limits.max_drop
        if part.drop_low > limit + ROUNDING:
            return Ruling(
                "refused",
                f"{metric.name} of {part.name} {part.group} is {part.drop:.4f} worse than {than} "
                f"(n={part.n}), more than {limit:.4f}",
                "quality",
            )
        if part.drop_high > limit + ROUNDING:
            return Ruling(
                "undecided",
                f"{metric.name} of {part.name} {part.group}: {_drop(part, than)} {_interval(part)}; "
                f"that it loses no more than {limit:.4f} is not shown, {_more(part, limit)}",
                "quality",
            )
    return Ruling(
        "accepted",
        f"{metric.name} {quality.value:.4f}, {_drop(quality, than)} {_interval(quality)}",
    )


def _short_of(metric: Metric, quality: Quality, gate: Gate) -> str:
    if metric.falls:
        if gate.max_value is not None and quality.value > gate.max_value + ROUNDING:
            return f"{metric.name} of at most {gate.max_value:.4f} (gate.max_value)"
        return ""
    if gate.min_value is not None and quality.value < gate.min_value - ROUNDING:
        return f"{metric.name} of at least {gate.min_value:.4f} (gate.min_value)"
    return ""


def _more(quality: Quality | Slice, limit: float) -> str:
    needed = samples_needed(quality, limit)
    if needed is None:
        return "no number of samples shows it: the drop is the limit"
    return f"some {needed:,} samples would decide, there are {quality.n:,}"


def _drop(quality: Quality | Slice, than: str) -> str:
    if quality.drop == 0:
        return f"as {than}"
    return f"{abs(quality.drop):.4f} {'worse' if quality.drop > 0 else 'better'} than {than}"


def _interval(quality: Quality | Slice) -> str:
    low, high = (round(-end, 4) + 0.0 for end in (quality.drop_high, quality.drop_low))  # no -0.0
    return f"(95 %: {low:+.4f} to {high:+.4f}, n={quality.n})"
