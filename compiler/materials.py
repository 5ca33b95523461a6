"""What every candidate of one build is made of and measured on: model, data, inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.data import DataSet, entry_point, read_data, spread
from compiler.lock import Inputs
from compiler.metrics import Function, check_labels
from compiler.parity import check_parity
from compiler.passes import Graph, load_graph
from compiler.ports import Arrays, Ports, count
from compiler.preprocess import put_before
from compiler.recipe import InputNotes, Recipe, Source
from compiler.runtime import open_session, run_samples
from skerry.canonical import sha256
from skerry.errors import RefusedError, UsageError

__all__ = ["Materials", "check_same_answers", "gather"]

MAX_CALIBRATION: Final = 512
CHECK_SAMPLES: Final = 32  # on which a changed graph must answer as before
CHECK_RTOL: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Materials:
    """The model, its data sets as it takes them, and what was read.

    Attributes:
        recipe: the recipe.
        graph: the checked fp32 model.
        ports: its inputs.
        calibration: at most 512 samples, spread over the data set.
        evaluation: samples that variants are judged on.
        labels: of these; None where there are none.
        slices: gate's slice -> group of each of these, [n].
        baseline: samples like those of ordinary service.
        function: the recipe's own metric.
        inputs: digests of all of it.
    """

    recipe: Recipe
    graph: Graph
    ports: Ports
    calibration: Arrays
    evaluation: Arrays
    labels: NDArray[Any] | None
    slices: Mapping[str, NDArray[Any]]
    baseline: Arrays
    function: Function | None
    inputs: Inputs

    @property
    def n(self) -> int:
        """How many evaluation samples there are."""
        return count(self.evaluation)


def gather(source: Source) -> Materials:
    """Read and check everything that a recipe names.

    Raises:
        FormatError: a file is damaged.
        NotFoundError: a data set is missing.
        RefusedError: the model is none that Skerry ships.
        UsageError: recipe, data and model do not fit together.
    """
    recipe = source.recipe
    data = recipe.data
    sets = {
        name: read_data(getattr(data, name), source.folder, f"data.{name}")
        for name in ("calibration", "evaluation", "baseline")
    }
    graph = load_graph(
        source.model,
        external=recipe.model.external_data,
        keep=recipe.metric.output,
        change=lambda model: put_before(model, recipe.preprocess),
    )
    names = ", ".join(spec.name for spec in graph.outputs)
    if recipe.metric.output not in {spec.name for spec in graph.outputs}:
        raise UsageError(
            f"expected an output {recipe.metric.output!r} (metric.output), "
            f"{source.model.name} has {names}"
        )
    ports = Ports.of(graph.inputs, _notes(recipe, graph))
    inputs = Inputs(
        recipe=source.digest,
        model=sha256(source.model.read_bytes()),
        **{name: found.digest for name, found in sets.items()},
    )
    if inputs.evaluation == inputs.calibration:
        raise UsageError(
            "expected evaluation data of its own, data.evaluation equals data.calibration: "
            "int8 would be judged on the samples that it was fitted to"
        )
    fitted = {name: ports.fit(found.arrays, name) for name, found in sets.items()}
    _refuse_nan(fitted["calibration"], "calibration")
    check_same_answers(source, graph, ports, fitted["calibration"])
    check_parity(source, fitted["evaluation"])
    evaluation = fitted["evaluation"]
    labels = _along(sets["evaluation"], data.label, evaluation, "labels", needed=False)
    slices = {
        name: _along(sets["evaluation"], gate.array, evaluation, f"gate.slices.{name}")
        for name, gate in recipe.gate.slices.items()
    }
    few = spread(count(fitted["calibration"]), MAX_CALIBRATION)
    function = entry_point(recipe.metric.name, source.folder) if ":" in recipe.metric.name else None
    return Materials(
        recipe=recipe,
        graph=graph,
        ports=ports,
        calibration={name: values[few] for name, values in fitted["calibration"].items()},
        evaluation=evaluation,
        labels=labels,
        slices={name: groups for name, groups in slices.items() if groups is not None},
        baseline=fitted["baseline"],
        function=function,
        inputs=inputs,
    )


def check_same_answers(source: Source, graph: Graph, ports: Ports, samples: Arrays) -> None:
    """Refuse a model that answers otherwise since a pass changed it.

    Raises:
        RefusedError: it does.
    """
    given = source.model.read_bytes()
    if given == graph.data or source.recipe.model.external_data or source.recipe.preprocess:
        return  # tensors that lie elsewhere are not here; other inputs have their own check
    few = {name: values[:CHECK_SAMPLES] for name, values in samples.items()}
    before = run_samples(open_session(given), ports, few, source.recipe.metric.output)
    after = run_samples(open_session(graph.data), ports, few, source.recipe.metric.output)
    for name, values in after.items():
        if name not in before or "O" in (values.dtype.kind, before[name].dtype.kind):
            continue  # text, or maps that were unwrapped
        if not np.allclose(before[name], values, CHECK_RTOL, CHECK_RTOL, equal_nan=True):
            raise RefusedError(
                f"output {name!r} changes when the opset is raised to {graph.opset}; "
                f"export the model with opset {graph.opset} or newer"
            )


def check_reference_labels(materials: Materials, output: NDArray[Any]) -> None:
    """Refuse labels that the recipe's metric cannot be taken with.

    Raises:
        UsageError: they do not match the output.
    """
    if materials.function is None:
        check_labels(materials.recipe.metric, output, materials.labels)


def _notes(recipe: Recipe, graph: Graph) -> dict[str, InputNotes]:
    notes = dict(recipe.inputs)
    if recipe.data.input:
        if len(graph.inputs) != 1:
            names = ", ".join(spec.name for spec in graph.inputs)
            raise UsageError(
                f"data.input is for a model of one input, this one has {names}; "
                "use [inputs.NAME] array"
            )
        name = graph.inputs[0].name
        if recipe.data.input != name and name not in notes:
            notes[name] = InputNotes(array=recipe.data.input)
    return notes


def _along(
    found: DataSet, name: str, samples: Arrays, what: str, *, needed: bool = True
) -> NDArray[Any] | None:
    values = found.arrays.get(name)
    if values is None:
        if needed:
            have = ", ".join(sorted(found.arrays))
            raise UsageError(f"{what}: expected an array {name!r} in evaluation, found {have}")
        return None
    if len(values) != count(samples):
        raise UsageError(
            f"{what}: expected one entry of {name!r} for each of the {count(samples)} evaluation "
            f"samples, got {len(values)}"
        )
    return values.astype(np.int64) if values.dtype.kind in "ub" else values


def _refuse_nan(samples: Arrays, where: str) -> None:
    for name, values in samples.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
            raise UsageError(
                f"expected finite numbers in {where}, input {name!r} has NaN or infinity in "
                f"{len(bad)} of {len(values)} samples, first in sample {bad[0]}; "
                "clean the data as in training"
            )
