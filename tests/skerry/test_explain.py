"""Attributions share an answer fairly: against exact Shapley values, and against SHAP's own."""

import itertools
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import UsageError
from skerry.explain import Predict, occlusion, permutation_importance, shapley

VECTORS = Path(__file__).parents[1] / "vectors" / "shap.json"
RNG = np.random.default_rng(3)


def new() -> np.random.Generator:
    return np.random.default_rng(0)


def exact(predict: Predict, row: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Shapley values by their definition: every subset of the other features."""
    k = len(row)
    worth = {}
    for size in range(k + 1):
        for known in itertools.combinations(range(k), size):
            rows = background.copy()
            rows[:, list(known)] = row[list(known)]
            worth[frozenset(known)] = float(predict(rows).mean())
    values = np.zeros(k)
    for feature in range(k):
        others = [i for i in range(k) if i != feature]
        for size in range(k):
            weight = math.factorial(size) * math.factorial(k - size - 1) / math.factorial(k)
            for known in itertools.combinations(others, size):
                with_it = worth[frozenset({*known, feature})]
                values[feature] += weight * (with_it - worth[frozenset(known)])
    return values


def crooked(rows: np.ndarray) -> np.ndarray:
    """Has products, kinks and a feature that nobody needs."""
    value = rows[:, 0] * rows[:, 1] + np.maximum(rows[:, 2], 0) + 0.5 * np.sin(3 * rows[:, 3])
    return np.asarray(value + 0 * rows[:, 4])


def test_it_comes_near_the_exact_values() -> None:
    row, background = RNG.normal(size=5), RNG.normal(size=(20, 5))
    found = shapley(crooked, row, background, orders=400, rng=new())
    assert np.abs(found.values - exact(crooked, row, background)).max() < 0.03
    assert found.values[4] == 0.0


def test_a_sum_is_shared_exactly_from_one_order_on() -> None:
    weights, row, background = RNG.normal(size=6), RNG.normal(size=6), RNG.normal(size=(9, 6))
    found = shapley(lambda rows: rows @ weights, row, background, orders=1, rng=new())
    assert np.allclose(found.values, weights * (row - background.mean(axis=0)))


@given(st.integers(1, 5), st.integers(0, 1000))
def test_the_values_add_up_whatever_is_sampled(orders: int, seed: int) -> None:
    row, background = np.arange(5.0), np.ones((3, 5))
    found = shapley(crooked, row, background, orders=orders, rng=np.random.default_rng(seed))
    assert found.values.sum() == pytest.approx(found.answer - found.usual)


def forest(trees: list[Any]) -> Predict:
    """A model of trees as lists: [feature, threshold, left, right] or a number."""

    def one(node: Any, row: np.ndarray) -> float:
        while isinstance(node, list):
            feature, threshold, left, right = node
            node = left if row[feature] <= threshold else right
        return float(node)

    return lambda rows: np.array([sum(one(tree, row) for tree in trees) for row in rows])


def network(layers: list[Any]) -> Predict:
    """A small network: weights and biases, with a kink between."""

    def predict(rows: np.ndarray) -> np.ndarray:
        value = np.asarray(rows, dtype=np.float64)
        for place, (weights, bias) in enumerate(layers):
            value = value @ np.asarray(weights) + np.asarray(bias)
            value = np.maximum(value, 0) if place < len(layers) - 1 else value
        return value[:, 0]

    return predict


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text())["cases"], ids=lambda c: c["name"])
def test_it_agrees_with_shap(case: dict[str, Any]) -> None:
    """Values of shap's exact explainer (0.48 or newer) on the same models and background."""
    model = case["model"]
    predict = forest(model["trees"]) if "trees" in model else network(model["layers"])
    background = np.asarray(case["background"])
    for row, wanted, answer in zip(case["rows"], case["values"], case["answers"], strict=True):
        found = shapley(predict, np.asarray(row), background, orders=300, rng=new())
        assert found.answer == pytest.approx(answer, abs=1e-9)
        scale = np.abs(wanted).max()
        assert np.abs(found.values - np.asarray(wanted)).max() < 0.05 * scale


def test_occlusion_finds_the_patch_that_matters() -> None:
    image = np.zeros((1, 12, 12), np.float32)
    image[0, 4:8, 8:12] = 1.0
    found = occlusion(lambda x: x[:, 0, 4:8, 8:12].mean(axis=(1, 2)), image, patch=(4, 4))
    assert found.values.shape == (3, 3)
    assert np.unravel_index(found.values.argmax(), (3, 3)) == (1, 2)
    assert found.values[1, 2] == found.answer - found.usual == 1.0
    assert (found.values != 0).sum() == 1


def test_occlusion_covers_what_is_left_over_at_the_edge_and_may_fill_with_anything() -> None:
    sound = np.arange(10, dtype=np.float32)
    found = occlusion(lambda x: x[:, 9], sound, patch=(4,), fill=np.full(10, 3.0))
    assert found.values.tolist() == [0.0, 0.0, 6.0]
    assert found.usual == 3.0


def test_shuffling_what_matters_costs_score() -> None:
    rows = RNG.normal(size=(300, 3))
    labels = rows[:, 1] > 0
    falls = permutation_importance(
        lambda r: float(((r[:, 1] > 0) == labels).mean()), rows, rng=new()
    )
    assert falls[1] > 0.3
    assert falls[0] == falls[2] == 0.0


@pytest.mark.parametrize(
    ("row", "background"),
    [
        (np.ones(3), np.ones((4, 2))),
        (np.ones((1, 3)), np.ones((4, 3))),
        (np.ones(3), np.ones((0, 3))),
    ],
)
def test_what_does_not_fit_is_refused(row: np.ndarray, background: np.ndarray) -> None:
    with pytest.raises(UsageError):
        shapley(lambda r: r[:, 0], row, background, rng=new())


@pytest.mark.parametrize("patch", [(), (0, 1), (1, 1, 1, 1)])
def test_a_patch_that_does_not_fit_is_refused(patch: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="expected a patch"):
        occlusion(lambda x: x.sum(axis=(1, 2, 3)), np.ones((1, 4, 4)), patch=patch)


def test_a_wide_row_takes_little_memory() -> None:
    k, seen = 2000, 0

    def predict(rows: np.ndarray) -> np.ndarray:
        nonlocal seen
        seen = max(seen, rows.nbytes)
        return rows[:, 0] - rows[:, 1]

    row, rest = np.ones(k), np.zeros((20, k))
    tracemalloc.start()
    found = shapley(predict, row, rest, rng=np.random.default_rng(0), orders=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.values[:3] == pytest.approx([1.0, -1.0, 0.0])
    assert seen <= 256 * k * 8
    assert peak < 40e6  # all steps together would take 640 MB
