"""A single row is read as one of many, to the last bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.rows import RowReader
from skerry.errors import UsageError
from skerry.features import column_of, extractor
from skerry.manifest import FeatureSpec, PredictionSpec, ReadingKind
from skerry.reading import read_prediction, read_predictions

KINDS: list[ReadingKind] = ["argmax", "threshold", "value", "mean"]
Values = arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64]),
    st.tuples(st.just(1), st.integers(1, 6)),
)


def reader(*features: FeatureSpec, kind: ReadingKind = "argmax") -> RowReader:
    manifest: Any = type("M", (), {"prediction": PredictionSpec("y", kind), "features": features})
    return RowReader(manifest)


@given(Values, st.sampled_from(KINDS))
def test_one_prediction_is_read_as_many_are(output: np.ndarray, kind: ReadingKind) -> None:
    with np.errstate(all="ignore"):
        classes, confidence = read_predictions(output, kind)
        prediction, value = read_prediction(output, kind)
    assert prediction == classes[0]
    np.testing.assert_array_equal(value, confidence[0])


def test_a_nan_wins_as_numpy_has_it() -> None:
    output = np.array([[1.0, np.nan, 7.0]], np.float32)
    assert read_prediction(output, "argmax")[0] == read_predictions(output, "argmax")[0][0] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_columns_of_one_row_are_those_of_many(dtype: type) -> None:
    features = [FeatureSpec(f"c{i}", f"column.{i}", "x") for i in (3, 0, 2, 9)]
    x = (np.random.default_rng(0).normal(size=(4, 5)) * 1000).astype(dtype)
    y = np.eye(4, dtype=np.float32)
    many = reader(*features).rows({"x": x}, {"y": y})
    for number, row in enumerate(many):
        (one,) = reader(*features).rows(
            {"x": x[number : number + 1]}, {"y": y[number : number + 1]}
        )
        assert (one.prediction, one.confidence) == (row.prediction, row.confidence)
        np.testing.assert_array_equal(one.features, row.features)
        assert np.isnan(one.features[3])  # there is no tenth column


def test_features_of_several_kinds_keep_their_order() -> None:
    features = [
        FeatureSpec("a", "mean", "x"),
        FeatureSpec("b", "column.1", "x"),
        FeatureSpec("c", "max", "z"),
    ]
    tensors = {"x": np.array([[1.0, 5.0]], np.float32), "z": np.array([[9, 2]])}
    (row,) = reader(*features, kind="value").rows(tensors, {"y": np.array([[0.25]])})
    assert (row.prediction, row.confidence, row.features) == (-1, 0.25, [3.0, 5.0, 9.0])


def test_without_features_there_are_none() -> None:
    (row,) = reader().rows({}, {"y": np.array([[0.1, 0.9]])})
    assert (row.prediction, row.features) == (1, [])


def test_column_kinds_are_places() -> None:
    assert column_of("column.12") == 12
    for other in (
        "column",
        "column.",
        "column.-1",
        "column.1.2",
        "column.123456",
        "mean",
        "column.\u00b2",
    ):
        assert column_of(other) is None
        if other != "mean":
            with pytest.raises(UsageError, match=r"expected a feature kind of .*column\.N"):
                extractor(other)
