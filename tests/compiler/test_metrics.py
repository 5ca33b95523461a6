"""Each metric is what its name says: against numbers worked out by hand or by another way."""

from typing import Any

import numpy as np
import pytest

from compiler.metrics import check_labels, predictions, score
from compiler.recipe import Metric
from skerry.errors import RefusedError, UsageError

RNG = np.random.default_rng(11)


def value(name: str, output: Any, labels: Any = None, reference: Any = None, **more: Any) -> float:
    output = np.asarray(output, np.float32)
    wanted = None if labels is None else np.asarray(labels)
    other = output if reference is None else np.asarray(reference, np.float32)
    return score(Metric("y", name=name, **more), output, wanted, other).value


def test_accuracy_and_top_k() -> None:
    output = [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]
    assert value("accuracy", output, [2, 1, 1]) == pytest.approx(2 / 3)
    assert value("top_k", output, [1, 1, 0], k=2) == pytest.approx(2 / 3)
    assert value("top_k", output, [1, 1, 0], k=3) == 1.0


def test_accuracy_of_a_threshold_is_taken_value_by_value() -> None:
    output, labels = [[0.9, 0.1], [0.8, 0.7]], [[1, 0], [0, 1]]
    assert value("accuracy", output, labels, postprocess="threshold") == 0.75
    assert value("accuracy", output, labels, postprocess="threshold", threshold=0.85) == 0.75


def test_f1_of_one_class_and_of_many() -> None:
    one = value("f1", [0.9, 0.8, 0.2, 0.7], [1, 0, 1, 1], postprocess="threshold")
    assert one == pytest.approx(2 * 2 / (3 + 3))
    many = value("f1", np.eye(3)[[0, 0, 1, 2]], [0, 1, 1, 2])
    assert many == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_auc_is_the_share_of_pairs_in_the_right_order_ties_counted_half() -> None:
    for _ in range(20):
        values = RNG.integers(0, 6, 40).astype(np.float32)
        labels = RNG.integers(0, 2, 40)
        if labels.min() == labels.max():
            continue
        good, bad = values[labels == 1], values[labels == 0]
        pairs = (good[:, None] > bad).mean() + (good[:, None] == bad).mean() / 2
        assert value("auc", values[:, None], labels) == pytest.approx(pairs)


def test_auc_of_two_columns_reads_the_second_and_of_more_the_mean() -> None:
    p = RNG.uniform(size=30).astype(np.float32)
    labels = RNG.integers(0, 2, 30)
    both = np.stack([1 - p, p], axis=1)
    assert value("auc", both, labels) == pytest.approx(value("auc", p[:, None], labels))
    assert value("auc", np.eye(3)[[0, 1, 2, 2]], [0, 1, 2, 2]) == 1.0
    with pytest.raises(RefusedError, match="at least two classes"):
        value("auc", p[:, None], np.ones(30, int))


def test_errors_of_values() -> None:
    assert value("mae", [[1.0], [3.0]], [0.0, 5.0]) == 1.5
    assert value("rmse", [[1.0], [3.0]], [0.0, 5.0]) == pytest.approx(2.5**0.5)


def test_cosine_and_agreement_are_against_fp32() -> None:
    assert value("cosine", [[1.0, 0.0], [0.0, 2.0]], reference=[[1.0, 1.0], [0.0, 1.0]]) == (
        pytest.approx((0.5**0.5 + 1) / 2)
    )
    assert value("cosine", [[0.0, 0.0]], reference=[[0.0, 0.0]]) == 1.0
    assert value("cosine", [[0.0, 0.0]], reference=[[1.0, 0.0]]) == 0.0
    assert value("agreement", np.eye(2)[[0, 1]], reference=np.eye(2)[[0, 0]]) == 0.5


def test_iou_of_what_passes_the_threshold() -> None:
    mine, wanted = [[0.9, 0.9, 0.1, 0.1]], [[1, 0, 1, 0]]
    assert value("iou", mine, wanted) == pytest.approx(1 / 3)
    assert value("iou", mine, reference=[[0.9, 0.2, 0.2, 0.2]]) == 0.5
    assert value("iou", [[0.1, 0.1]], [[0, 0]]) == 1.0  # nothing was there, and nothing found


def test_weights_count_a_sample_as_often_as_they_say() -> None:
    output, labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.array([0, 1, 1, 2])
    weights = np.array([2.0, 1.0, 0.0, 3.0])
    again = np.repeat(np.arange(4), weights.astype(int))
    for name in ("accuracy", "f1", "auc", "top_k"):
        metric = Metric("y", name=name, k=1)
        got = score(metric, output, labels, output).of(weights)
        assert got == pytest.approx(score(metric, output[again], labels[again], output).value)


def test_a_function_of_ones_own_may_give_one_number_or_one_per_sample() -> None:
    metric, output = Metric("y", name="m:f"), np.arange(4, dtype=np.float32)[:, None]
    mean = score(metric, output, None, output, lambda o, _labels: o[:, 0])
    whole = score(metric, output, None, output, lambda o, _labels: float(o.max()))
    assert mean.value == 1.5
    assert mean.per_sample is not None
    assert (whole.value, whole.per_sample) == (3.0, None)
    assert whole.of(np.array([1.0, 1.0, 0.0, 0.0])) == 1.0


def boom(_output: Any, _labels: Any) -> float:
    raise ZeroDivisionError("no samples of class 3")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (boom, "the metric boom raised ZeroDivisionError: no samples of class 3"),
        (lambda _o, _l: "good", "expected a metric of one finite number"),
        (lambda _o, _l: np.ones(3), r"one per sample \(4\); got float64 \[3\]"),
        (lambda _o, _l: float("nan"), "expected a metric of one finite number"),
    ],
)
def test_a_function_that_fails_is_told_as_such(function: Any, message: str) -> None:
    output = np.ones((4, 1), np.float32)
    with pytest.raises(RefusedError, match=message):
        score(Metric("y", name="m:f"), output, None, output, function)


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        (Metric("y"), None, "expected labels for accuracy"),
        (Metric("y"), np.array([0, 1]), "one label for each of the 3 samples, got 2"),
        (Metric("y"), np.array([0, 1, 5]), r"labels of 0 to 1, .* got int64 \[3\], 0 to 5"),
        (Metric("y"), np.array([0.0, 0.5, 1.0]), "whole-number labels"),
        (Metric("y"), np.array(["a", "b", "c"]), "labels that are numbers"),
        (Metric("y", name="mae"), np.ones(3), r"labels of the shape of the output, \[3, 2\]"),
    ],
)
def test_labels_that_do_not_match_are_named(metric: Metric, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_labels(metric, np.ones((3, 2), np.float32), labels)


def test_predictions_are_classes_or_marks() -> None:
    assert predictions(np.eye(3)[[2, 0]], Metric("y")).tolist() == [2, 0]
    marks = predictions(np.array([[0.4, 0.6]]), Metric("y", name="iou"))
    assert marks.tolist() == [[0, 1]]
