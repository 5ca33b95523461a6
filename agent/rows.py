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
        self._places: Final = _columns_of_one_input(manifest)
        self._one: Final = _reader_of_one(manifest)

    def rows(self, tensors: Tensors, outputs: Tensors) -> list[Row]:
        """Return prediction, confidence and features of every row of a batch."""
        reading = self._reading
        output = outputs[reading.output]
        if len(output) == 1:
            prediction, value = read_prediction(output, reading.kind, reading.threshold)
            return [Row(prediction, value, self._one(tensors))]
        return [
            Row(int(prediction), value, features)
            for prediction, value, _, *features in self.table(tensors, outputs).tolist()
        ]

    def table(self, tensors: Tensors, outputs: Tensors) -> NDArray[np.float64]:
        """Return the rows of a batch as they are counted.

        Returns:
            float64 [rows, 3 + features]: prediction, confidence, room for the latency, features.
        """
        reading = self._reading
        classes, confidence = read_predictions(
            outputs[reading.output], reading.kind, reading.threshold
        )
        table = np.zeros((len(classes), 3 + len(self._features)))
        table[:, 0], table[:, 1] = classes, confidence
        if self._places is not None:
            name, places = self._places
            values = _numbers(tensors[name]).reshape(len(table), -1)
            if max(places) < values.shape[1]:
                table[:, 3:] = values[:, places]
                return table
        for place, (name, compute) in enumerate(self._features, 3):
            table[:, place] = compute(_numbers(tensors[name]))
        return table


def _reader_of_one(manifest: Manifest) -> Callable[[Tensors], list[float]]:
    """Return the function that reads the features of a request of one row, in their order."""
    features = manifest.features
    found = _columns_of_one_input(manifest)
    if found is not None:
        table, places = found
        pick, most = itemgetter(*places), max(places)

        def columns(tensors: Tensors) -> list[float]:
            values = _numbers(tensors[table]).ravel().tolist()
            values += [float("nan")] * (most + 1 - len(values))
            return list(pick(values))

        return columns
    computed = [(feature.input, extractor(feature.kind)) for feature in features]

    def each(tensors: Tensors) -> list[float]:
        return [float(compute(_numbers(tensors[name]))[0]) for name, compute in computed]

    return each


def _columns_of_one_input(manifest: Manifest) -> tuple[str, list[int]] | None:
    """Return an input's name and places in it, where the features are some of its columns."""
    places = [column_of(feature.kind) for feature in manifest.features]
    inputs = {feature.input for feature in manifest.features}
    known = [place for place in places if place is not None]
    if len(known) == len(places) > 1 and len(inputs) == 1:
        return inputs.pop(), known
    return None


def _numbers(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as features take it: numbers as the compiler counted them, or text."""
    if tensor.dtype == np.float32 or tensor.dtype.kind == "O":
        return tensor
    return tensor.astype(np.float32)
