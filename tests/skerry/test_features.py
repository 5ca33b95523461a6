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
        if kind.startswith(("photo.", "text.")):
            continue
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


def test_a_photo_is_an_image_in_bytes_with_its_channels_last() -> None:
    image = np.random.default_rng(2).integers(0, 256, (3, 3, 8, 9)).astype(np.float32)
    photo = np.moveaxis(image, 1, -1)
    for kind in ("brightness", "contrast", "sharpness"):
        wanted = extractor(f"image.{kind}")(image / np.float32(255))
        assert np.allclose(extractor(f"photo.{kind}")(photo), wanted, rtol=1e-5)


def test_sounds_are_told_by_level_pitch_and_clipping() -> None:
    time = np.arange(1600, dtype=np.float32) / 16000
    loud, quiet = np.sin(2 * np.pi * 400 * time), 0.1 * np.sin(2 * np.pi * 800 * time)
    sounds = np.stack([loud, quiet, np.zeros(1600), np.ones(1600)]).astype(np.float32)
    assert extractor("audio.energy")(sounds) == pytest.approx([-3.01, -23.01, -100, 0], abs=0.02)
    crossings = extractor("audio.zero_crossings")(sounds) * 16000
    assert crossings == pytest.approx([800, 1600, 0, 0], abs=25)
    assert extractor("audio.clipping")(sounds)[[1, 3]].tolist() == [0.0, 1.0]


def test_texts_are_told_by_length_and_variety() -> None:
    tokens = np.array([[5, 6, 5, 6, 0, 0], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]], np.float32)
    assert extractor("tokens.length")(tokens).tolist() == [4, 6, 0]
    assert extractor("tokens.variety")(tokens).tolist() == [0.5, 1.0, 0.0]


def test_any_numbers_have_ends_and_zeros() -> None:
    values = np.array([[-1, 0, 3], [2, 2, 2]], np.float32)
    assert extractor("min")(values).tolist() == [-1, 2]
    assert extractor("max")(values).tolist() == [3, 2]
    assert extractor("zeros")(values) == pytest.approx([1 / 3, 0])


@pytest.mark.parametrize("kind", sorted(EXTRACTORS))
def test_every_kind_gives_one_float_a_row(kind: str) -> None:
    rows = np.random.default_rng(3).uniform(0, 1, (4, 3, 8, 3)).astype(np.float32)
    texts = np.array([["two words"], [""], ["höher"], ["a"]], dtype=object)
    found = extractor(kind)(texts if kind.startswith("text.") else rows)
    assert (found.dtype, found.shape) == (np.float32, (4,))
    assert np.isfinite(found).all()


def test_columns_of_a_table_are_features_as_they_are() -> None:
    table = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert extractor("column.1")(table).tolist() == [2, 5]
    assert np.isnan(extractor("column.3")(table)).all()


def test_means_are_numpys_to_the_bit() -> None:
    random = np.random.default_rng(1)
    for shape in ((1, 1), (1, 3), (7, 1, 4, 4), (3, 3, 33, 31), (2, 100_003)):
        values = (random.normal(size=shape) * 1000).astype(np.float32)
        wanted = values.reshape(shape[0], -1).mean(axis=1, dtype=np.float32)
        np.testing.assert_array_equal(extractor("mean")(values), wanted)
