"""The baseline: what the inputs and predictions of ordinary data look like, as counts.

Counted by the code that devices count with (`skerry.counting`, `skerry.features`,
`skerry.reading`), on the outputs of the variant that devices prefer, so that a
difference between live and baseline is one of the data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.canonical import to_msgpack
from skerry.counting import count_categorical, count_numeric, quantile_spec
from skerry.errors import UsageError
from skerry.features import extractor
from skerry.manifest import Baseline, BaselineColumn
from skerry.reading import read_predictions
from skerry.sketch import MAX_BINS, CategoricalSpec, NumericCounts, NumericSpec

__all__ = ["LATENCY_EDGES", "make_baseline", "summarise"]

EDGES_PER_DECADE: Final = 8
LATENCY_EDGES: Final = [
    float(f"{10 ** (step / EDGES_PER_DECADE):.6g}") for step in range(7 * EDGES_PER_DECADE + 1)
]  # microseconds, 1 us to 10 s: the same in every bundle, so that releases can be compared


def make_baseline(
    rows: NDArray[Any],
    output: NDArray[Any],
    features: Mapping[str, str],
    class_names: Sequence[str],
) -> bytes:
    """Return the baseline as MessagePack.

    Args:
        rows: baseline rows [n, ...], as the model takes them.
        output: the preferred variant's answer to them, float [n, classes].
        features: name -> kind of `skerry.features`.
        class_names: in the order of the output.

    Raises:
        UsageError: a feature that this input does not have.
    """
    classes, confidence = read_predictions(output, "argmax")
    columns = {
        name: _numeric(summarise(name, kind, rows)) for name, kind in sorted(features.items())
    }
    # more classes than a sketch has cells: confidence still tells of a change
    if len(class_names) <= MAX_BINS:
        spec = CategoricalSpec(list(class_names))
        columns["prediction"] = BaselineColumn(spec, count_categorical(classes, spec))
    columns["confidence"] = _numeric(confidence)
    latency = NumericSpec(LATENCY_EDGES, scale=1)
    columns["latency_us"] = BaselineColumn(
        latency, NumericCounts(n=0, bins=[0] * (len(LATENCY_EDGES) - 1))
    )
    return to_msgpack(Baseline(columns, n=len(rows)))


def summarise(name: str, kind: str, rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return one feature of every row, float32 [n].

    Raises:
        UsageError: the kind does not fit this input.
    """
    needs = 3 if kind.startswith("image.") else 1
    if rows.ndim < needs or (needs == 3 and min(rows.shape[-2:]) < 3):
        raise UsageError(
            f"feature {name!r} ({kind}) needs images [batch, ..., height, width] of at least "
            f"3 x 3; the input is {list(rows.shape)}"
        )
    return extractor(kind)(np.asarray(rows, dtype=np.float32))


def _numeric(values: NDArray[Any]) -> BaselineColumn:
    spec = quantile_spec(values)
    return BaselineColumn(spec, count_numeric(values, spec))
