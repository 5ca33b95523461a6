"""How one prediction is read from a model's output: the same here, there and everywhere.

The compiler reads the baseline's predictions with it and the device those it
answers, so that the two can never be compared across different readings.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_CLASS", "read_predictions"]

NO_CLASS = -1


def read_predictions(
    output: NDArray[Any], kind: Literal["argmax", "value"]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the class and the confidence of each row.

    Args:
        output: numeric [batch, ...] with at least one value per row; trailing axes are
            read as one.
        kind: ``argmax``: the class is the position of the row's largest value, the
            confidence that value as the model gives it. ``value``: no class, the
            confidence is the row's first value.

    Returns:
        Classes int64 [batch], `NO_CLASS` where there are none; confidences float64 [batch].
    """
    rows = output.reshape(output.shape[0], -1)
    if kind == "value":
        return np.full(rows.shape[0], NO_CLASS, dtype=np.int64), rows[:, 0].astype(np.float64)
    classes = rows.argmax(axis=1).astype(np.int64)
    return classes, rows[np.arange(rows.shape[0]), classes].astype(np.float64)
