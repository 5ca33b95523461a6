"""Candidates: the forms of one model that a build tries, measured on the same rows.

fp32 is the reference and must reach the gate by itself. int8 is measured against it;
one that cannot be built is refused with the reason, and the build goes on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compiler.calibrate import calibrate
from compiler.evaluate import Quality, compare
from compiler.gate import check_reference, rule
from compiler.latency import Latency, Verdict, judge, measure
from compiler.lock import Inputs
from compiler.passes import Graph, load_graph, prepare
from compiler.quantize import quantize
from compiler.recipe import Recipe, Source
from compiler.rows import Rows, read_rows, spread
from compiler.runtime import Outputs, Port, open_session, run_rows
from skerry.canonical import sha256
from skerry.errors import RefusedError, UsageError

__all__ = ["Candidate", "Materials", "evaluate_reference", "gather", "try_int8"]

MAX_CALIBRATION_ROWS: Final = 512
CHECK_ROWS: Final = 32  # on which a raised opset must answer as before
CHECK_RTOL: Final = 1e-3


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


def gather(source: Source) -> Materials:
    """Read and check everything that a recipe names.

    Raises:
        FormatError: a file is damaged.
        RefusedError: the model is none that Skerry ships.
        UsageError: recipe, data and model do not fit together.
    """
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
    check_same_answers(files.model, graph, port, calibration[:CHECK_ROWS])
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


def check_same_answers(path: Path, graph: Graph, port: Port, rows: NDArray[Any]) -> None:
    """Refuse a model that answers otherwise since its opset was raised.

    Raises:
        RefusedError: it does.
    """
    given = path.read_bytes()
    if given == graph.data:
        return
    before = run_rows(open_session(given), port, rows)
    after = run_rows(open_session(graph.data), port, rows)
    for name, values in before.items():
        if not np.allclose(after[name], values, rtol=CHECK_RTOL, atol=CHECK_RTOL, equal_nan=True):
            raise RefusedError(
                f"output {name!r} changes when the opset is raised to {graph.opset}; "
                f"export the model with opset {graph.opset} or newer"
            )


def evaluate_reference(materials: Materials) -> Candidate:
    """Run fp32 and refuse a model that is not good enough even so.

    Raises:
        GateError: below the gate's `min_value`.
    """
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
    known: Verdict | None,
    notes: list[str],
    *,
    elsewhere: bool,
) -> Candidate:
    """Quantize, evaluate, time and judge; a candidate that cannot be built is one refused.

    Args:
        materials: of this build.
        reference: fp32, evaluated.
        known: the lock's verdict, which holds whatever is measured now.
        notes: taken down for the record.
        elsewhere: the profile's platform is not this machine's, so its speed is not known.
    """
    gate, metric = materials.recipe.gate, materials.recipe.metric
    try:
        prepared, how = prepare(materials.graph)
        notes.append(how)
        ranges = calibrate(prepared, materials.port, materials.calibration)
        data = quantize(prepared, ranges)
        session = open_session(data)
        outputs = run_rows(session, materials.port, materials.evaluation)
        assert reference.outputs is not None
        quality = compare(
            outputs[metric.output], reference.outputs[metric.output], materials.labels
        )
    except RefusedError as error:
        return Candidate("int8", b"", str(error))
    latency = measure(session, reference.session, one_call(materials))
    verdict = known or ("undecided" if elsewhere else judge(latency, gate.max_latency_ratio))
    if elsewhere:
        notes.append("latency was measured on another platform than the profile's")
    ruling = rule(metric.name, quality, verdict, len(data) / len(reference.data), gate)
    return Candidate(
        "int8", data, ruling.reason, outputs, session, quality, latency, verdict, ruling.accepted
    )


def one_call(materials: Materials) -> dict[str, NDArray[Any]]:
    """Return the smallest input that the model takes: one row, or its fixed batch."""
    rows = materials.evaluation
    batch = max(1, materials.port.shape[0])
    return {materials.port.name: np.resize(rows[:batch], (batch, *rows.shape[1:]))}
