"""The baseline is counted as devices count, with the same edges everywhere for latency."""

import numpy as np
import pytest

from compiler.baseline import LATENCY_EDGES, make_baseline
from compiler.ports import Port, Ports
from skerry.canonical import from_msgpack, to_msgpack
from skerry.counting import count_numeric
from skerry.errors import UsageError
from skerry.features import extractor
from skerry.manifest import Baseline, FeatureSpec, PredictionSpec, parse_baseline
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
    groups: dict[str, np.ndarray] | None = None,
) -> Baseline:
    shape = (-1, *rows.shape[1:]) if batched else rows.shape[1:]
    ports = Ports((Port("x", "x", rows.dtype, shape, batched),))
    return from_msgpack(
        make_baseline(ports, {"x": rows}, output, reading, features, names, groups), Baseline
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


def test_slices_count_their_groups_on_the_edges_of_the_whole(baseline: Baseline) -> None:
    site = np.array(["harbour"] * 70 + ["airport"] * 40 + ["ship"] * 10)  # too few on the ship
    found = made(IMAGES, OUTPUT, FEATURES, ["a", "b", "c"], groups={"site": site})
    assert found.columns == baseline.columns
    assert {name: part.n for name, part in found.slices["site"].items()} == {
        "harbour": 70, "airport": 40,
    }  # fmt: skip
    for name, part in found.slices["site"].items():
        assert set(part.columns) == {"sharpness", "brightness", "prediction", "confidence"}
        for column, counts in part.columns.items():
            check_column(counts, found.columns[column].spec)
            assert total(counts) == part.n
        values = extractor("image.brightness")(IMAGES[site == name])
        spec = found.columns["brightness"].spec
        assert isinstance(spec, NumericSpec)
        assert part.columns["brightness"] == count_numeric(values, spec)
    assert parse_baseline(to_msgpack(found)) == found


def test_groups_of_sequences_are_those_of_their_rows() -> None:
    frames, speech = np.ones((40, 20, 4), np.float32), RNG.uniform(size=(40, 20))
    found = made(
        frames, speech.astype(np.float32), [], ["no", "yes"], PredictionSpec("y", "threshold"),
        batched=False, groups={"microphone": np.arange(40) % 2},
    )  # fmt: skip
    assert {name: part.n for name, part in found.slices["microphone"].items()} == {
        "0": 400, "1": 400,
    }  # fmt: skip


def test_without_slices_the_bytes_are_as_before() -> None:
    assert b"slices" not in to_msgpack(made(IMAGES, OUTPUT, FEATURES, ["a", "b", "c"]))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({str(i): np.zeros(120, int) for i in range(9)}, "at most 8 baseline_slices, got 9"),
        ({"site": np.array(["a\nb"] * 120)}, "expected names of groups in baseline_slices 'site'"),
    ],
)
def test_slices_are_bounded(groups: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(IMAGES, OUTPUT, FEATURES, ["a", "b", "c"], groups=groups)
    many = np.arange(65).repeat(20)
    rows, output = np.ones((1300, 4), np.float32), np.ones((1300, 3), np.float32)
    with pytest.raises(UsageError, match="at most 64 groups of at least 20 samples"):
        made(rows, output, [], ["a", "b", "c"], groups={"line": many})
