"""The baseline: what the inputs and predictions of ordinary data look like, as counts.

Counted by the code that devices count with (`skerry.counting`, `skerry.features`,
`skerry.reading`), on the outputs of the variant that devices prefer, so that a
difference between live and baseline is one of the data. Of a model that takes each
sample by itself the rows are those that a device counts: along the first axis of a call.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.ports import Arrays, Ports
from skerry.canonical import to_msgpack
from skerry.counting import count_categorical, count_numeric, quantile_spec
from skerry.errors import UsageError
from skerry.features import extractor
from skerry.manifest import Baseline, BaselineColumn, FeatureSpec, PredictionSpec
from skerry.reading import NO_CLASS, read_predictions
from skerry.sketch import MAX_BINS, CategoricalSpec, NumericCounts, NumericSpec

__all__ = ["LATENCY_EDGES", "as_rows", "make_baseline", "summarise"]

EDGES_PER_DECADE: Final = 8
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
) -> bytes:
    """Return the baseline as MessagePack.

    Args:
        ports: the model's inputs.
        samples: baseline samples, as the model takes them.
        output: the preferred variant's answer to them, [n, ...].
        reading: how predictions are read from it.
        features: of the recipe.
        class_names: in the order of the output; none where no class is predicted.

    Raises:
        UsageError: a feature that its input does not have.
    """
    answers = as_rows(ports, output)
    classes, confidence = read_predictions(answers, reading.kind, reading.threshold)
    columns = {
        f.name: _numeric(summarise(f.name, f.kind, as_rows(ports, samples[f.input])))
        for f in sorted(features, key=lambda feature: feature.name)
    }
    # more classes than a sketch has cells: confidence still tells of a change
    if 0 < len(class_names) <= MAX_BINS and not (classes == NO_CLASS).all():
        spec = CategoricalSpec(list(class_names))
        columns["prediction"] = BaselineColumn(spec, count_categorical(classes, spec))
    columns["confidence"] = _numeric(confidence)
    latency = NumericSpec(LATENCY_EDGES, scale=1)
    columns["latency_us"] = BaselineColumn(
        latency, NumericCounts(n=0, bins=[0] * (len(LATENCY_EDGES) - 1))
    )
    return to_msgpack(Baseline(columns, n=len(answers)))


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
    if rows.dtype.kind not in "iufb":
        raise UsageError(f"feature {name!r} ({kind}) needs numbers; the input is {rows.dtype}")
    return extractor(kind)(np.asarray(rows, dtype=np.float32))


def _numeric(values: NDArray[Any]) -> BaselineColumn:
    spec = quantile_spec(values)
    return BaselineColumn(spec, count_numeric(values, spec))
