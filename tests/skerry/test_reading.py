"""A prediction is read from an output in one way, whoever reads it."""

import numpy as np
import pytest

from skerry.reading import NO_CLASS, read_predictions


def test_the_largest_value_of_a_row_is_its_class_and_confidence() -> None:
    output = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]], np.float32)
    classes, confidence = read_predictions(output, "argmax")
    assert classes.tolist() == [1, 0]
    assert confidence.tolist() == pytest.approx([0.7, 0.6])


def test_of_equal_values_the_first_wins() -> None:
    classes, _ = read_predictions(np.zeros((1, 4), np.int8), "argmax")
    assert classes.tolist() == [0]


def test_a_value_has_no_class() -> None:
    classes, values = read_predictions(np.array([[2.5], [-1.0]]), "value")
    assert classes.tolist() == [NO_CLASS, NO_CLASS]
    assert values.tolist() == [2.5, -1.0]


def test_further_axes_are_read_as_one() -> None:
    classes, confidence = read_predictions(np.arange(8.0).reshape(2, 2, 2), "argmax")
    assert classes.tolist() == [3, 3]
    assert confidence.tolist() == [3.0, 7.0]


def test_a_single_number_per_row_is_a_row() -> None:
    assert read_predictions(np.array([1.0, 2.0]), "value")[1].tolist() == [1.0, 2.0]
