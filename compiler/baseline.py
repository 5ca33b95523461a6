"""The baseline: what the inputs and predictions of ordinary data look like, as counts.

Counted by the code that devices count with (`skerry.counting`, `skerry.features`,
`skerry.reading`), on the outputs of the variant that devices prefer, so that a
difference between live and baseline is one of the data. Of a model that takes each
sample by itself the rows are those that a device counts: along the first axis of a call.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.ports import Arrays, Ports
from skerry.canonical import to_msgpack
from skerry.counting import count_categorical, count_numeric, quantile_spec
from skerry.errors import UsageError
from skerry.features import extractor
from skerry.manifest import (
    MAX_GROUPS,
    MAX_SLICES,
    Baseline,
    BaselineColumn,
    BaselineGroup,
    FeatureSpec,
    PredictionSpec,
)
from skerry.reading import NO_CLASS, read_predictions
from skerry.sketch import MAX_BINS, CategoricalSpec, Column, NumericCounts, NumericSpec

__all__ = ["LATENCY_EDGES", "as_rows", "make_baseline", "summarise"]

EDGES_PER_DECADE: Final = 8
LEAST_GROUP: Final = 20  # samples, without which a group of a slice says nothing
LATENCY_EDGES: Final = [
    float(f"{10 ** (step / EDGES_PER_DECADE):.6g}") for step in range(7 * EDGES_PER_DECADE + 1)
]  # microseconds, 1 us to 10 s: the same in every bundle, so that releases can be compared


def make_baseline(
    ports: Ports,
    samples: Arrays,
    output: NDArray[Any],
    reading: PredictionSpec,
    features: Sequence[FeatureSpec],
    class_names: Sequence[str],
    groups: Mapping[str, NDArray[Any]] | None = None,
) -> bytes:
    """Return the baseline as MessagePack.

    Args:
        ports: the model's inputs.
        samples: baseline samples, as the model takes them.
        output: the preferred variant's answer to them, [n, ...].
        reading: how predictions are read from it.
        features: of the recipe.
        class_names: in the order of the output; none where no class is predicted.
        groups: by slice, each sample's group, [n]; a group of fewer than 20 samples is left out.

    Raises:
        UsageError: a feature that its input does not have, or too many slices or groups.
    """
    answers = as_rows(ports, output)
    classes, confidence = read_predictions(answers, reading.kind, reading.threshold)
    values: dict[str, NDArray[Any]] = {
        f.name: summarise(f.name, f.kind, as_rows(ports, samples[f.input]))
        for f in sorted(features, key=lambda feature: feature.name)
    }
    columns = {name: _numeric(column) for name, column in values.items()}
    # more classes than a sketch has cells: confidence still tells of a change
    if 0 < len(class_names) <= MAX_BINS and not (classes == NO_CLASS).all():
        spec = CategoricalSpec(list(class_names))
        columns["prediction"] = BaselineColumn(spec, count_categorical(classes, spec))
        values["prediction"] = classes
    columns["confidence"], values["confidence"] = _numeric(confidence), confidence
    slices = _slices(columns, values, groups or {}, len(answers))
    latency = NumericSpec(LATENCY_EDGES, scale=1)
    columns["latency_us"] = BaselineColumn(
        latency, NumericCounts(n=0, bins=[0] * (len(LATENCY_EDGES) - 1))
    )
    return to_msgpack(Baseline(columns, len(answers), slices))


def _slices(
    columns: Mapping[str, BaselineColumn],
    values: Mapping[str, NDArray[Any]],
    groups: Mapping[str, NDArray[Any]],
    rows: int,
) -> dict[str, dict[str, BaselineGroup]]:
    """Return the counts of every group that is large enough, on the edges of the whole."""
    if len(groups) > MAX_SLICES:
        raise UsageError(f"expected at most {MAX_SLICES} baseline_slices, got {len(groups)}")
    found: dict[str, dict[str, BaselineGroup]] = {}
    for slice_, of_sample in sorted(groups.items()):
        of_row = np.repeat(of_sample, rows // max(1, len(of_sample)))
        names, sizes = np.unique(of_sample, return_counts=True)
        large = [name for name, size in zip(names, sizes, strict=True) if size >= LEAST_GROUP]
        if len(large) > MAX_GROUPS:
            raise UsageError(
                f"expected at most {MAX_GROUPS} groups of at least {LEAST_GROUP} samples in "
                f"baseline_slices {slice_!r}, got {len(large)}; put them into fewer"
            )
        strange = [str(name) for name in large if not str(name) or not str(name).isprintable()]
        if strange:
            raise UsageError(
                f"expected names of groups in baseline_slices {slice_!r}, got {strange[0][:80]!r}"
            )
        found[slice_] = {}
        for name in large:
            rows_of = of_row == name
            counts = {
                column: _counted(values[column][rows_of], columns[column]) for column in values
            }
            found[slice_][str(name)] = BaselineGroup(int(rows_of.sum()), counts)
    return found


def _counted(values: NDArray[Any], column: BaselineColumn) -> Column:
    if isinstance(column.spec, CategoricalSpec):
        return count_categorical(values, column.spec)
    return count_numeric(values, column.spec)


def as_rows(ports: Ports, values: NDArray[Any]) -> NDArray[Any]:
    """Return samples, or answers to them, as the rows that a device counts."""
    if not ports.by_sample or values.ndim < 2:
        return values
    return values.reshape(-1, *values.shape[2:])


def summarise(name: str, kind: str, rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return one feature of every row, float32 [n].

    Raises:
        UsageError: the kind does not fit this input.
    """
    image, photo = kind.startswith("image."), kind.startswith("photo.")
    if image and (rows.ndim < 3 or min(rows.shape[-2:]) < 3):
        raise UsageError(
            f"feature {name!r} ({kind}) needs images [batch, ..., height, width] of at least "
            f"3 x 3; the input is {list(rows.shape)}"
        )
    if photo and (rows.ndim != 4 or min(rows.shape[1:3]) < 3 or rows.shape[3] > 4):
        raise UsageError(
            f"feature {name!r} ({kind}) needs photos [batch, height, width, channels] of at "
            f"least 3 x 3; the input is {list(rows.shape)}"
        )
    if kind.startswith("text."):
        if rows.dtype.kind != "O":
            raise UsageError(f"feature {name!r} ({kind}) needs texts; the input is {rows.dtype}")
        return extractor(kind)(rows)
    if rows.dtype.kind not in "iufb":
        raise UsageError(f"feature {name!r} ({kind}) needs numbers; the input is {rows.dtype}")
    return extractor(kind)(np.asarray(rows, dtype=np.float32))


def _numeric(values: NDArray[Any]) -> BaselineColumn:
    spec = quantile_spec(values)
    return BaselineColumn(spec, count_numeric(values, spec))
