"""How one prediction is read from a model's output: the same here, there and everywhere.

The compiler reads the baseline's predictions with it and the device those it
answers, so that the two can never be compared across different readings.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skerry.manifest import ReadingKind

__all__ = ["NO_CLASS", "read_prediction", "read_predictions"]

NO_CLASS = -1
FEW = 256  # values that are looked at one by one


def read_predictions(
    output: NDArray[Any], kind: ReadingKind, threshold: float = 0.5
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the class and the confidence of each row.

    Args:
        output: numeric [batch, ...] with at least one value per row; trailing axes are
            read as one.
        kind: ``argmax``: the class is the position of the row's largest value, the
            confidence that value as the model gives it. ``threshold``: the class is 1 where
            the row's first value reaches `threshold` and 0 elsewhere, the confidence that
            value. ``value``: no class, the confidence is the row's first value. ``mean``: no
            class, the confidence is the mean of the row.
        threshold: for the kind of that name.

    Returns:
        Classes int64 [batch], `NO_CLASS` where there are none; confidences float64 [batch].
    """
    rows = output.reshape(output.shape[0], -1)
    if kind == "argmax":
        classes = rows.argmax(axis=1).astype(np.int64)
        return classes, rows[np.arange(rows.shape[0]), classes].astype(np.float64)
    none = np.full(rows.shape[0], NO_CLASS, dtype=np.int64)
    if kind == "mean":
        return none, rows.mean(axis=1, dtype=np.float64)
    values = rows[:, 0].astype(np.float64)
    return (none if kind == "value" else (values >= threshold).astype(np.int64)), values


def read_prediction(
    output: NDArray[Any], kind: ReadingKind, threshold: float = 0.5
) -> tuple[int, float]:
    """Return class and confidence of a single row, as `read_predictions` does, and sooner.

    Args:
        output: numeric [1, ...].
        kind: as there.
        threshold: as there.
    """
    if kind != "mean" and output.size <= FEW:
        values = output.ravel().tolist()
        if kind == "value":
            return NO_CLASS, float(values[0])
        if kind == "threshold":
            return int(values[0] >= threshold), float(values[0])
        if not math.isnan(sum(values)):  # NaN has a place of its own in numpy's order
            best = max(values)
            return values.index(best), float(best)
    classes, confidence = read_predictions(output, kind, threshold)
    return int(classes[0]), float(confidence[0])
