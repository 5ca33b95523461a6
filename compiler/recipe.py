"""Recipes: what to build, from which files, and what it must reach, as TOML.

    [model]       name, version, file, description, external_data
    [data]        calibration, evaluation, baseline (files or functions), label, input
    [inputs.X]    what input X needs to know: array, columns, fill, shape, batch
    [metric]      name, output, postprocess, k, threshold, lower_is_better
    [gate]        max_drop, min_value or max_value, latency, size, memory, slices
    [precisions]  try = ["int8", ...], or "auto"
    [search]      max_evaluations, max_seconds
    [preprocess.X] what is done to a raw input before input X, inside the model
    [features]    <name> = "<kind of skerry.features>", or "columns" of a table
    [classes]     names, in the order of the output
    [lineage]     data, run, git_commit
    [card]        text

Paths are relative to the recipe. An unknown key is an error that names the nearest
known one: a misspelt gate must not pass for no gate. `docs/howto/write-a-recipe.md`
explains every key.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from compiler.steps import Preprocess, check_preprocess
from skerry.canonical import sha256
from skerry.errors import NotFoundError, UsageError
from skerry.features import extractor
from skerry.ids import check_id, check_version
from skerry.profile import DeviceProfile
from skerry.toml import MAX_TOML_BYTES, from_toml

__all__ = [
    "COLUMNS",
    "FORMS",
    "Gate",
    "InputNotes",
    "Metric",
    "Preprocess",
    "Recipe",
    "Source",
    "load_profile",
    "parse_recipe",
    "read_recipe",
]

T = TypeVar("T")

# what a recipe may try besides fp32
COLUMNS: Final = "columns"  # as the kind of a feature: one for each column of a table
FORMS: Final = (
    "int8", "int8-tensor", "int8-heavy", "int8-dynamic", "int8-u8u8", "int8-weights", "fp16", "int4",
)  # fmt: skip
METRICS: Final = (
    "accuracy", "top_k", "f1", "auc", "mae", "rmse", "iou", "cosine", "agreement",
)  # fmt: skip
LOWER_IS_BETTER: Final = frozenset({"mae", "rmse"})


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model, in which version, from which file."""

    name: str
    version: str
    file: str
    description: str = ""
    external_data: str = ""  # the one file beside the model from which its tensors may come


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data sets, and the names of the arrays in them."""

    calibration: str
    evaluation: str
    baseline: str
    input: str = ""  # array for a model with one input, where it is not of the input's name
    label: str = "label"
    baseline_slices: list[str] = []  # arrays of the baseline data: each sample's group


class InputNotes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the compiler cannot see about an input."""

    array: str = ""  # of the data; the input's own name where left out
    columns: list[str] = []  # arrays of numbers that go in side by side, instead
    fill: float | None = None  # a constant: state that no data set has
    shape: list[int] = []  # of that constant
    batch: bool = True  # false: each sample goes in by itself, without a batch axis


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is measured, and on which output."""

    output: str
    name: str = "accuracy"
    postprocess: Literal["argmax", "threshold", "none"] | None = None
    k: int = 5
    threshold: float = 0.5
    lower_is_better: bool = False  # of a function of your own

    @property
    def falls(self) -> bool:
        """Whether a lower value is the better one."""
        return self.lower_is_better or self.name in LOWER_IS_BETTER

    @property
    def reading(self) -> Literal["argmax", "threshold", "none"]:
        """How a prediction is read from the output, given or as the metric suggests."""
        if self.postprocess is not None:
            return self.postprocess
        if self.name in ("accuracy", "top_k", "f1", "agreement", "auc"):
            return "argmax"
        return "threshold" if self.name == "iou" else "none"


class SliceGate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A gate for parts of the evaluation data: every group must hold its own."""

    array: str
    max_drop: float | None = None  # as the whole, where left out
    min_samples: int = 30  # smaller groups are reported, and decide nothing


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a variant must reach to be shipped."""

    max_drop: float = 0.01  # of the metric, below fp32
    min_value: float | None = None  # of the metric, for every variant
    max_value: float | None = None  # the same, where lower is better
    max_latency_ratio: float | None = None  # to fp32, by thread CPU time
    max_size_ratio: float | None = None  # asks for bytes: then it need only not be slower
    max_latency_us: float | None = None  # of one sample, on the profile
    max_bytes: int | None = None
    max_memory_mb: float | None = None
    slices: dict[str, SliceGate] = {}

    @property
    def latency_ratio(self) -> float:
        """The limit of the ratio of CPU times that holds."""
        if self.max_latency_ratio is not None:
            return self.max_latency_ratio
        return 0.95 if self.max_size_ratio is None else 1.05


class Precisions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The forms to try; fp32 is always there to fall back to."""

    try_: list[str] | Literal["auto"] = msgspec.field(default="auto", name="try")


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much may be spent on the search."""

    max_evaluations: int = 40  # of a whole candidate on all evaluation data
    max_seconds: float = 300.0


class Classes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The classes' names, in the order of the output."""

    names: list[str] = []


class FeatureNotes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A feature of one of several inputs."""

    kind: str
    input: str = ""  # the first that data goes into, where left out


class LineageNotes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where data and model came from, in the words of whoever keeps them."""

    data: str | dict[str, str] = ""
    run: str = ""
    git_commit: str = ""


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model card says beyond the numbers."""

    text: str = ""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe as its TOML says it."""

    model: Model
    data: Data
    metric: Metric
    inputs: dict[str, InputNotes] = {}
    preprocess: dict[str, Preprocess] = {}
    gate: Gate = Gate()
    precisions: Precisions = Precisions()
    search: Search = Search()
    features: dict[str, str | FeatureNotes] = {}
    classes: Classes = Classes()
    lineage: LineageNotes = LineageNotes()
    card: Card = Card()


@dataclass(frozen=True, slots=True)
class Source:
    """A recipe with its digest, and the folder where its files are."""

    recipe: Recipe
    digest: str
    folder: Path

    @property
    def model(self) -> Path:
        """The model's file."""
        return self.folder / self.recipe.model.file


def read_recipe(path: Path, *, model_comes_later: bool = False) -> Source:
    """Read a recipe and find its model.

    Args:
        path: of the recipe.
        model_comes_later: it will be fetched to where the recipe names it.

    Raises:
        NotFoundError: the recipe, or the model that it names, does not exist.
        UsageError: not a recipe; the message names the key.
    """
    data = _read(path, "recipe")
    recipe = parse_recipe(data, path.name)
    source = Source(recipe, sha256(data), path.parent)
    if not model_comes_later and not source.model.exists():
        raise NotFoundError(
            f"{path.name}: model.file names {recipe.model.file!r}, and there is no file "
            f"{source.model}; correct the path, or make the file"
        )
    return source


def parse_recipe(data: bytes, where: str = "recipe") -> Recipe:
    """Return the recipe that TOML bytes say.

    Args:
        data: UTF-8 TOML.
        where: the file's name, for messages.

    Raises:
        UsageError: not TOML, an unknown or missing key, a value of another type or range.
    """
    recipe = _convert(from_toml(data, where), Recipe, where)
    check_id(recipe.model.name, "model name")
    check_version(recipe.model.version)
    for name, feature in recipe.features.items():
        if not name.isidentifier():
            raise UsageError(f"{where}: expected a feature name such as sharpness, got {name!r}")
        kind = feature if isinstance(feature, str) else feature.kind
        if kind != COLUMNS:
            extractor(kind)
    tried = recipe.precisions.try_
    unknown = [p for p in tried if p not in (*FORMS, "fp32")] if isinstance(tried, list) else []
    if unknown:
        raise UsageError(
            f'{where}: precisions.try takes "auto" or a list of {", ".join(FORMS)} '
            f"(fp32 is always built); got {unknown[0]!r}"
        )
    for name, steps in recipe.preprocess.items():
        check_preprocess(name, steps, where)
    _check_metric(recipe.metric, where)
    _check_gate(recipe.gate, recipe.metric, where)
    if recipe.search.max_evaluations < 1 or recipe.search.max_seconds <= 0:
        raise UsageError(f"{where}: expected a search of at least one evaluation and some seconds")
    return recipe


def load_profile(path: Path) -> DeviceProfile:
    """Read a device profile.

    Raises:
        NotFoundError: no such file.
        UsageError: not a profile; the message names the key.
    """
    return _convert(from_toml(_read(path, "device profile"), path.name), DeviceProfile, path.name)


def _check_metric(metric: Metric, where: str) -> None:
    if metric.name not in METRICS and ":" not in metric.name:
        near = difflib.get_close_matches(metric.name, METRICS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "or module:function of your own"
        raise UsageError(
            f"{where}: metric.name takes {', '.join(METRICS)}; got {metric.name!r}; {hint}"
        )
    if metric.k < 1:
        raise UsageError(f"{where}: expected a metric.k of at least 1, got {metric.k}")


def _check_gate(gate: Gate, metric: Metric, where: str) -> None:
    wrong = gate.min_value if metric.falls else gate.max_value
    if wrong is not None:
        given, better = ("min", "max") if metric.falls else ("max", "min")
        raise UsageError(
            f"{where}: {metric.name} is better the {'lower' if metric.falls else 'higher'} it is: "
            f"expected gate.{better}_value, got gate.{given}_value"
        )
    drops = [gate.max_drop, *(s.max_drop for s in gate.slices.values() if s.max_drop is not None)]
    limits = [
        gate.max_latency_ratio, gate.max_size_ratio, gate.max_latency_us, gate.max_bytes,
        gate.max_memory_mb,
    ]  # fmt: skip
    if any(drop < 0 for drop in drops) or any(limit is not None and limit <= 0 for limit in limits):
        raise UsageError(
            f"{where}: expected a gate whose max_drop is 0 or more and whose other limits are "
            "above 0"
        )


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"expected a {what} at {path}, and there is no such file") from None
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None
    if len(data) > MAX_TOML_BYTES:
        raise UsageError(f"expected a {what} of at most {MAX_TOML_BYTES} bytes; {path} is longer")
    return data


def _convert(table: dict[str, Any], kind: type[T], where: str) -> T:
    _check_keys(table, kind, where, "")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {str(error).replace('$.', '')}") from None


def _check_keys(table: dict[str, Any], kind: type, where: str, path: str) -> None:
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in known:
            place = f"{path}{key}"
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {place!r}; {hint}")
        inner = known[key]
        if not isinstance(value, dict):
            continue
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _check_keys(value, inner, where, f"{path}{key}.")
        for named in getattr(inner, "__args__", ()):  # a table of tables: [inputs.x]
            if isinstance(named, type) and issubclass(named, msgspec.Struct):
                for name, table_of in value.items():
                    if isinstance(table_of, dict):
                        _check_keys(table_of, named, where, f"{path}{key}.{name}.")
