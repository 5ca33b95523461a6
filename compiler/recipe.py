"""Recipes: what to build, from which files, and what it must reach, as TOML.

    [model]       name, version, file, description
    [data]        calibration, evaluation, baseline (.npz files), input, label (array names)
    [metric]      name = "accuracy", output (the output tensor it is read from)
    [gate]        max_drop, min_value, max_latency_ratio
    [precisions]  try = ["int8"]
    [features]    <name> = "<kind of skerry.features>"
    [classes]     names, in the order of the output
    [lineage]     data, run
    [card]        text

Paths are relative to the recipe. An unknown key is an error that names the nearest
known one: a misspelt gate must not pass for no gate.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from skerry.canonical import sha256
from skerry.errors import NotFoundError, UsageError
from skerry.features import extractor
from skerry.ids import check_id, check_version
from skerry.profile import DeviceProfile
from skerry.toml import MAX_TOML_BYTES, from_toml

__all__ = ["Recipe", "RecipeFiles", "Source", "load_profile", "parse_recipe", "read_recipe"]

T = TypeVar("T")

PRECISIONS: Final = ("int8",)  # what a recipe may try besides fp32


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model, in which version, from which file."""

    name: str
    version: str
    file: str
    description: str = ""


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data sets, and the names of the arrays in them."""

    calibration: str
    evaluation: str
    baseline: str
    input: str
    label: str = "label"


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is measured, and on which output."""

    output: str
    name: Literal["accuracy"] = "accuracy"


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a variant must reach to be shipped."""

    max_drop: float = 0.01  # of the metric, below fp32
    min_value: float = 0.0  # of the metric, for every variant
    max_latency_ratio: float = 0.95  # to fp32, by thread CPU time


class Precisions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The precisions to try; fp32 is always there to fall back to."""

    try_: list[str] = msgspec.field(default_factory=lambda: ["int8"], name="try")


class Classes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The classes' names, in the order of the output."""

    names: list[str] = []


class LineageNotes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where data and model came from, in the words of whoever keeps them."""

    data: str | dict[str, str] = ""
    run: str = ""


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model card says beyond the numbers."""

    text: str = ""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe as its TOML says it."""

    model: Model
    data: Data
    metric: Metric
    gate: Gate = Gate()
    precisions: Precisions = Precisions()
    features: dict[str, str] = {}
    classes: Classes = Classes()
    lineage: LineageNotes = LineageNotes()
    card: Card = Card()


@dataclass(frozen=True, slots=True)
class RecipeFiles:
    """The files that a recipe names; each exists."""

    model: Path
    calibration: Path
    evaluation: Path
    baseline: Path


@dataclass(frozen=True, slots=True)
class Source:
    """A recipe with its digest and its files."""

    recipe: Recipe
    digest: str
    files: RecipeFiles


def read_recipe(path: Path) -> Source:
    """Read a recipe and find its files.

    Raises:
        NotFoundError: the recipe, or a file that it names, does not exist.
        UsageError: not a recipe; the message names the key.
    """
    data = _read(path, "recipe")
    recipe = parse_recipe(data, path.name)

    def find(key: str, name: str) -> Path:
        found = path.parent / name
        if not found.is_file():
            raise NotFoundError(
                f"{path.name}: {key} names {name!r}, and there is no file {found}; "
                "correct the path, or make the file"
            )
        return found

    files = RecipeFiles(
        model=find("model.file", recipe.model.file),
        calibration=find("data.calibration", recipe.data.calibration),
        evaluation=find("data.evaluation", recipe.data.evaluation),
        baseline=find("data.baseline", recipe.data.baseline),
    )
    return Source(recipe, sha256(data), files)


def parse_recipe(data: bytes, where: str = "recipe") -> Recipe:
    """Return the recipe that TOML bytes say.

    Args:
        data: UTF-8 TOML.
        where: the file's name, for messages.

    Raises:
        UsageError: not TOML, an unknown or missing key, a value of another type or range.
    """
    recipe = _convert(_toml(data, where), Recipe, where)
    check_id(recipe.model.name, "model name")
    check_version(recipe.model.version)
    for name, kind in recipe.features.items():
        if not name.isidentifier():
            raise UsageError(f"{where}: expected a feature name such as sharpness, got {name!r}")
        extractor(kind)
    unknown = [p for p in recipe.precisions.try_ if p not in (*PRECISIONS, "fp32")]
    if unknown:
        raise UsageError(
            f"{where}: precisions.try takes {', '.join(PRECISIONS)} (fp32 is always built); "
            f"got {unknown[0]!r}"
        )
    gate = recipe.gate
    if not (0 <= gate.max_drop <= 1 and 0 <= gate.min_value <= 1 and gate.max_latency_ratio > 0):
        raise UsageError(
            f"{where}: expected max_drop and min_value of 0 to 1 and a positive max_latency_ratio; "
            f"got {gate.max_drop}, {gate.min_value} and {gate.max_latency_ratio}"
        )
    return recipe


def load_profile(path: Path) -> DeviceProfile:
    """Read a device profile.

    Raises:
        NotFoundError: no such file.
        UsageError: not a profile; the message names the key.
    """
    return _convert(_toml(_read(path, "device profile"), path.name), DeviceProfile, path.name)


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


def _toml(data: bytes, where: str) -> dict[str, Any]:
    return from_toml(data, where)


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
        if (
            isinstance(value, dict)
            and isinstance(inner, type)
            and issubclass(inner, msgspec.Struct)
        ):
            _check_keys(value, inner, where, f"{path}{key}.")
