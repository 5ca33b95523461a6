"""Statistics against values from tables and from other routes to the same number."""

import math

import numpy as np
import pytest

from fleet.stats import (
    benjamini_hochberg,
    memory,
    moderate,
    spread_of_mean,
    student_quantile,
    student_two_sided,
)


@pytest.mark.parametrize(
    ("dof", "two_sided", "t"),
    [  # the usual table of Student's t
        (1, 0.05, 12.706),
        (5, 0.05, 2.571),
        (10, 0.01, 3.169),
        (10, 0.001, 4.587),
        (30, 0.05, 2.042),
        (120, 0.01, 2.617),
    ],
)
def test_student_agrees_with_the_table(dof: float, two_sided: float, t: float) -> None:
    assert student_two_sided(t, dof) == pytest.approx(two_sided, rel=2e-3)
    assert student_quantile(two_sided, dof) == pytest.approx(t, abs=1e-3)


def test_one_degree_of_freedom_is_the_cauchy_distribution() -> None:
    for t in (0.1, 1.0, 3.0, 50.0):
        expected = 1.0 - 2.0 / math.pi * math.atan(t)
        assert student_two_sided(t, 1) == pytest.approx(expected, rel=1e-9)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert student_two_sided(1.959964, 1e7) == pytest.approx(0.05, rel=1e-5)


def test_moderation_lies_between_what_was_measured_and_the_prior() -> None:
    variance, dof = moderate(np.array([0.0, 4.0]), np.array([1.0, 1.0]), dof=10, weight=10)
    assert variance.tolist() == [0.5, 2.5]
    assert dof == 20


def test_benjamini_and_hochbergs_own_example() -> None:
    # Benjamini & Hochberg 1995, section 4.1: 15 p-values, four rejected at 0.05
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
         0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]  # fmt: skip
    assert benjamini_hochberg(p, 0.05) == [True] * 4 + [False] * 11
    assert benjamini_hochberg([], 0.05) == []


def test_memory_is_what_neighbours_share_and_none_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    still, wander = [], []
    for _ in range(12):
        noise = rng.normal(size=(60, 2))
        walk = np.zeros((60, 2))
        for at in range(1, 60):
            walk[at] = 0.7 * walk[at - 1] + rng.normal(size=2)
        still.append(noise)
        wander.append(walk)
    assert memory(still) == pytest.approx([0.0, 0.0], abs=0.12)
    assert memory(wander) == pytest.approx([0.7, 0.7], abs=0.12)
    assert memory([np.ones((8, 1))] * 3) == pytest.approx([1 / 8])  # nothing moves: nothing known


def test_alike_windows_say_less_than_as_many_others() -> None:
    spread = spread_of_mean(10, np.array([0.0, 0.5, 0.95]))
    assert spread[0] == pytest.approx(0.1)
    assert 0.1 < spread[1] < spread[2] < 1.0
    assert spread_of_mean(1, np.array([0.9])) == pytest.approx([1.0])


def test_the_spread_of_a_mean_is_that_of_a_simulated_wander() -> None:
    rng, means = np.random.default_rng(2), []
    for _ in range(4000):
        value, total = rng.normal(), 0.0
        for _ in range(5):
            total += value
            value = 0.6 * value + np.sqrt(1 - 0.36) * rng.normal()
        means.append(total / 5)
    assert np.var(means) == pytest.approx(spread_of_mean(5, np.array([0.6]))[0], rel=0.08)
