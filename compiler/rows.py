"""Data sets: rows of one input, and their labels, from an `.npz` file.

The file may come from anywhere, so pickles are refused and the size that it would
unpack to is looked up before anything is unpacked.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import FormatError, UsageError

__all__ = ["Rows", "read_rows", "spread"]

MAX_UNPACKED_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one input tensor.

    Attributes:
        inputs: [n, ...], as the model takes them but for the batch axis.
        labels: class of each row, int64 [n]; None where the set has none.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.inputs.shape[0])


def read_rows(path: Path, input_name: str, label_name: str, *, labelled: bool) -> Rows:
    """Read a data set.

    Args:
        path: an `.npz` file.
        input_name: the array of inputs.
        label_name: the array of labels.
        labelled: whether labels must be there.

    Raises:
        FormatError: not an `.npz`, damaged, or too large when unpacked.
        UsageError: an array is missing, empty, or the two differ in length.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise FormatError(f"{path.name} unpacks to {unpacked} bytes; take fewer rows")
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
            inputs = arrays[input_name] if input_name in names else None
            labels = arrays[label_name] if label_name in names else None
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise FormatError(f"expected {path.name} to be an .npz of plain arrays: {error}") from None
    if inputs is None or (labels is None and labelled):
        wanted = label_name if inputs is not None else input_name
        raise UsageError(f"expected an array {wanted!r} in {path.name}, found {', '.join(names)}")
    if inputs.ndim < 1 or inputs.shape[0] == 0:
        raise UsageError(f"expected rows in {path.name}, array {input_name!r} is empty")
    if labels is None:
        return Rows(inputs, None)
    if labels.shape != (inputs.shape[0],) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"expected one whole-number label for each of the {inputs.shape[0]} rows in "
            f"{path.name}, got {labels.dtype} {list(labels.shape)}"
        )
    return Rows(inputs, labels.astype(np.int64))


def spread(n: int, most: int) -> NDArray[np.int64]:
    """Return up to `most` positions spread evenly over `n` rows, int64, ascending."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))
