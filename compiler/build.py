"""A build, from a recipe to a bundle: this file explains the rest of the compiler.

    recipe.py     what to build, from which files           read_recipe
    rows.py       its data sets
    passes.py     the model, checked, in opset 17           load_graph
    runtime.py    how models are run here
    calibrate.py  ranges of its tensors          } one      calibrate
    quantize.py   its int8 form                  } candidate  quantize
    evaluate.py   accuracy against fp32, paired  } each       compare
    latency.py    CPU time against fp32          }            measure, judge
    gate.py       whether it ships, and why                 rule
    golden.py     what every variant must answer            make_golden
    baseline.py   what ordinary data looks like             make_baseline
    card.py       what people read                          make_card
    lock.py       what cannot be computed again
    record.py     what was measured, and where

fp32 is always built and always the last variant; a quantized one that passes the
gate goes before it. The manifest and every layer are functions of recipe, data and
lock alone: no timing, no date, no path.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compiler.baseline import make_baseline
from compiler.calibrate import calibrate
from compiler.card import make_card
from compiler.evaluate import Quality, compare
from compiler.gate import check_reference, rule
from compiler.golden import make_golden
from compiler.host import Host, this_host, tools
from compiler.latency import Latency, Verdict, judge, measure
from compiler.lock import Choice, Inputs, Lock, check_lock
from compiler.passes import Graph, load_graph, prepare
from compiler.quantize import quantize
from compiler.recipe import Recipe, Source
from compiler.record import Record, VariantRecord
from compiler.rows import Rows, read_rows, spread
from compiler.runtime import Outputs, Port, open_session, run_rows
from skerry.bundle import write_bundle
from skerry.canonical import sha256, to_json
from skerry.errors import RefusedError, UsageError
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
MAX_CALIBRATION_ROWS: Final = 512

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


@dataclass(frozen=True, slots=True)
class Candidate:
    """One form of the model, and what became of it; `data` is empty where it failed."""

    precision: str
    data: bytes
    reason: str
    outputs: Outputs | None = None
    session: ort.InferenceSession | None = None
    quality: Quality | None = None
    latency: Latency | None = None
    verdict: Verdict = "undecided"
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Materials:
    """What every candidate of one build is made of and measured on."""

    recipe: Recipe
    graph: Graph
    port: Port
    calibration: NDArray[Any]
    evaluation: NDArray[Any]
    labels: NDArray[np.int64]
    baseline: NDArray[Any]
    inputs: Inputs


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
    recipe, notes = source.recipe, list(materials.graph.notes)
    tell("evaluate fp32")
    reference = evaluate_reference(materials)
    candidates: list[Candidate] = []
    for precision in dict.fromkeys(p for p in recipe.precisions.try_ if p != "fp32"):
        tell(f"build and measure {precision}")
        chosen = next((c for c in lock.choices if c.precision == precision), None) if lock else None
        elsewhere = profile is not None and profile.platform != host.platform
        candidates.append(try_int8(materials, reference, chosen, notes, elsewhere=elsewhere))
    tell("assemble the bundle")
    shipped = [*(c for c in candidates if c.accepted), reference]
    manifest, layers = assemble(source, materials, shipped, [*candidates, reference], host)
    file = io.BytesIO()
    digest = write_bundle(file, to_json(manifest), layers)
    new_lock = Lock(
        model=recipe.model.name,
        model_version=recipe.model.version,
        inputs=materials.inputs,
        choices=[Choice(c.precision, c.verdict) for c in candidates],
        bundle=digest,
        hw_class=host.hw_class,
        tools=tools(),
    )
    if lock is not None and lock.bundle != digest:
        notes.append(
            f"differs from the lock's bundle {lock.bundle}, which was built on {lock.hw_class} "
            f"with onnxruntime {lock.tools.onnxruntime}"
        )
    record = make_record(digest, materials, [*candidates, reference], shipped, host, notes, now,
                         "this machine" if profile is None else profile.id)  # fmt: skip
    return Built(digest, file.getvalue(), manifest, new_lock, record)


def gather(source: Source) -> Materials:
    """Read and check everything that a recipe names."""
    recipe, files = source.recipe, source.files
    graph = load_graph(files.model)
    if len(graph.inputs) != 1 or graph.inputs[0].name != recipe.data.input:
        names = ", ".join(spec.name for spec in graph.inputs)
        raise UsageError(
            f"expected a model with the one input {recipe.data.input!r} (data.input), "
            f"{files.model.name} has {names}"
        )
    if recipe.metric.output not in {spec.name for spec in graph.outputs}:
        names = ", ".join(spec.name for spec in graph.outputs)
        raise UsageError(
            f"expected an output {recipe.metric.output!r} (metric.output), "
            f"{files.model.name} has {names}"
        )
    port = Port.of(graph.inputs[0])
    inputs = Inputs(
        recipe=source.digest,
        model=sha256(files.model.read_bytes()),
        calibration=sha256(files.calibration.read_bytes()),
        evaluation=sha256(files.evaluation.read_bytes()),
        baseline=sha256(files.baseline.read_bytes()),
    )
    if inputs.evaluation == inputs.calibration:
        raise UsageError(
            "expected evaluation data of its own, data.evaluation equals data.calibration: "
            "int8 would be judged on the rows that it was fitted to"
        )

    def rows(name: str, *, labelled: bool) -> Rows:
        path = getattr(files, name)
        found = read_rows(path, recipe.data.input, recipe.data.label, labelled=labelled)
        return replace(found, inputs=port.fit(found.inputs))

    calibration = rows("calibration", labelled=False).inputs
    evaluation = rows("evaluation", labelled=True)
    assert evaluation.labels is not None
    return Materials(
        recipe=recipe,
        graph=graph,
        port=port,
        calibration=calibration[spread(len(calibration), MAX_CALIBRATION_ROWS)],
        evaluation=evaluation.inputs,
        labels=evaluation.labels,
        baseline=rows("baseline", labelled=False).inputs,
        inputs=inputs,
    )


def evaluate_reference(materials: Materials) -> Candidate:
    """Run fp32 and refuse a model that is not good enough even so."""
    recipe = materials.recipe
    session = open_session(materials.graph.data)
    outputs = run_rows(session, materials.port, materials.evaluation)
    output = outputs[recipe.metric.output]
    quality = compare(output, output, materials.labels)
    model = f"{recipe.model.name} {recipe.model.version}"
    check_reference(model, recipe.metric.name, quality, recipe.gate)
    return Candidate("fp32", materials.graph.data, "", outputs, session, quality, accepted=True)


def try_int8(
    materials: Materials,
    reference: Candidate,
    choice: Choice | None,
    notes: list[str],
    *,
    elsewhere: bool,
) -> Candidate:
    """Quantize, evaluate, time and judge; a candidate that cannot be built is one refused.

    Args:
        materials: of this build.
        reference: fp32, evaluated.
        choice: the lock's, which decides on speed if there is one.
        notes: taken down for the record.
        elsewhere: the profile's platform is not this machine's, so its speed is not known.
    """
    gate, metric = materials.recipe.gate, materials.recipe.metric
    exclude = choice.exclude if choice is not None else []
    try:
        prepared, how = prepare(materials.graph)
        notes.append(how)
        ranges = calibrate(prepared, materials.port, materials.calibration)
        data = quantize(prepared, ranges, exclude)
        session = open_session(data)
        outputs = run_rows(session, materials.port, materials.evaluation)
        assert reference.outputs is not None
        quality = compare(
            outputs[metric.output], reference.outputs[metric.output], materials.labels
        )
    except RefusedError as error:
        return Candidate("int8", b"", str(error))
    row = {materials.port.name: materials.evaluation[: max(1, materials.port.shape[0])]}
    latency = measure(session, reference.session, row)
    verdict: Verdict = "undecided" if elsewhere else judge(latency, gate.max_latency_ratio)
    if elsewhere:
        notes.append("latency was measured on another platform than the profile's")
    verdict = choice.verdict if choice is not None else verdict
    ruling = rule(metric.name, quality, verdict, len(data) / len(reference.data), gate)
    return Candidate(
        "int8", data, ruling.reason, outputs, session, quality, latency, verdict, ruling.accepted
    )


def assemble(
    source: Source,
    materials: Materials,
    shipped: list[Candidate],
    tried: list[Candidate],
    host: Host,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the layers, by file name."""
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
            accuracy=Accuracy(recipe.metric.name, quality.value, quality.n, host.hw_class),
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
    shipped: list[Candidate],
    host: Host,
    notes: list[str],
    now: datetime,
    profile: str,
) -> Record:
    """Return what was measured, timings included."""
    recipe, timed = materials.recipe, [c.latency for c in tried if c.latency is not None]
    reference_us = timed[0].reference_us if timed else None
    ids = {id(c) for c in shipped}
    return Record(
        bundle=digest,
        model=recipe.model.name,
        model_version=recipe.model.version,
        metric=recipe.metric.name,
        n=len(materials.labels),
        variants=[_measured(c, shipped[0], id(c) in ids, reference_us) for c in tried],
        host=host,
        tools=tools(),
        profile=profile,
        latency_rounds=timed[0].rounds if timed else 0,
        latency_runs=timed[0].runs if timed else 0,
        notes=notes,
        built_at=now.isoformat(),
    )


def _measured(
    c: Candidate, first: Candidate, shipped: bool, reference_us: float | None
) -> VariantRecord:
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
        shipped=shipped,
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
