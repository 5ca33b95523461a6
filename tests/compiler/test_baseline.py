"""The baseline is counted as devices count, with the same edges everywhere for latency."""

import numpy as np
import pytest

from compiler.baseline import LATENCY_EDGES, make_baseline
from compiler.ports import Port, Ports
from skerry.canonical import from_msgpack
from skerry.counting import count_numeric
from skerry.errors import UsageError
from skerry.features import extractor
from skerry.manifest import Baseline, FeatureSpec, PredictionSpec
from skerry.sketch import CategoricalSpec, NumericSpec, check_column, total

RNG = np.random.default_rng(7)
IMAGES = RNG.uniform(size=(120, 1, 8, 8)).astype(np.float32)
OUTPUT = RNG.dirichlet([0.5, 0.5, 0.5], 120).astype(np.float32)
FEATURES = [
    FeatureSpec("sharpness", "image.sharpness", "x"),
    FeatureSpec("brightness", "image.brightness", "x"),
]
ARGMAX = PredictionSpec("y", "argmax")


def made(
    rows: np.ndarray,
    output: np.ndarray,
    features: list[FeatureSpec],
    names: list[str],
    reading: PredictionSpec = ARGMAX,
    *,
    batched: bool = True,
) -> Baseline:
    shape = (-1, *rows.shape[1:]) if batched else rows.shape[1:]
    ports = Ports((Port("x", "x", rows.dtype, shape, batched),))
    return from_msgpack(
        make_baseline(ports, {"x": rows}, output, reading, features, names), Baseline
    )


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return made(IMAGES, OUTPUT, FEATURES, ["a", "b", "c"])


def test_it_has_the_promised_columns(baseline: Baseline) -> None:
    assert set(baseline.columns) == {
        "sharpness", "brightness", "prediction", "confidence", "latency_us",
    }  # fmt: skip
    assert baseline.n == 120


def test_every_column_adds_up_on_its_own_edges(baseline: Baseline) -> None:
    for name, column in baseline.columns.items():
        check_column(column.counts, column.spec)
        assert total(column.counts) == (0 if name == "latency_us" else 120)


def test_quantile_edges_hold_about_as_many_rows_each(baseline: Baseline) -> None:
    column = baseline.columns["brightness"]
    assert isinstance(column.spec, NumericSpec)
    assert len(column.spec.edges) == 33
    again = count_numeric(extractor("image.brightness")(IMAGES), column.spec)
    assert again == column.counts
    assert max(again.bins) <= 5


def test_predictions_are_counted_by_class_name(baseline: Baseline) -> None:
    column = baseline.columns["prediction"]
    assert column.spec == CategoricalSpec(["a", "b", "c"])
    expected = np.bincount(OUTPUT.argmax(axis=1), minlength=3)
    assert column.counts.counts == expected.tolist()  # type: ignore[union-attr]


def test_latency_edges_are_the_same_in_every_bundle() -> None:
    assert (LATENCY_EDGES[0], LATENCY_EDGES[8], LATENCY_EDGES[-1]) == (1.0, 10.0, 1e7)
    assert sorted(set(LATENCY_EDGES)) == LATENCY_EDGES
    assert len(LATENCY_EDGES) == 57


def test_more_classes_than_cells_leave_out_the_prediction() -> None:
    output = np.eye(300, dtype=np.float32)
    names = [str(i) for i in range(300)]
    found = made(np.ones((300, 4), np.float32), output, [], names)
    assert set(found.columns) == {"confidence", "latency_us"}


def test_a_model_that_predicts_no_class_has_no_prediction() -> None:
    values = RNG.normal(size=(50, 1)).astype(np.float32)
    found = made(np.ones((50, 4), np.float32), values, [], [], PredictionSpec("y", "value"))
    assert set(found.columns) == {"confidence", "latency_us"}
    assert found.columns["confidence"].counts.n == 50


def test_a_threshold_gives_two_classes() -> None:
    values = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    reading = PredictionSpec("y", "threshold", 0.75)
    found = made(np.ones((11, 4), np.float32), values, [], ["no", "yes"], reading)
    assert found.columns["prediction"].counts.counts == [8, 3]  # type: ignore[union-attr]


def test_rows_of_a_sequence_are_counted_as_a_device_counts_them() -> None:
    frames = np.ones((6, 20, 4), np.float32)
    speech = RNG.uniform(size=(6, 20)).astype(np.float32)
    reading = PredictionSpec("y", "threshold")
    features = [FeatureSpec("level", "mean", "x")]
    found = made(frames, speech, features, ["no", "yes"], reading, batched=False)
    assert found.n == 120
    assert found.columns["level"].counts.n == 120


def test_a_feature_that_the_input_does_not_have_is_named() -> None:
    with pytest.raises(UsageError, match=r"feature 'sharpness' \(image.sharpness\) needs images"):
        made(np.ones((5, 4), np.float32), OUTPUT[:5], FEATURES[:1], ["a", "b", "c"])
