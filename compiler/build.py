"""A build, from a recipe to a bundle: this file explains the rest of the compiler.

    recipe.py      what to build, from which files
    candidates.py  everything read, then each form of the model in turn:
        passes.py     the model checked, in opset 17
        rows.py       its data sets
        runtime.py    how models are run here
        calibrate.py  ranges of its tensors
        quantize.py   its int8 form
        evaluate.py   accuracy against fp32, paired
        latency.py    CPU time against fp32
        gate.py       whether it ships, and why
    golden.py      what every variant must answer
    baseline.py    what ordinary data looks like
    card.py        what people read
    lock.py        what cannot be computed again
    record.py      what was measured, and where

fp32 is always built and always the last variant; a quantized one that passes the
gate goes before it. The manifest and every layer are functions of recipe, data and
lock alone: no timing, no date, no path.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.baseline import make_baseline
from compiler.candidates import Candidate, Materials, evaluate_reference, gather, try_int8
from compiler.card import make_card
from compiler.evaluate import Quality
from compiler.golden import make_golden
from compiler.host import Host, this_host, tools
from compiler.lock import Choice, Inputs, Lock, check_lock
from compiler.recipe import Recipe, Source
from compiler.record import Record, VariantRecord
from compiler.runtime import run_rows
from skerry.bundle import oci_manifest, write_bundle
from skerry.canonical import sha256, to_json
from skerry.errors import UsageError
from skerry.manifest import (
    Accuracy,
    CandidateReport,
    Evaluation,
    FeatureSpec,
    FileRef,
    Lineage,
    Manifest,
    PredictionSpec,
    TensorSpec,
    Variant,
)
from skerry.profile import ANY_CLASS, DeviceProfile

__all__ = ["Built", "build"]

PROVIDER: Final = "CPUExecutionProvider"
MIN_AGENT: Final = "0.1.0"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gives.

    Attributes:
        digest: the bundle's name.
        bundle: the bundle file's bytes.
        manifest: what the bundle says of itself.
        lock: to repeat the build with.
        record: what was measured.
    """

    digest: str
    bundle: bytes
    manifest: Manifest
    lock: Lock
    record: Record


def build(
    source: Source,
    *,
    now: datetime,
    profile: DeviceProfile | None = None,
    lock: Lock | None = None,
    tell: Tell = lambda _: None,
) -> Built:
    """Build a recipe's bundle.

    Args:
        source: the recipe and its files.
        now: for the record.
        profile: hardware to build for; this machine, where left out.
        lock: repeat its choices instead of deciding by new measurements.
        tell: called with each step, for a person who waits.

    Raises:
        GateError: even fp32 is not good enough.
        RefusedError: the model is none that Skerry ships.
        FormatError: a file is damaged.
        UsageError: recipe, data and model do not fit together, or the lock is another's.
    """
    host = this_host()
    if profile is not None and PROVIDER not in profile.providers:
        raise UsageError(f"profile {profile.id}: the compiler builds for {PROVIDER} only so far")
    tell("check the model")
    materials = gather(source)
    if lock is not None:
        check_lock(lock, materials.inputs)
    notes = list(materials.graph.notes)
    tell("evaluate fp32")
    reference = evaluate_reference(materials)
    candidates: list[Candidate] = []
    verdicts = {c.precision: c.verdict for c in lock.choices} if lock is not None else {}
    elsewhere = profile is not None and profile.platform != host.platform
    for precision in dict.fromkeys(p for p in source.recipe.precisions.try_ if p != "fp32"):
        tell(f"build and measure {precision}")
        verdict = verdicts.get(precision)
        candidates.append(try_int8(materials, reference, verdict, notes, elsewhere=elsewhere))
    tell("assemble the bundle")
    tried = [*candidates, reference]
    measured_on = lock.hw_class if lock is not None else host.hw_class
    manifest, layers = assemble(source, materials, tried, measured_on)
    if lock is not None and lock.bundle != sha256(oci_manifest(to_json(manifest), layers)):
        # what was measured there is not what is measured here, so it must not say so
        measured_on = host.hw_class
        manifest, layers = assemble(source, materials, tried, measured_on)
        notes.append(
            f"differs from the lock's bundle {lock.bundle}, which was built on {lock.hw_class} "
            f"with onnxruntime {lock.tools.onnxruntime}"
        )
    file = io.BytesIO()
    digest = write_bundle(file, to_json(manifest), layers)
    new_lock = Lock(
        model=manifest.model,
        model_version=manifest.model_version,
        inputs=materials.inputs,
        choices=[Choice(c.precision, c.verdict) for c in candidates],
        bundle=digest,
        hw_class=measured_on,
        tools=tools(),
    )
    profile_id = "this machine" if profile is None else profile.id
    record = make_record(digest, materials, tried, host, notes, now, profile_id)
    return Built(digest, file.getvalue(), manifest, new_lock, record)


def assemble(
    source: Source,
    materials: Materials,
    tried: list[Candidate],
    isa: str,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the layers, by file name.

    Args:
        source: the recipe.
        materials: of this build.
        tried: every candidate in order of preference, fp32 last.
        isa: class of the machine that measured the metric.
    """
    shipped = [c for c in tried if c.accepted]
    recipe, graph, output = source.recipe, materials.graph, source.recipe.metric.output
    first, reference = shipped[0], shipped[-1]
    assert reference.outputs is not None
    names = class_names(recipe, reference.outputs[output])
    evaluation = Evaluation(
        metric=recipe.metric.name,
        n=len(materials.labels),
        reference=_quality(reference).value,
        candidates=[_report(c, first) for c in tried],
    )
    outputs = [_named(spec, names) if spec.name == output else spec for spec in graph.outputs]
    lineage = _lineage(recipe, materials.inputs)
    baseline_output = run_rows(first.session, materials.port, materials.baseline)[output]
    others = [c.outputs for c in shipped[:-1] if c.outputs is not None]
    layers = {
        **{f"model-{c.precision}.onnx": c.data for c in shipped},
        "golden.msgpack": make_golden(
            materials.port, materials.evaluation, reference.outputs, others, output
        ),
        "baseline.msgpack": make_baseline(
            materials.baseline, baseline_output, recipe.features, names
        ),
        "evaluation.json": to_json(evaluation),
        "README.md": make_card(recipe, evaluation, graph.inputs, outputs, lineage.data),
    }

    def file(name: str) -> FileRef:
        return FileRef(sha256(layers[name]), len(layers[name]))

    def variant(c: Candidate) -> Variant:
        quality = _quality(c)
        return Variant(
            id=f"{c.precision}-cpu",
            file=file(f"model-{c.precision}.onnx"),
            precision="int8" if c.precision == "int8" else "fp32",
            provider=PROVIDER,
            hw_classes=[ANY_CLASS],  # seven-bit weights cannot saturate: every CPU answers alike
            opset=graph.opset,
            min_agent=MIN_AGENT,
            accuracy=Accuracy(recipe.metric.name, quality.value, quality.n, isa),
        )

    manifest = Manifest(
        model=recipe.model.name,
        model_version=recipe.model.version,
        variants=[variant(c) for c in shipped],
        inputs=list(graph.inputs),
        outputs=outputs,
        prediction=PredictionSpec(output, "argmax"),
        features=[
            FeatureSpec(name, kind, recipe.data.input)
            for name, kind in sorted(recipe.features.items())
        ],
        golden=file("golden.msgpack"),
        baseline=file("baseline.msgpack"),
        evaluation=file("evaluation.json"),
        card=file("README.md"),
        lineage=lineage,
    )
    return manifest, layers


def class_names(recipe: Recipe, output: NDArray[Any]) -> list[str]:
    """Return the recipe's class names, or numbers where it has none.

    Raises:
        UsageError: not one name per value of the output.
    """
    count = int(np.prod(output.shape[1:]))
    names = recipe.classes.names or [str(position) for position in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise UsageError(
            f"expected {count} different names in classes.names, one per value of "
            f"{recipe.metric.output!r}; got {len(names)}"
        )
    return names


def make_record(
    digest: str,
    materials: Materials,
    tried: list[Candidate],
    host: Host,
    notes: list[str],
    now: datetime,
    profile: str,
) -> Record:
    """Return what was measured, timings included."""
    recipe, timed = materials.recipe, [c.latency for c in tried if c.latency is not None]
    reference_us = timed[0].reference_us if timed else None
    first = next(c for c in tried if c.accepted)
    return Record(
        bundle=digest,
        model=recipe.model.name,
        model_version=recipe.model.version,
        metric=recipe.metric.name,
        n=len(materials.labels),
        variants=[_measured(c, first, reference_us) for c in tried],
        host=host,
        tools=tools(),
        profile=profile,
        latency_rounds=timed[0].rounds if timed else 0,
        latency_runs=timed[0].runs if timed else 0,
        notes=notes,
        built_at=now.isoformat(),
    )


def _measured(c: Candidate, first: Candidate, reference_us: float | None) -> VariantRecord:
    quality, latency = c.quality, c.latency
    is_reference = c.precision == "fp32"
    return VariantRecord(
        precision=c.precision,
        bytes=len(c.data),
        accuracy=quality.value if quality else None,
        agreement=quality.agreement if quality else None,
        drop_interval=(quality.drop_low, quality.drop_high)
        if quality and not is_reference
        else None,
        latency_ratio=1.0 if is_reference else latency.ratio if latency else None,
        latency_interval=(latency.low, latency.high) if latency else None,
        latency_us=reference_us if is_reference else latency.median_us if latency else None,
        verdict=None if is_reference else c.verdict,
        chosen=c is first,
        shipped=c.accepted,
        reason=_reason(c, first),
    )


def _report(c: Candidate, first: Candidate) -> CandidateReport:
    value = c.quality.value if c.quality else None
    return CandidateReport(c.precision, len(c.data), value, c is first, _reason(c, first))


def _reason(c: Candidate, first: Candidate) -> str:
    if c.precision != "fp32":
        return c.reason
    if c is first:
        return "first choice: no smaller form passed the gate"
    return f"ships too, for devices on which {first.precision} cannot run"


def _quality(c: Candidate) -> Quality:
    assert c.quality is not None
    return c.quality


def _named(spec: TensorSpec, names: list[str]) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, spec.shape, class_names=names)


def _lineage(recipe: Recipe, inputs: Inputs) -> Lineage:
    given = recipe.lineage.data
    said = given if isinstance(given, dict) else {"source": given} if given else {}
    data = {
        "calibration": inputs.calibration,
        "evaluation": inputs.evaluation,
        "baseline": inputs.baseline,
    }
    return Lineage(
        recipe=inputs.recipe, model_file=inputs.model, data=said | data, run=recipe.lineage.run
    )
