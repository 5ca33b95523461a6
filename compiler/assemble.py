"""What goes into a bundle: the manifest and its layers, without a timing, a date or a path."""

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.baseline import as_rows, make_baseline
from compiler.bom import make_bom
from compiler.candidates import Candidate, precision_of
from compiler.card import make_card
from compiler.evaluate import Quality
from compiler.golden import make_golden
from compiler.lock import Inputs
from compiler.materials import Materials
from compiler.metrics import gives_classes
from compiler.passes import opset_of, parse
from compiler.ports import Ports
from compiler.recipe import COLUMNS, Metric, Recipe, Source
from compiler.runtime import run_samples
from compiler.texts import REQUIREMENT
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
    ReadingKind,
    SliceReport,
    TensorSpec,
    Variant,
)
from skerry.profile import ANY_CLASS

__all__ = ["assemble", "class_names", "reason_of"]

PROVIDER: Final = "CPUExecutionProvider"
MIN_AGENT: Final = "0.1.0"


def assemble(
    source: Source,
    materials: Materials,
    tried: list[Candidate],
    shipped: list[Candidate],
    isa: str,
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the layers, by file name.

    Args:
        source: the recipe.
        materials: of this build.
        tried: every candidate, fp32 last.
        shipped: those that go in, in order of preference.
        isa: class of the machine that measured the metric.

    Raises:
        UsageError: class names, or a feature, that do not fit the model.
    """
    recipe, graph, ports = source.recipe, materials.graph, materials.ports
    output, first = recipe.metric.output, shipped[0]
    reference = tried[-1]
    assert reference.outputs is not None
    answers = as_rows(ports, reference.outputs[output])
    reading = reading_of(recipe.metric, answers)
    names = class_names(recipe, reading, answers)
    evaluation = make_evaluation(recipe, materials, tried, shipped, isa)
    inputs = _in_order(ports, graph.inputs)
    outputs = [_named(spec, names) if spec.name == output else spec for spec in graph.outputs]
    lineage = _lineage(recipe, materials.inputs)
    assert first.session is not None
    live = run_samples(first.session, ports, materials.baseline, output)[output]
    features = _features(recipe, ports)
    kept = {
        spec.name
        for spec in outputs
        if spec.name in reference.outputs and _comparable(reference.outputs[spec.name])
    }
    golden = [{name: c.outputs[name] for name in kept} for c in shipped if c.outputs is not None]
    layers = {
        **{f"model-{c.form}.onnx": c.data for c in shipped},
        "golden.msgpack": make_golden(
            ports, materials.evaluation, golden[-1], golden[:-1], reading
        ),
        "baseline.msgpack": make_baseline(
            ports,
            materials.baseline,
            live,
            reading,
            features,
            names,
            materials.baseline_groups,
        ),
        "evaluation.json": to_json(evaluation),
        "README.md": make_card(recipe, evaluation, inputs, outputs, lineage.data),
    }
    layers["bom.cdx.json"] = make_bom(
        recipe, evaluation, lineage, {c.form: layers[f"model-{c.form}.onnx"] for c in shipped}
    )

    def file(name: str) -> FileRef:
        return FileRef(sha256(layers[name]), len(layers[name]))

    def variant(c: Candidate) -> Variant:
        quality = _quality(c)
        return Variant(
            id=f"{c.form}-cpu",
            file=file(f"model-{c.form}.onnx"),
            precision=precision_of(c.form),
            provider=PROVIDER,
            hw_classes=[ANY_CLASS],  # no form that ships saturates: every CPU answers alike
            opset=opset_of(parse(c.data)),
            min_agent=MIN_AGENT,
            accuracy=Accuracy(recipe.metric.name, quality.value, quality.n, isa),
        )

    manifest = Manifest(
        model=recipe.model.name,
        model_version=recipe.model.version,
        variants=[variant(c) for c in shipped],
        inputs=inputs,
        outputs=outputs,
        prediction=reading,
        features=features,
        golden=file("golden.msgpack"),
        baseline=file("baseline.msgpack"),
        evaluation=file("evaluation.json"),
        card=file("README.md"),
        lineage=lineage,
        bom=file("bom.cdx.json"),
        requires=[REQUIREMENT] if materials.core.graph is not graph else msgspec.UNSET,
    )
    return manifest, layers


def make_evaluation(
    recipe: Recipe,
    materials: Materials,
    tried: list[Candidate],
    shipped: list[Candidate],
    isa: str,
) -> Evaluation:
    """Return the report on every candidate."""
    return Evaluation(
        metric=recipe.metric.name,
        n=materials.n,
        reference=_quality(tried[-1]).value,
        candidates=[_report(c, shipped) for c in tried],
        slices=[
            SliceReport(s.name, s.group, s.n, s.value, s.drop, (s.drop_low, s.drop_high))
            for s in _quality(shipped[0]).slices
        ],
        isa=isa,
    )


def reading_of(metric: Metric, rows: NDArray[Any]) -> PredictionSpec:
    """Return how a device reads a prediction: as the metric does, where a row has one."""
    values = int(np.prod(rows.shape[1:]))
    kind: ReadingKind = "value" if values == 1 else "mean"
    if gives_classes(rows, metric):
        pass  # any number may stand for a class: it is watched as a value
    elif metric.reading != "none" and values == 1:
        kind = "threshold"  # one probability
    elif metric.reading == "argmax" or (metric.reading == "threshold" and values == 2):
        kind = "argmax"
    return PredictionSpec(metric.output, kind, metric.threshold if kind == "threshold" else 0.5)


def class_names(recipe: Recipe, reading: PredictionSpec, rows: NDArray[Any]) -> list[str]:
    """Return the recipe's class names, or numbers where it has none; none without classes.

    Raises:
        UsageError: not one name per class.
    """
    given = recipe.classes.names
    if reading.kind not in ("argmax", "threshold"):
        if given:
            raise UsageError(
                f"classes.names are for a model that predicts classes, {recipe.metric.output!r} "
                "gives values; leave them out, or set metric.postprocess"
            )
        return []
    count = 2 if reading.kind == "threshold" else int(np.prod(rows.shape[1:]))
    names = given or [str(position) for position in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise UsageError(
            f"expected {count} different names in classes.names, one per value of "
            f"{recipe.metric.output!r}; got {len(names)}"
        )
    return names


def reason_of(c: Candidate, shipped: list[Candidate]) -> str:
    """Return why a candidate ships or does not, in words."""
    first = shipped[0]
    if c.form != "fp32":
        better = c.accepted and not any(c is other for other in shipped)
        return f"{c.reason}; {first.name} is worth more" if better else c.reason
    if c is first:
        return "first choice: no smaller form passed the gate"
    if not c.accepted:
        return c.reason
    return f"ships too, for devices on which {first.form} cannot run"


def _report(c: Candidate, shipped: list[Candidate]) -> CandidateReport:
    q = c.quality
    other = q is not None and c.form != "fp32"
    return CandidateReport(
        precision=c.form,
        size_bytes=c.size,
        accuracy=q.value if q else None,
        chosen=c is shipped[0],
        reason=reason_of(c, shipped),
        drop_interval=(q.drop_low, q.drop_high) if q and other else None,
        agreement=q.agreement if q and other else None,
        sqnr_db=round(q.sqnr_db, 2) if q and other and q.sqnr_db is not None else None,
        left_float=list(c.left),
    )


def _features(recipe: Recipe, ports: Ports) -> list[FeatureSpec]:
    fed = [port.name for port in ports.fed]
    found = []
    for name, notes in sorted(recipe.features.items()):
        kind, given = (notes, "") if isinstance(notes, str) else (notes.kind, notes.input)
        if kind == COLUMNS:
            found += _columns(recipe, ports, name, given or fed[0])
            continue
        if given and given not in fed:
            raise UsageError(
                f"features.{name}: expected an input of {', '.join(fed)}, got {given!r}"
            )
        found.append(FeatureSpec(name, kind, given or fed[0]))
    return found


def _columns(recipe: Recipe, ports: Ports, name: str, fed: str) -> list[FeatureSpec]:
    """Return a feature for each column of a table, of the columns' own names where they have some."""
    port = next((port for port in ports.fed if port.name == fed), None)
    notes = recipe.inputs.get(fed)
    names = notes.columns if notes is not None else []
    if port is None or (not names and (len(port.shape) != 2 or port.shape[1] < 1)):
        raise UsageError(
            f"features.{name}: expected an input [n, columns] for {COLUMNS!r}, {fed!r} is "
            f"{list(port.shape) if port is not None else 'no input'}"
        )
    names = names or [f"{name}_{place}" for place in range(port.shape[1])]
    return [FeatureSpec(column, f"column.{place}", fed) for place, column in enumerate(names)]


def _comparable(values: NDArray[Any]) -> bool:
    """Whether a device can tell how far it is from an output: text and masks of -inf have no far."""
    return values.dtype.kind in "iufb" and bool(np.isfinite(values).all())


def _in_order(ports: Ports, inputs: tuple[TensorSpec, ...]) -> list[TensorSpec]:
    """Return the inputs, those first that data goes into: a device counts the rows of the first."""
    fed = {port.name for port in ports.fed}
    return sorted(inputs, key=lambda spec: spec.name not in fed)


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
    if isinstance(inputs.tokenizers, dict):
        data |= {f"tokenizer of {name}": digest for name, digest in inputs.tokenizers.items()}
    return Lineage(
        recipe=inputs.recipe,
        model_file=inputs.model,
        data=said | data,
        run=recipe.lineage.run,
        git_commit=recipe.lineage.git_commit,
    )
