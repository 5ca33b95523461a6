"""Named summaries of an input, in which drift is explained to people.

The compiler computes them over the baseline and the device over live inputs, by
this same code. An image is float32 [..., height, width], 0 to 1; leading axes are
batch and channels. One call summarises one batch.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import UsageError

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "brightness",
    "contrast",
    "extractor",
    "mean",
    "sharpness",
    "std",
]

Floats = NDArray[np.float32]
Extractor = Callable[[Floats], Floats]


def brightness(image: Floats) -> Floats:
    """Return the mean of each image, float32 [batch]."""
    flat = image.reshape(image.shape[0], -1)
    return np.asarray(flat.mean(axis=1, dtype=np.float32))


def contrast(image: Floats) -> Floats:
    """Return the standard deviation of each image, float32 [batch]."""
    flat = image.reshape(image.shape[0], -1)
    mean = flat.mean(axis=1, dtype=np.float32)
    square = np.einsum("ij,ij->i", flat, flat) / np.float32(flat.shape[1])
    return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0.0, dtype=np.float32)))


def sharpness(image: Floats) -> Floats:
    """Return the mean absolute 4-neighbour Laplacian of each image, float32 [batch]."""
    centre = image[..., 1:-1, 1:-1] * np.float32(4)
    centre -= image[..., :-2, 1:-1]
    centre -= image[..., 2:, 1:-1]
    centre -= image[..., 1:-1, :-2]
    centre -= image[..., 1:-1, 2:]
    np.abs(centre, out=centre)
    flat = centre.reshape(image.shape[0], -1)
    return np.asarray(flat.mean(axis=1, dtype=np.float32))


def mean(values: Floats) -> Floats:
    """Return the mean of each row of any numeric input, float32 [batch]."""
    return np.asarray(values.reshape(values.shape[0], -1).mean(axis=1, dtype=np.float32))


def std(values: Floats) -> Floats:
    """Return the standard deviation of each row of any numeric input, float32 [batch]."""
    return np.asarray(values.reshape(values.shape[0], -1).std(axis=1, dtype=np.float32))


EXTRACTORS: Final[Mapping[str, Extractor]] = {
    "image.brightness": brightness,
    "image.contrast": contrast,
    "image.sharpness": sharpness,
    "mean": mean,
    "std": std,
}


def extractor(kind: str) -> Extractor:
    """Return the function of a feature kind such as ``image.brightness``.

    Raises:
        UsageError: no such kind.
    """
    try:
        return EXTRACTORS[kind]
    except KeyError:
        known = ", ".join(sorted(EXTRACTORS))
        raise UsageError(f"expected a feature kind of {known}; got {kind!r}") from None
