"""Named summaries of an input, in which drift is explained to people.

The compiler computes them over the baseline and the device over live inputs, by
this same code. One call summarises one batch, whose axis is the first.

    image.*    float [..., height, width], 0 to 1; axes between are channels
    photo.*    as cameras give them: [height, width, channels], 0 to 255
    audio.*    samples of sound, -1 to 1
    tokens.*   numbers of words, 0 where a text has ended
    text.*     texts, of a model that has its tokenizer in it
    column.N   the Nth number of each row, from 0: a table's columns as they are
    others     any numbers
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import UsageError

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "brightness",
    "clipping",
    "column",
    "column_of",
    "contrast",
    "energy",
    "extractor",
    "highest",
    "length",
    "lowest",
    "mean",
    "non_ascii",
    "photo",
    "sharpness",
    "std",
    "text_length",
    "text_words",
    "token_rate",
    "variety",
    "zero_crossings",
    "zeros",
]

Floats = NDArray[np.float32]
Texts = NDArray[Any]  # of str
Extractor = Callable[[NDArray[Any]], Floats]
_TOKEN: Final = re.compile(r"\w+|[^\w\s]")


def brightness(image: Floats) -> Floats:
    """Return the mean of each image, float32 [batch]."""
    return _means(image.reshape(image.shape[0], -1))


def contrast(image: Floats) -> Floats:
    """Return the standard deviation of each image, float32 [batch]."""
    flat = image.reshape(image.shape[0], -1)
    mean = _means(flat)
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
    return _means(flat)


def mean(values: Floats) -> Floats:
    """Return the mean of each row of any numeric input, float32 [batch]."""
    return _means(values.reshape(values.shape[0], -1))


def std(values: Floats) -> Floats:
    """Return the standard deviation of each row of any numeric input, float32 [batch]."""
    return np.asarray(values.reshape(values.shape[0], -1).std(axis=1, dtype=np.float32))


def photo(extract: Extractor) -> Extractor:
    """Return the function of a photo [batch, height, width, channels] for one of an image."""

    def of(values: Floats) -> Floats:
        return extract(np.moveaxis(values, -1, 1) / np.float32(255))

    return of


def energy(sound: Floats) -> Floats:
    """Return the level of each sound in dB of full scale, at least -100, float32 [batch]."""
    flat = _rows(sound)
    power = np.einsum("ij,ij->i", flat, flat) / np.float32(max(1, flat.shape[1]))
    return np.asarray(10 * np.log10(np.maximum(power, 1e-10)), dtype=np.float32)


def zero_crossings(sound: Floats) -> Floats:
    """Return the share of samples at which each sound changes its sign, float32 [batch]."""
    flat = _rows(sound)
    if flat.shape[1] < 2:
        return np.zeros(len(flat), np.float32)
    return np.asarray((np.signbit(flat[:, 1:]) != np.signbit(flat[:, :-1])).mean(1), np.float32)


def clipping(sound: Floats) -> Floats:
    """Return the share of samples at full scale, float32 [batch]."""
    return np.asarray((np.abs(_rows(sound)) >= 0.999).mean(axis=1), dtype=np.float32)


def length(tokens: Floats) -> Floats:
    """Return the number of words of each text, float32 [batch]."""
    return np.asarray((_rows(tokens) != 0).sum(axis=1), dtype=np.float32)


def variety(tokens: Floats) -> Floats:
    """Return the share of different words among those of each text, float32 [batch]."""
    ordered = np.sort(_rows(tokens), axis=1)
    first = np.ones(ordered.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    words = (ordered != 0).sum(axis=1)
    different = (first & (ordered != 0)).sum(axis=1)
    return np.asarray(np.where(words == 0, 0.0, different / np.maximum(words, 1)), np.float32)


def text_length(texts: Texts) -> Floats:
    """Return the number of characters of each text, float32 [batch]."""
    return np.asarray([len(text) for text in _joined(texts)], dtype=np.float32)


def text_words(texts: Texts) -> Floats:
    """Return the number of words between white space of each text, float32 [batch]."""
    return np.asarray([len(text.split()) for text in _joined(texts)], dtype=np.float32)


def token_rate(texts: Texts) -> Floats:
    """Return words and signs per character of each text, 0 of an empty one, float32 [batch]."""
    counts = [len(_TOKEN.findall(text)) / max(1, len(text)) for text in _joined(texts)]
    return np.asarray(counts, dtype=np.float32)


def non_ascii(texts: Texts) -> Floats:
    """Return the share of characters outside ASCII of each text, float32 [batch]."""
    shares = [sum(sign > "\x7f" for sign in t) / max(1, len(t)) for t in _joined(texts)]
    return np.asarray(shares, dtype=np.float32)


def _joined(texts: Texts) -> list[str]:
    """Return one text for each row."""
    return [" ".join(row) for row in texts.reshape(texts.shape[0], -1).tolist()]


def lowest(values: Floats) -> Floats:
    """Return the smallest value of each row, float32 [batch]."""
    return np.asarray(_rows(values).min(axis=1), dtype=np.float32)


def highest(values: Floats) -> Floats:
    """Return the largest value of each row, float32 [batch]."""
    return np.asarray(_rows(values).max(axis=1), dtype=np.float32)


def zeros(values: Floats) -> Floats:
    """Return the share of zeros in each row, float32 [batch]."""
    return np.asarray((_rows(values) == 0).mean(axis=1), dtype=np.float32)


def _means(flat: NDArray[np.generic]) -> Floats:
    """Return `flat.mean(axis=1, dtype=np.float32)`, to the bit, without what it checks first."""
    total = np.add.reduce(flat, axis=1, dtype=np.float32)
    return np.asarray(total / np.float32(flat.shape[1]))


def _rows(values: Floats) -> Floats:
    return values.reshape(values.shape[0], -1)


MAX_PLACE_DIGITS: Final = 5
EXTRACTORS: Final[Mapping[str, Extractor]] = {
    "image.brightness": brightness,
    "image.contrast": contrast,
    "image.sharpness": sharpness,
    "photo.brightness": photo(brightness),
    "photo.contrast": photo(contrast),
    "photo.sharpness": photo(sharpness),
    "audio.energy": energy,
    "audio.zero_crossings": zero_crossings,
    "audio.clipping": clipping,
    "tokens.length": length,
    "tokens.variety": variety,
    "text.length": text_length,
    "text.words": text_words,
    "text.token_rate": token_rate,
    "text.non_ascii": non_ascii,
    "min": lowest,
    "max": highest,
    "zeros": zeros,
    "mean": mean,
    "std": std,
}


def extractor(kind: str) -> Extractor:
    """Return the function of a feature kind such as ``image.brightness``.

    Raises:
        UsageError: no such kind.
    """
    place = column_of(kind)
    if place is not None:
        return column(place)
    try:
        return EXTRACTORS[kind]
    except KeyError:
        known = ", ".join(sorted(EXTRACTORS))
        raise UsageError(f"expected a feature kind of {known}, column.N; got {kind!r}") from None


def column_of(kind: str) -> int | None:
    """Return the place that a kind such as ``column.3`` names, counted from 0; None for others."""
    name, _, place = kind.partition(".")
    is_place = place.isascii() and place.isdigit() and len(place) <= MAX_PLACE_DIGITS
    return int(place) if name == "column" and is_place else None


def column(place: int) -> Extractor:
    """Return the function that gives one column of a table, float32 [batch]; NaN where it has fewer."""

    def of(values: Floats) -> Floats:
        flat = values.reshape(values.shape[0], -1)
        if place >= flat.shape[1]:
            return np.full(len(flat), np.nan, np.float32)
        return np.asarray(flat[:, place], dtype=np.float32)

    return of
