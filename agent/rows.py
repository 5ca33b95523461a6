"""What is kept of each row of a request: its prediction, and its features.

Most requests are one row, and most of what a small model's answer costs is the number of calls
that it takes, not what they compute. So a single row is read without the arrays that many need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.features import column_of, extractor
from skerry.manifest import Manifest
from skerry.reading import read_prediction, read_predictions

__all__ = ["Row", "RowReader"]

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of one row of a request."""

    prediction: int
    confidence: float
    features: list[float]


class RowReader:
    """Reads the rows of one model's requests.

    Args:
        manifest: of its bundle.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._reading = manifest.prediction
        self._features: Final = [
            (feature.input, extractor(feature.kind)) for feature in manifest.features
        ]
        self._one: Final = _reader_of_one(manifest)

    def rows(self, tensors: Tensors, outputs: Tensors) -> list[Row]:
        """Return prediction, confidence and features of every row of a batch."""
        reading = self._reading
        output = outputs[reading.output]
        if len(output) == 1:
            prediction, value = read_prediction(output, reading.kind, reading.threshold)
            return [Row(prediction, value, self._one(tensors))]
        classes, confidence = read_predictions(output, reading.kind, reading.threshold)
        columns = [compute(_numbers(tensors[name])).tolist() for name, compute in self._features]
        features = zip(*columns, strict=True) if columns else ([] for _ in range(len(classes)))
        return [
            Row(prediction, value, list(row))
            for prediction, value, row in zip(
                classes.tolist(), confidence.tolist(), features, strict=True
            )
        ]


def _reader_of_one(manifest: Manifest) -> Callable[[Tensors], list[float]]:
    """Return the function that reads the features of a request of one row, in their order."""
    features = manifest.features
    places = [column_of(feature.kind) for feature in features]
    inputs = {feature.input for feature in features}
    known = [place for place in places if place is not None]
    if len(known) == len(features) > 1 and len(inputs) == 1:
        (table,) = inputs
        pick, most = itemgetter(*known), max(known)

        def columns(tensors: Tensors) -> list[float]:
            values = _numbers(tensors[table]).ravel().tolist()
            values += [float("nan")] * (most + 1 - len(values))
            return list(pick(values))

        return columns
    computed = [(feature.input, extractor(feature.kind)) for feature in features]

    def each(tensors: Tensors) -> list[float]:
        return [float(compute(_numbers(tensors[name]))[0]) for name, compute in computed]

    return each


def _numbers(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as features take it: numbers as the compiler counted them, or text."""
    if tensor.dtype == np.float32 or tensor.dtype.kind == "O":
        return tensor
    return tensor.astype(np.float32)
