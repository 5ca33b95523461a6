"""How good a variant is: its metric, and its drop below fp32 with an interval.

Both answer the same rows, so the comparison is paired: only rows on which exactly one
of the two is right say anything (McNemar). The interval on the drop is the adjusted
Wald interval for matched pairs of Agresti and Min (2005), which adds half a row to
each of the four cells: closed form, no chance in it, and honest even where the two
never differ.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import RefusedError, UsageError
from skerry.reading import read_predictions

__all__ = ["Quality", "compare"]

Z: Final = 1.959964  # 95 %


@dataclass(frozen=True, slots=True)
class Quality:
    """A variant against fp32 on the evaluation rows.

    Attributes:
        value: the metric, 0 to 1.
        n: rows.
        drop: fp32's value minus this one's.
        drop_low: lower end of the drop's 95 % interval.
        drop_high: upper end.
        agreement: share of rows on which both predict the same.
    """

    value: float
    n: int
    drop: float
    drop_low: float
    drop_high: float
    agreement: float


def compare(output: NDArray[Any], reference: NDArray[Any], labels: NDArray[np.int64]) -> Quality:
    """Return the accuracy of a variant's output, paired with fp32's.

    Args:
        output: the variant's, float [n, classes].
        reference: fp32's, float [n, classes].
        labels: right class of each row, int64 [n].

    Raises:
        UsageError: a label that no class has.
        RefusedError: the output is not finite.
    """
    classes = int(np.prod(output.shape[1:]))
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(
            f"expected labels of 0 to {classes - 1}, one per value of the output; "
            f"got {labels.min()} to {labels.max()}"
        )
    if not np.isfinite(output).all():
        raise RefusedError("the model gives NaN or infinity on the evaluation rows")
    mine, _ = read_predictions(output, "argmax")
    theirs, _ = read_predictions(reference, "argmax")
    right, reference_right = mine == labels, theirs == labels
    lost = int((reference_right & ~right).sum())
    gained = int((right & ~reference_right).sum())
    low, high = drop_interval(lost, gained, len(labels))
    return Quality(
        value=float(right.mean()),
        n=len(labels),
        drop=(lost - gained) / len(labels),
        drop_low=low,
        drop_high=high,
        agreement=float((mine == theirs).mean()),
    )


def drop_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of the drop.

    Args:
        lost: rows that only fp32 has right.
        gained: rows that only the variant has right.
        n: all rows.
    """
    m = n + 2.0
    difference = (lost - gained) / m
    spread = ((lost + gained + 1.0) / m - difference * difference) / m
    half = Z * max(spread, 0.0) ** 0.5
    return max(-1.0, difference - half), min(1.0, difference + half)
