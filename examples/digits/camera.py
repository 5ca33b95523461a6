"""How the digits become images: photographed, smudged, or scanned.

`photograph` is what the demo's cameras do: dark ink on bright paper, every shot a
little shifted, lit a little differently, with sensor noise, read out in 8 bits.
`smudge` is the same camera behind a dirty lens. `scan` is another way of preparing
the same digits, bright ink on black as data sets like to have it: what the bad
release 1.2.0 was trained and evaluated on, and what no camera ever sends.

    rng = np.random.default_rng(7)
    clean = photograph(originals, rng)
    dirty = smudge(clean)

Only numpy, equal output for an equally seeded generator, about 40 microseconds an image.
"""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIDE", "photograph", "scan", "smudge"]

Floats = NDArray[np.float32]

SIDE: Final = 32  # pixels of an image, both ways
CELLS: Final = 8  # pixels of an original, both ways
CELL_PIXELS: Final = 3.5  # so a digit takes 28 of 32 pixels and has room to move
SHIFTS: Final = np.arange(-2.0, 2.01, 0.5)  # pixels off the centre, each as likely

PAPER: Final = (0.82, 0.92)  # how bright the paper is, shot by shot
INK: Final = 0.75  # share of the light that full ink takes away
CAMERA_NOISE: Final = 0.012  # standard deviation, of a range of 1
SCANNER_LIGHT: Final = (0.92, 1.0)
SCANNER_NOISE: Final = 0.004


def photograph(originals: NDArray[np.generic], rng: np.random.Generator) -> Floats:
    """Take one shot of each original.

    Args:
        originals: any number type [batch, 8, 8], 0 (paper) to 16 (ink).
        rng: decides shift, light and noise.

    Returns:
        float32 [batch, 1, 32, 32], 0 to 1 in steps of 1/255.
    """
    ink = _ink(originals, rng)
    paper = rng.uniform(*PAPER, size=(len(ink), 1, 1, 1)).astype(np.float32)
    return _read_out(paper * (1 - np.float32(INK) * ink), CAMERA_NOISE, rng)


def scan(originals: NDArray[np.generic], rng: np.random.Generator) -> Floats:
    """Prepare each original as the training set of 1.2.0 did: bright ink on black.

    Takes and returns the same shapes and ranges as `photograph`.
    """
    ink = _ink(originals, rng)
    light = rng.uniform(*SCANNER_LIGHT, size=(len(ink), 1, 1, 1)).astype(np.float32)
    return _read_out(light * ink, SCANNER_NOISE, rng)


def smudge(images: Floats, *, strength: float = 1.0) -> Floats:
    """Look at the same images through a dirty lens: blurred, dimmed and veiled.

    Args:
        images: float32 [batch, 1, 32, 32], 0 to 1.
        strength: 0 (a clean lens) to 1 (a thumb-print).

    Returns:
        float32 of the same shape, 0 to 1.

    Raises:
        ValueError: the strength is outside 0 to 1.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"expected a smudge strength of 0 to 1; got {strength}")
    if strength == 0.0:
        return images
    blur = _blur(1.5 * strength)
    through, veil = np.float32(1 - 0.5 * strength), np.float32(0.15 * strength)
    return np.asarray(through * (blur @ images @ blur.T) + veil, dtype=np.float32)


def _ink(originals: NDArray[np.generic], rng: np.random.Generator) -> Floats:
    """Enlarge smoothly, each digit a little off the centre; float32 [batch, 1, 32, 32], 0 to 1."""
    cells = (originals.astype(np.float32) / np.float32(16))[:, None]
    down, right = rng.integers(len(SHIFTS), size=(2, len(cells), 1))
    enlarged = _ENLARGE[down] @ cells @ _ENLARGE[right].swapaxes(-1, -2)
    return np.asarray(enlarged, dtype=np.float32)


def _read_out(light: Floats, noise: float, rng: np.random.Generator) -> Floats:
    """Add the sensor's noise and round to 8 bits."""
    light += np.float32(noise) * rng.standard_normal(light.shape, dtype=np.float32)
    levels = np.rint(np.clip(light, 0, 1, out=light) * np.float32(255))
    return np.asarray(levels / np.float32(255), dtype=np.float32)


def _enlarge(shift: float) -> Floats:
    """Return the matrix, float32 [32, 8], that spreads cells over pixels.

    A raised cosine as wide as two cells: smooth, and the weights that reach an
    inner pixel add up to 1, so ink keeps its darkness wherever it lies.
    """
    pixels = np.arange(SIDE)[:, None] - (SIDE - 1) / 2 - shift
    cells = np.arange(CELLS)[None, :] - (CELLS - 1) / 2
    distance = np.minimum(np.abs(pixels / CELL_PIXELS - cells), 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * distance), dtype=np.float32)


_ENLARGE: Final = np.stack([_enlarge(shift) for shift in SHIFTS])


@lru_cache
def _blur(sigma_pixels: float) -> Floats:
    """Return the matrix, float32 [32, 32], of a Gaussian blur along one axis."""
    pixels = np.arange(SIDE)
    weights = np.exp(-0.5 * ((pixels[:, None] - pixels[None, :]) / sigma_pixels) ** 2)
    # Rows sum to 1 at the border too: a lens does not darken the edge of the paper.
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
