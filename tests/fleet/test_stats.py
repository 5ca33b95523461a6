"""Statistics against values from tables and from other routes to the same number."""

import math

import numpy as np
import pytest

from fleet.stats import benjamini_hochberg, moderate, student_quantile, student_two_sided


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
