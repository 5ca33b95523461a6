"""A variant is compared sample by sample, and its drop has an honest interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.evaluate import compare, samples_needed, sqnr_db
from compiler.interval import drop_interval, student
from compiler.recipe import Metric
from skerry.errors import RefusedError

ACCURACY = Metric("y")


def one_hot(classes: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[classes]


def test_only_samples_on_which_one_of_the_two_is_right_count_as_a_drop() -> None:
    labels = np.array([0, 1, 2, 0])
    quality = compare(ACCURACY, one_hot([0, 1, 0, 1]), one_hot([0, 0, 2, 0]), labels)
    assert quality.value == 0.5
    assert quality.drop == 0.25  # fp32 has three right, this one two
    assert quality.agreement == 0.25
    assert quality.drop_low < 0.25 < quality.drop_high


def test_two_that_never_differ_still_have_an_interval() -> None:
    low, high = drop_interval(0, 0, 300)
    assert low == -high
    assert 0.0099 < high < 0.01  # three in 300: fewer may well not have shown


@given(st.integers(0, 50), st.integers(0, 50), st.integers(100, 1000))
def test_the_interval_holds_the_drop_and_turns_with_the_sides(a: int, b: int, n: int) -> None:
    low, high = drop_interval(a, b, n)
    assert -1 <= low <= (a - b) / n <= high <= 1
    assert drop_interval(b, a, n) == pytest.approx((-high, -low))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    cells = rng.multinomial(300, [0.05, 0.02, 0.93], size=2000)
    covered = [low <= 0.03 <= high for low, high in (drop_interval(a, b, 300) for a, b, _ in cells)]
    assert 0.93 < np.mean(covered) < 0.98


def test_a_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    mae, covered = Metric("y", name="mae"), []
    for _ in range(120):
        truth = rng.normal(size=200)
        fp32 = truth + rng.normal(0, 0.1, 200)
        other = fp32 + rng.choice([-1, 1], 200) * 0.0 + rng.normal(0.0, 0.1, 200)
        quality = compare(mae, other[:, None], fp32[:, None], truth)
        expected = np.sqrt(2 / np.pi) * (np.sqrt(0.02) - 0.1)
        covered.append(quality.drop_low <= expected <= quality.drop_high)
    assert 0.88 < np.mean(covered) < 0.99


def test_a_drop_is_worse_whichever_way_a_metric_points() -> None:
    labels, fp32 = np.zeros(50), np.full((50, 1), 0.1)
    for name in ("mae", "rmse"):
        worse = compare(Metric("y", name=name), fp32 + 0.2, fp32, labels)
        assert worse.drop == pytest.approx(0.2)
        assert worse.drop_low == pytest.approx(0.2)
        assert compare(Metric("y", name=name), fp32 * 0, fp32, labels).drop == pytest.approx(-0.1)


def test_groups_are_compared_each_by_itself() -> None:
    labels = np.array([0, 1] * 20)
    output = one_hot([0, 0] * 20)  # every second is wrong
    groups = np.array(["a", "b"] * 20)
    quality = compare(ACCURACY, output, one_hot([0, 1] * 20), labels, slices={"side": groups})
    assert [(s.group, s.n, s.value, s.drop) for s in quality.slices] == [
        ("a", 20, 1.0, 0.0), ("b", 20, 0.0, 1.0),
    ]  # fmt: skip


def test_noise_is_told_in_decibels() -> None:
    signal = np.ones((10, 4), np.float32)
    assert sqnr_db(signal + 0.1, signal) == pytest.approx(20.0, abs=1e-3)
    assert sqnr_db(signal, signal) == 120.0
    assert sqnr_db(signal, signal * 0) is None


def test_the_samples_needed_shrink_the_interval_to_the_limit() -> None:
    labels = np.zeros(100, int)
    quality = compare(ACCURACY, one_hot([0] * 100), one_hot([0] * 100), labels)
    needed = samples_needed(quality, 0.01)
    assert needed is not None
    assert drop_interval(0, 0, needed)[1] <= 0.01
    assert samples_needed(quality, 0.0) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_refused(bad: float) -> None:
    output = one_hot([0, 1])
    output[1, 2] = bad
    with pytest.raises(RefusedError, match="NaN or infinity"):
        compare(ACCURACY, output, one_hot([0, 1]), np.array([0, 1]))


@pytest.mark.parametrize(("n", "limit"), [(50, 0.05), (100, 0.02), (300, 0.01), (1000, 0.01)])
def test_a_drop_at_the_limit_is_seldom_let_through(n: int, limit: float) -> None:
    lost = np.random.default_rng(3).binomial(n, limit, 4000)  # the worst case: losses alone
    let_through = [drop_interval(int(many), 0, n)[1] <= limit for many in lost]
    assert np.mean(let_through) < 0.055


@pytest.mark.parametrize("name", ["f1", "auc", "iou", "cosine", "top_k"])
def test_a_few_samples_without_a_difference_prove_nothing(name: str) -> None:
    labels = np.array([0, 1, 2] * 4)
    metric = Metric("y", name=name, k=1)
    wanted = one_hot(labels.tolist()) if name == "iou" else labels
    quality = compare(metric, one_hot(labels.tolist()), one_hot(labels.tolist()), wanted)
    assert quality.drop == 0
    assert quality.drop_high > 0.2
    assert samples_needed(quality, 0.01) is not None


@pytest.mark.parametrize("name", ["mae", "rmse", "cosine", "f1"])
def test_one_sample_proves_nothing(name: str) -> None:
    fp32 = np.array([[1.0, 0.2]])
    labels = np.array([0]) if name == "f1" else fp32 * 1.1
    quality = compare(Metric("y", name=name), fp32 * 1.01, fp32, labels)
    assert quality.drop_high >= 0.9


def test_few_samples_of_an_error_cover_the_truth_too() -> None:
    rng = np.random.default_rng(9)
    mae, covered = Metric("y", name="mae"), []
    for _ in range(400):
        fp32, noise = rng.normal(size=6), np.abs(rng.normal(0.1, 0.05, 6))
        quality = compare(mae, (fp32 + noise)[:, None], fp32[:, None], fp32)
        expected = 0.1008  # of a normal of 0.1 and 0.05, folded at 0
        covered.append(quality.drop_low <= expected <= quality.drop_high)
    assert 0.92 < np.mean(covered) < 0.99


def test_the_samples_needed_are_neither_too_many_nor_too_few() -> None:
    labels = np.zeros(50, int)
    same = compare(ACCURACY, one_hot([0] * 50), one_hot([0] * 50), labels)
    assert samples_needed(same, 0.01) == 299  # the rule of three
    lost = compare(ACCURACY, one_hot([1] + [0] * 49), one_hot([0] * 50), labels)
    needed = samples_needed(lost, 0.05)
    assert needed is not None
    assert drop_interval(needed / 50, 0, needed)[1] <= 0.05
    assert drop_interval((needed - 5) / 50, 0, needed - 5)[1] > 0.05


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (3, 3.182), (10, 2.228), (100, 1.984)])
def test_students_t(freedom: int, t: float) -> None:
    assert student(freedom) == pytest.approx(t, rel=0.01)
