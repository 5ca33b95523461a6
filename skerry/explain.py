"""Why a model answered as it did: attributions from its answers alone, for any model.

`occlusion` hides one patch of an input after the other and tells how much the answer falls:
a map of where an image, or when a sound, mattered. `shapley` shares the difference between
an answer and the usual one among the features of a row, fairly: what a feature adds,
averaged over the orders in which features may come to be known.

Sources: Zeiler and Fergus 2014 (occlusion); Strumbelj and Kononenko 2014, with antithetic
orders after Mitchell, Cooper, Frank and Holmes 2022 (sampled Shapley values).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import UsageError

__all__ = ["Attribution", "Predict", "occlusion", "permutation_importance", "shapley"]

Floats = NDArray[np.float64]
Predict = Callable[[NDArray[Any]], Floats]  # inputs [n, ...] -> the explained value of each, [n]

BATCH: Final = 256  # inputs handed to the model at once


@dataclass(frozen=True, slots=True)
class Attribution:
    """How much each part of an input adds to an answer.

    Attributes:
        values: float64; of `shapley` one per feature, of `occlusion` one per patch.
        answer: of the model to the input.
        usual: of the model to the background; where everything is hidden, for `occlusion`.
    """

    values: Floats
    answer: float
    usual: float


def shapley(
    predict: Predict,
    row: NDArray[Any],
    background: NDArray[Any],
    *,
    rng: np.random.Generator,
    orders: int = 64,
) -> Attribution:
    """Share an answer among the features of a row.

    The values add up to the answer minus the usual one, exactly, whatever is sampled.

    Args:
        predict: the model.
        row: features, [k].
        background: rows that stand for not knowing a feature, [m, k].
        rng: the source of the orders.
        orders: sampled orders of the features; each is used forwards and backwards.

    Raises:
        UsageError: row and background do not fit together.
    """
    row, background = np.asarray(row), np.asarray(background)
    if row.ndim != 1 or background.ndim != 2 or background.shape[1:] != row.shape:
        raise UsageError(
            f"expected a row of features and background rows like it, got {list(row.shape)} and "
            f"{list(background.shape)}"
        )
    if len(background) == 0 or orders < 1:
        raise UsageError("expected at least one background row and one order")
    k = len(row)
    values = np.zeros(k)
    for _ in range(orders):
        order = rng.permutation(k)
        for way in (order, order[::-1]):
            values[way] += np.diff(_walk(predict, row, background, way))
    answer = float(predict(row[None])[0])
    usual = float(_in_batches(predict, background).mean())
    return Attribution(values / (2 * orders), answer, usual)


def _walk(
    predict: Predict, row: NDArray[Any], background: NDArray[Any], way: NDArray[np.int64]
) -> Floats:
    """Return the mean answers as more features become known, [k + 1]; a few steps at once.

    All steps of a wide row together would take its width squared.
    """
    k, m = len(row), len(background)
    at_once = max(1, BATCH // m)
    known = background.copy()
    answers = np.empty(k + 1)
    for start in range(0, k + 1, at_once):
        stop = min(start + at_once, k + 1)
        steps = np.empty((stop - start, m, k), background.dtype)
        for j in range(start, stop):
            if j:
                known[:, way[j - 1]] = row[way[j - 1]]
            steps[j - start] = known
        found = _in_batches(predict, steps.reshape(-1, k)).reshape(stop - start, m)
        answers[start:stop] = found.mean(axis=1)
    return answers


def occlusion(
    predict: Predict,
    value: NDArray[Any],
    *,
    patch: tuple[int, ...],
    fill: float | NDArray[Any] = 0.0,
) -> Attribution:
    """Hide one patch after the other and tell by how much the answer falls.

    Args:
        predict: the model.
        value: one input without its batch axis.
        patch: size of a patch along each of the last axes, such as ``(4, 4)`` for images.
        fill: what stands in a hidden place: a number, or an array like the input.

    Returns:
        Values of the shape of the grid of patches, positive where the patch spoke for the answer.

    Raises:
        UsageError: a patch that does not fit the input.
    """
    value = np.asarray(value)
    axes = value.shape[value.ndim - len(patch) :]
    if not patch or len(patch) > value.ndim or any(p < 1 for p in patch):
        raise UsageError(f"expected a patch for the last axes of {list(value.shape)}, got {patch}")
    grid = tuple(-(-size // step) for size, step in zip(axes, patch, strict=True))
    blank = np.broadcast_to(np.asarray(fill, dtype=value.dtype), value.shape)
    answer = float(predict(value[None])[0])
    usual = float(predict(np.ascontiguousarray(blank)[None])[0])
    falls = np.empty(prod(grid))
    for start in range(0, len(falls), BATCH):
        places = range(start, min(start + BATCH, len(falls)))
        hidden = np.repeat(value[None], len(places), axis=0)
        for copy, place in zip(hidden, places, strict=True):
            cell = np.unravel_index(place, grid)
            where: tuple[Any, ...] = (
                ...,
                *(slice(c * p, (c + 1) * p) for c, p in zip(cell, patch, strict=True)),
            )
            copy[where] = blank[where]
        falls[start : start + len(places)] = answer - predict(hidden)
    return Attribution(falls.reshape(grid), answer, usual)


def permutation_importance(
    score: Callable[[NDArray[Any]], float],
    rows: NDArray[Any],
    *,
    rng: np.random.Generator,
    rounds: int = 5,
) -> Floats:
    """Return how much a score falls when one feature is shuffled among the rows, float64 [k].

    Args:
        score: of rows, higher is better; it knows their labels, in the same order.
        rows: [n, k].
        rng: the source of the shuffles.
        rounds: shuffles of each feature.

    Source: Breiman 2001, section 10.
    """
    whole, falls = score(rows), np.zeros(rows.shape[1])
    for feature in range(rows.shape[1]):
        for _ in range(rounds):
            shuffled = rows.copy()
            shuffled[:, feature] = rng.permutation(shuffled[:, feature])
            falls[feature] += whole - score(shuffled)
    return falls / rounds


def _in_batches(predict: Predict, rows: NDArray[Any]) -> Floats:
    parts = [predict(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])
