"""The manifest: what a bundle says of itself, as the config blob of an OCI artifact.

Everything the device, the fleet and a reader need: the variants in order of
preference, the input and output schema, how a prediction is read from the output,
the features that explain drift, and references by digest to the golden set, the
baseline, the evaluation report and the card. No timing and no fact of the
building host: the same recipe, lock and data give the same bytes.
"""

from typing import Final, Literal

import msgspec

from skerry.canonical import check_digest, from_json, from_msgpack
from skerry.errors import FormatError, UsageError
from skerry.ids import check_id, check_version
from skerry.profile import parse_requirement
from skerry.sketch import Column, ColumnSpec, check_column, check_spec

__all__ = [
    "Accuracy",
    "Baseline",
    "BaselineColumn",
    "BaselineGroup",
    "CandidateReport",
    "Evaluation",
    "FeatureSpec",
    "FileRef",
    "Golden",
    "GoldenTensor",
    "Lineage",
    "Manifest",
    "PredictionSpec",
    "ReadingKind",
    "SliceReport",
    "TensorSpec",
    "Variant",
    "parse_baseline",
    "parse_manifest",
]

MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_BASELINE_BYTES: Final = 4 << 20
MAX_VARIANTS: Final = 32
MAX_TENSORS: Final = 64  # inputs, or outputs
MAX_RANK: Final = 16
MAX_DIMENSION: Final = 1 << 31
MAX_FILE_BYTES: Final = 4 << 30
MAX_SLICES: Final = 8  # of a baseline
MAX_GROUPS: Final = 64  # of one slice
MAX_COLUMNS: Final = 256  # features, or columns of a baseline
MAX_TEXT: Final = 256  # characters of a name
MAX_REQUIRES: Final = 8


# how a prediction is read from an output, by `skerry.reading`
ReadingKind = Literal["argmax", "value", "threshold", "mean"]


class FileRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle, by digest."""

    digest: str
    size_bytes: int


class TensorSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input or output tensor; `datatype` as in the Open Inference Protocol (FP32)."""

    name: str
    datatype: str
    shape: list[int]  # -1 is a dimension that the caller chooses
    range: tuple[float, float] | None = None
    class_names: list[str] = []


class Accuracy(msgspec.Struct, frozen=True):
    """A metric's value, and on which instruction set and how many samples it was taken."""

    metric: str
    value: float
    n: int
    isa: str


class Variant(msgspec.Struct, frozen=True):
    """One runnable form of the version: precision x provider x hardware classes."""

    id: str
    file: FileRef
    precision: Literal["fp32", "int8", "fp16", "int4"]
    provider: str
    hw_classes: list[str]  # ``any``, or prefixes of a device's hw_class
    opset: int
    min_agent: str
    accuracy: Accuracy


class PredictionSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one prediction is read from an output, by `skerry.reading`."""

    output: str
    kind: ReadingKind
    threshold: float = 0.5


class FeatureSpec(msgspec.Struct, frozen=True):
    """A named summary of an input, by a function of `skerry.features`."""

    name: str
    kind: str
    input: str


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the model came from."""

    recipe: str  # digest of the recipe's bytes
    model_file: str  # digest of the model as it was given
    data: dict[str, str] = {}  # name -> file digest, or a reference such as dvc:...
    run: str = ""
    git_commit: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """What a bundle says of itself; encode it with `canonical.to_json`."""

    model: str
    model_version: str
    variants: list[Variant]  # in order of preference
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    prediction: PredictionSpec
    features: list[FeatureSpec]
    golden: FileRef
    baseline: FileRef
    evaluation: FileRef
    card: FileRef
    lineage: Lineage
    schema: int = 1
    bom: FileRef | msgspec.UnsetType = msgspec.UNSET  # CycloneDX
    # what a device needs besides onnxruntime, such as ``onnxruntime-extensions>=0.14``
    requires: list[str] | msgspec.UnsetType = msgspec.UNSET

    @property
    def needs(self) -> list[str]:
        """What a device needs besides onnxruntime; nothing in most manifests."""
        return self.requires if isinstance(self.requires, list) else []


class GoldenTensor(msgspec.Struct, frozen=True):
    """A tensor of the golden set: little-endian raw `data` of that datatype and shape."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


class Golden(msgspec.Struct, frozen=True):
    """Inputs and the outputs that every variant must give, in MessagePack.

    `max_disagree` is the share of rows whose prediction may differ, `atol` the
    largest difference of an output value, both derived from the measured spread.
    """

    inputs: list[GoldenTensor]
    outputs: list[GoldenTensor]
    max_disagree: float
    atol: float


class BaselineColumn(msgspec.Struct, frozen=True):
    """One column of the baseline: how it is counted, and its counts."""

    spec: ColumnSpec
    counts: Column


class BaselineGroup(msgspec.Struct, frozen=True):
    """One group's part of the baseline: counts by column, on the edges of the whole."""

    n: int
    columns: dict[str, Column]


class Baseline(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sketches of the training-like data, by column, in MessagePack.

    Columns: one per feature, `prediction` (categorical, where the output is a
    class), `confidence`, and `latency_us` (edges only, its counts are empty).
    Slices, such as ``site``, have the same counts for groups of the data, such as ``harbour``,
    without `latency_us`.
    """

    columns: dict[str, BaselineColumn]
    n: int
    slices: dict[str, dict[str, BaselineGroup]] = {}


class CandidateReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one candidate of the search.

    Attributes:
        precision: its form, such as ``int8`` or ``int8-dynamic``.
        accuracy: the metric's value.
        drop_interval: 95 %, of how much worse than fp32 it is.
        agreement: share of predictions that are fp32's.
        sqnr_db: signal to quantization noise of the output.
        left_float: layers that stay in float.
    """

    precision: str
    size_bytes: int
    accuracy: float | None
    chosen: bool
    reason: str
    drop_interval: tuple[float, float] | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    left_float: list[str] = []


class SliceReport(msgspec.Struct, frozen=True):
    """How the shipped first choice fares on a group of the evaluation data."""

    slice: str
    group: str
    n: int
    value: float
    drop: float
    drop_interval: tuple[float, float]


class Evaluation(msgspec.Struct, frozen=True, omit_defaults=True):
    """The evaluation report of a bundle: no timings, those go beside the bundle."""

    metric: str
    n: int
    reference: float  # the fp32 model's value
    candidates: list[CandidateReport]
    slices: list[SliceReport] = []
    isa: str = ""  # class of the machine that measured; others are unmeasured


def parse_manifest(data: bytes) -> Manifest:
    """Decode a manifest and check what its types do not say.

    Raises:
        FormatError: code ``manifest``; the message names the field.
    """
    manifest = from_json(data, Manifest, limit=MAX_MANIFEST_BYTES)
    try:
        check_id(manifest.model, "model")
        check_version(manifest.model_version)
        for variant in manifest.variants:
            check_version(variant.min_agent)
    except UsageError as error:
        raise FormatError(f"manifest: {error}", "manifest") from None
    for what, count, least, most in (
        ("variants", len(manifest.variants), 1, MAX_VARIANTS),
        ("inputs", len(manifest.inputs), 1, MAX_TENSORS),
        ("outputs", len(manifest.outputs), 1, MAX_TENSORS),
        ("features", len(manifest.features), 0, MAX_COLUMNS),
    ):
        if not least <= count <= most:
            raise FormatError(
                f"manifest: expected {least} to {most} {what}, got {count}", "manifest"
            )
    _check_names("variants", [variant.id for variant in manifest.variants])
    _check_names("inputs", [tensor.name for tensor in manifest.inputs])
    _check_names("outputs", [tensor.name for tensor in manifest.outputs])
    _check_names("features", [feature.name for feature in manifest.features])
    files = [manifest.golden, manifest.baseline, manifest.evaluation, manifest.card]
    files += [manifest.bom] if isinstance(manifest.bom, FileRef) else []
    for file in (*files, *(variant.file for variant in manifest.variants)):
        check_digest(file.digest)
        if not 0 <= file.size_bytes <= MAX_FILE_BYTES:
            raise FormatError(
                f"manifest: expected a file of at most {MAX_FILE_BYTES} bytes, "
                f"got {file.size_bytes}",
                "manifest",
            )
    for tensor in (*manifest.inputs, *manifest.outputs):
        sizes = all(-1 <= size <= MAX_DIMENSION for size in tensor.shape)
        if len(tensor.shape) > MAX_RANK or not sizes:
            raise FormatError(f"manifest: {tensor.name!r} has an impossible shape", "manifest")
    if len(manifest.needs) > MAX_REQUIRES:
        raise FormatError(f"manifest: expected at most {MAX_REQUIRES} requires", "manifest")
    for need in manifest.needs:
        if parse_requirement(need) is None:
            raise FormatError(
                f"manifest: expected requires such as onnxruntime-extensions>=0.14, got {need[:80]!r}",
                "manifest",
            )
    if manifest.prediction.output not in {tensor.name for tensor in manifest.outputs}:
        raise FormatError("manifest: the prediction is read from no output", "manifest")
    return manifest


def parse_baseline(data: bytes) -> Baseline:
    """Decode a baseline and check that its columns can be counted on.

    Raises:
        FormatError: not a baseline; edges that do not ascend, or counts that do not add up.
    """
    baseline = from_msgpack(data, Baseline, limit=MAX_BASELINE_BYTES)
    _check_names("columns", list(baseline.columns))
    if len(baseline.columns) > MAX_COLUMNS:
        raise FormatError(f"baseline: expected at most {MAX_COLUMNS} columns", "baseline")
    for name, column in baseline.columns.items():
        try:
            check_spec(column.spec)
            check_column(column.counts, column.spec)
        except FormatError as error:
            raise FormatError(f"baseline: column {name}: {error}", "baseline") from None
    _check_slices(baseline)
    return baseline


def _check_slices(baseline: Baseline) -> None:
    _check_names("slices", list(baseline.slices))
    if len(baseline.slices) > MAX_SLICES:
        raise FormatError(f"baseline: expected at most {MAX_SLICES} slices", "baseline")
    for slice_, groups in baseline.slices.items():
        _check_names("groups", list(groups))
        if len(groups) > MAX_GROUPS:
            raise FormatError(f"baseline: expected at most {MAX_GROUPS} groups", "baseline")
        for group, part in groups.items():
            where = f"baseline: {slice_[:80]} {group[:80]}"
            for name, counts in part.columns.items():
                known = baseline.columns.get(name)
                if known is None:
                    raise FormatError(f"{where}: there is no column {name[:80]!r}", "baseline")
                try:
                    check_column(counts, known.spec)
                except FormatError as error:
                    raise FormatError(f"{where}: column {name}: {error}", "baseline") from None


def _check_names(what: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise FormatError(f"manifest: expected {what} of different names", "manifest")
    for name in names:
        if not 0 < len(name) <= MAX_TEXT or not name.isprintable():
            raise FormatError(f"manifest: {name[:80]!r} is no name for {what}", "manifest")
