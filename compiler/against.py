"""A candidate against the version in service, on the same held-out samples.

The gate of a pipeline: the recipe's model in fp32 is compared with what devices run now, paired,
by the recipe's own metric and gate. Worse is worse only if the samples show it; what they do not
decide is said, and how many would.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from numpy.typing import NDArray

from compiler.evaluate import Quality, compare
from compiler.gate import Outcome, holds
from compiler.materials import Materials, blame, check_reference_labels
from compiler.ports import Ports
from compiler.runtime import open_session, run_samples
from skerry.bundle import Bundle
from skerry.errors import RefusedError, UsageError
from skerry.manifest import Manifest

__all__ = ["Comparison", "against", "comparison_markdown"]


class SliceComparison(msgspec.Struct, frozen=True):
    """A group of the samples."""

    slice: str
    group: str
    n: int
    value: float
    drop: float
    drop_interval: tuple[float, float]


class Comparison(msgspec.Struct, frozen=True):
    """What came of a comparison; `drop` is how much worse the candidate is."""

    model: str
    candidate: str
    in_service: str
    bundle: str
    metric: str
    n: int
    candidate_value: float
    in_service_value: float
    drop: float
    drop_interval: tuple[float, float]
    agreement: float | None
    outcome: Outcome
    reason: str
    slices: list[SliceComparison] = []


@dataclass(frozen=True, slots=True)
class _Side:
    output: NDArray[Any]
    quality: Quality


def against(materials: Materials, service: Bundle) -> Comparison:
    """Compare a recipe's model with the first variant of a bundle.

    Args:
        materials: of the recipe.
        service: the bundle in service.

    Raises:
        UsageError: the two do not take the same inputs, or give no comparable output.
        RefusedError: one of them fails on the samples.
    """
    recipe, manifest = materials.recipe, service.manifest
    metric = recipe.metric
    _check_same_schema(materials, manifest)
    mine = run_samples(
        open_session(materials.graph.data), materials.ports, materials.evaluation, metric.output
    )[metric.output]
    check_reference_labels(materials, mine)
    ports = Ports.of(
        manifest.inputs,
        {name: notes for name, notes in recipe.inputs.items() if name in _names(manifest)},
    )
    session = open_session(service.blobs[manifest.variants[0].file.digest])
    theirs = run_samples(session, ports, materials.evaluation, metric.output)[metric.output]
    if theirs.shape != mine.shape:
        raise UsageError(
            f"expected answers of one shape, the candidate gives {list(mine.shape)} and "
            f"{manifest.model_version} {list(theirs.shape)}"
        )
    options: Mapping[str, Any] = {"function": materials.function}
    groups: Mapping[str, Any] = {"slices": materials.slices, "least": materials.least}
    try:
        quality = compare(metric, mine, theirs, materials.labels, **options, **groups)
        before = compare(metric, theirs, theirs, materials.labels, **options)
    except RefusedError as error:
        raise blame(error, materials) from None
    ruling = holds(metric, quality, recipe.gate, than=manifest.model_version)
    return Comparison(
        model=recipe.model.name,
        candidate=recipe.model.version,
        in_service=manifest.model_version,
        bundle=service.digest,
        metric=metric.name,
        n=quality.n,
        candidate_value=quality.value,
        in_service_value=before.value,
        drop=quality.drop,
        drop_interval=(quality.drop_low, quality.drop_high),
        agreement=quality.agreement,
        outcome=ruling.outcome,
        reason=ruling.reason,
        slices=[
            SliceComparison(s.name, s.group, s.n, s.value, s.drop, (s.drop_low, s.drop_high))
            for s in quality.slices
        ],
    )


def comparison_markdown(found: Comparison) -> str:
    """Return a comparison for people, as Markdown."""
    verdict = {"accepted": "passes", "refused": "is worse", "undecided": "is undecided"}
    low, high = found.drop_interval
    lines = [
        f"# {found.model} {found.candidate} {verdict[found.outcome]}",
        "",
        f"{found.reason}.",
        "",
        f"| | {found.metric} |",
        "|---|---|",
        f"| {found.candidate}, the candidate | {found.candidate_value:.4f} |",
        f"| {found.in_service}, in service | {found.in_service_value:.4f} |",
        f"| worse by (95 %) | {found.drop:+.4f} ({low:+.4f} to {high:+.4f}) |",
        f"| samples | {found.n:,} |",
    ]
    if found.agreement is not None:
        lines.append(f"| same prediction | {found.agreement:.1%} |")
    if found.slices:
        lines += [
            "",
            f"| group | samples | {found.metric} | worse by (95 %) |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {s.slice} {s.group} | {s.n:,} | {s.value:.4f} | {s.drop:+.4f} "
            f"({s.drop_interval[0]:+.4f} to {s.drop_interval[1]:+.4f}) |"
            for s in found.slices
        ]
    return "\n".join(lines) + "\n"


def _names(manifest: Manifest) -> set[str]:
    return {spec.name for spec in manifest.inputs}


def _check_same_schema(materials: Materials, manifest: Manifest) -> None:
    mine = {spec.name: (spec.datatype, list(spec.shape)) for spec in materials.graph.inputs}
    theirs = {spec.name: (spec.datatype, list(spec.shape)) for spec in manifest.inputs}
    if mine != theirs:
        raise UsageError(
            f"expected the inputs of {manifest.model} {manifest.model_version}, {_told(theirs)}; "
            f"the candidate takes {_told(mine)}: they cannot be compared on the same samples"
        )
    output = materials.recipe.metric.output
    if output not in {spec.name for spec in manifest.outputs}:
        have = ", ".join(spec.name for spec in manifest.outputs)
        raise UsageError(
            f"{manifest.model} {manifest.model_version} has no output {output!r}: {have}"
        )


def _told(specs: Mapping[str, tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in sorted(specs.items()))
