"""What every candidate of one build is made of and measured on: model, data, inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.core import Core, make_core, with_texts
from compiler.data import DataSet, entry_point, read_data, spread
from compiler.lock import Inputs
from compiler.metrics import OWN_METRIC, Function, check_labels
from compiler.parity import check_parity
from compiler.passes import Graph, load_graph, parse
from compiler.ports import Arrays, Ports, count
from compiler.preprocess import put_before
from compiler.recipe import InputNotes, Recipe, Source
from compiler.runtime import open_session, run_samples
from compiler.text_parity import check_text_parity
from compiler.texts import digests_of
from skerry.canonical import sha256
from skerry.errors import RefusedError, SkerryError, UsageError

__all__ = ["Materials", "blame", "check_reference_labels", "check_same_answers", "gather"]

MAX_CALIBRATION: Final = 512
MAX_GROUPS: Final = 500  # of a slice: more are measurements, no groups
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
        baseline_groups: slice -> group of each of these, [n].
        function: the recipe's own metric.
        inputs: digests of all of it.
        core: the part that quantization works on.
    """

    recipe: Recipe
    graph: Graph
    ports: Ports
    calibration: Arrays
    evaluation: Arrays
    labels: NDArray[Any] | None
    slices: Mapping[str, NDArray[Any]]
    baseline: Arrays
    baseline_groups: Mapping[str, NDArray[Any]]
    function: Function | None
    inputs: Inputs
    core: Core

    @property
    def least(self) -> dict[str, int]:
        """How large a group of each slice must be to decide anything."""
        return {name: gate.min_samples for name, gate in self.recipe.gate.slices.items()}

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
    core = load_graph(
        source.model,
        external=recipe.model.external_data,
        keep=recipe.metric.output,
        change=lambda model: put_before(model, recipe.preprocess),
    )
    graph = with_texts(core, recipe, source.folder)
    names = ", ".join(spec.name for spec in graph.outputs)
    kinds = {spec.name: spec.datatype for spec in graph.outputs}
    if recipe.metric.output not in kinds:
        raise UsageError(
            f"expected an output {recipe.metric.output!r} (metric.output), "
            f"{source.model.name} has {names}"
        )
    if kinds[recipe.metric.output] == "BYTES":
        raise UsageError(
            f"expected metric.output to name numbers, {recipe.metric.output!r} is text; "
            f"{source.model.name} has {names}"
        )
    ports = Ports.of(graph.inputs, _notes(recipe, graph))
    inputs = Inputs(
        recipe=source.digest,
        model=sha256(source.model.read_bytes()),
        **{name: found.digest for name, found in sets.items()},
        tokenizers=digests_of(recipe.preprocess, source.folder) or msgspec.UNSET,
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
    check_text_parity(source, parse(core.data).graph.input, fitted["evaluation"])
    evaluation = fitted["evaluation"]
    labels = _along(sets["evaluation"], data.label, evaluation, "labels", needed=False)
    if labels is not None and labels.dtype.kind in "OU" and recipe.classes.names:
        labels = _places(labels, recipe.classes.names, data.label)
    slices = {
        name: _groups(sets["evaluation"], gate.array, evaluation, f"gate.slices.{name}")
        for name, gate in recipe.gate.slices.items()
    }
    few = spread(count(fitted["calibration"]), MAX_CALIBRATION)
    function = entry_point(recipe.metric.name, source.folder) if ":" in recipe.metric.name else None
    calibration = {name: values[few] for name, values in fitted["calibration"].items()}
    return Materials(
        recipe=recipe,
        graph=graph,
        ports=ports,
        calibration=calibration,
        evaluation=evaluation,
        labels=labels,
        slices=slices,
        baseline=fitted["baseline"],
        baseline_groups={
            name: _groups(sets["baseline"], name, fitted["baseline"], "data.baseline_slices")
            for name in data.baseline_slices
        },
        function=function,
        inputs=inputs,
        core=make_core(source, core, graph, ports, calibration),
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


def blame(error: RefusedError, materials: Materials) -> SkerryError:
    """Return the error to raise where the metric cannot be taken of a model that is no variant."""
    for name, values in materials.evaluation.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = _not_finite(values)
            return UsageError(
                f"{error}; input {name!r} has NaN or infinity in {len(bad)} of them, first in "
                f"sample {bad[0]}: clean the data as in training"
            )
    return UsageError(str(error)) if error.code == OWN_METRIC else error


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
            raise UsageError(f"{what}: expected an array {name!r} in its data, found {have}")
        return None
    if values.ndim < 1:
        raise UsageError(f"{what}: expected one entry of {name!r} per sample, it is a single one")
    if len(values) != count(samples):
        raise UsageError(
            f"{what}: expected one entry of {name!r} for each of the {count(samples)} samples, "
            f"got {len(values)}"
        )
    return values.astype(np.int64) if values.dtype.kind in "ub" else values


def _places(labels: NDArray[Any], names: list[str], array: str) -> NDArray[np.int64]:
    """Return labels of text as places among the names of the classes."""
    place = {name: position for position, name in enumerate(names)}
    unknown = sorted({str(label) for label in labels.reshape(-1).tolist()} - set(place))
    if unknown:
        raise UsageError(
            f"expected labels of classes.names ({', '.join(names)[:200]}); {array!r} has "
            f"{unknown[0][:80]!r} too"
        )
    return np.asarray([place[str(label)] for label in labels.reshape(-1).tolist()], dtype=np.int64)


def _groups(found: DataSet, name: str, samples: Arrays, what: str) -> NDArray[Any]:
    values = _along(found, name, samples, what)
    assert values is not None
    if values.ndim != 1:
        raise UsageError(f"{what}: expected one group per sample, {name!r} is {list(values.shape)}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UsageError(f"{what}: expected a group for each sample, {name!r} has NaN or infinity")
    groups = values.astype(str) if values.dtype.kind == "O" else values
    many = len(np.unique(groups))
    if many > MAX_GROUPS:
        raise UsageError(
            f"{what}: expected at most {MAX_GROUPS} groups, {name!r} has {many}; "
            "put numbers into ranges first"
        )
    return groups


def _refuse_nan(samples: Arrays, where: str) -> None:
    for name, values in samples.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = _not_finite(values)
            raise UsageError(
                f"expected finite numbers in {where}, input {name!r} has NaN or infinity in "
                f"{len(bad)} of {len(values)} samples, first in sample {bad[0]}; "
                "clean the data as in training"
            )


def _not_finite(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the positions of samples with NaN or infinity."""
    return np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
