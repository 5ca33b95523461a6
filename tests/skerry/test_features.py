"""Named features against their definitions in plain numpy."""

import numpy as np
import pytest

from skerry.errors import UsageError
from skerry.features import EXTRACTORS, extractor

RNG = np.random.default_rng(7)
IMAGES = RNG.random((5, 1, 16, 16), dtype=np.float32)


def test_brightness_and_contrast_are_mean_and_standard_deviation() -> None:
    flat = IMAGES.reshape(5, -1)
    np.testing.assert_allclose(extractor("image.brightness")(IMAGES), flat.mean(1), rtol=1e-5)
    np.testing.assert_allclose(extractor("image.contrast")(IMAGES), flat.std(1), rtol=1e-4)


def test_sharpness_is_the_mean_absolute_laplacian() -> None:
    expected = []
    for image in IMAGES[:, 0]:
        total = 0.0
        for y in range(1, 15):
            for x in range(1, 15):
                around = image[y - 1, x] + image[y + 1, x] + image[y, x - 1] + image[y, x + 1]
                total += abs(4 * image[y, x] - around)
        expected.append(total / 14**2)
    np.testing.assert_allclose(extractor("image.sharpness")(IMAGES), expected, rtol=1e-4)


def test_features_leave_their_input_alone_and_give_one_number_a_row() -> None:
    before = IMAGES.copy()
    for kind in EXTRACTORS:
        values = extractor(kind)(IMAGES)
        assert values.shape == (5,)
        assert values.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(IMAGES, before)


def test_a_flat_image_has_no_contrast_and_no_sharpness() -> None:
    flat = np.full((1, 1, 8, 8), 0.3, dtype=np.float32)
    assert extractor("image.contrast")(flat)[0] < 1e-3
    assert extractor("image.sharpness")(flat)[0] == pytest.approx(0, abs=1e-6)


def test_an_unknown_feature_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"image\.brightness"):
        extractor("image.colour")
