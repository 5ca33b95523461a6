"""Samples out of files, in batches: .npy, .npz, .csv, .parquet, and pictures.

    table.csv, table.parquet   a column per input, or all columns side by side for the only input
    rows.npy                   samples along the first axis, for the only input
    rows.npz                   an array for each input, by its name
    a.png, b.jpg, ...          one sample each, in the size and with the channels that the model takes

Reading Parquet needs pyarrow, pictures need Pillow: neither is on a device unless somebody wants it.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import FormatError, NotFoundError, UsageError
from skerry.io.client import Port
from skerry.tensors import DTYPES

__all__ = ["SUFFIXES", "batches"]

Arrays = dict[str, NDArray[Any]]
PICTURES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
BYTE: Final = 255.0


def batches(file: Path, ports: Sequence[Port], rows: int) -> Iterator[Arrays]:
    """Return a file's samples as a model takes them, so many at a time.

    Args:
        file: of a suffix in `SUFFIXES`.
        ports: the model's inputs.
        rows: of one batch; the last may be smaller.

    Raises:
        NotFoundError: no such file.
        UsageError: not a kind of file that is read here, or not what the model takes.
        FormatError: the file is damaged.
    """
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise UsageError(
            f"expected a file of {', '.join(SUFFIXES)}, got {file.name!r}; convert it first"
        )
    if not file.is_file():
        raise NotFoundError(f"expected a file at {file}, and there is none")
    try:
        yield from reader(file, ports, rows)
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(f"{file}: cannot be read as {file.suffix}: {error}") from None


def _npy(file: Path, ports: Sequence[Port], rows: int) -> Iterator[Arrays]:
    port = _only(file, ports)
    values = np.load(file, mmap_mode="r", allow_pickle=False)
    yield from _cut(file, {port.name: values}, ports, rows)


def _npz(file: Path, ports: Sequence[Port], rows: int) -> Iterator[Arrays]:
    with np.load(file, allow_pickle=False) as found:
        missing = [port.name for port in ports if port.name not in found]
        if missing:
            raise UsageError(
                f"{file}: expected arrays {', '.join(p.name for p in ports)}, "
                f"{missing[0]!r} is missing; found {', '.join(found.files)[:200]}"
            )
        yield from _cut(file, {port.name: found[port.name] for port in ports}, ports, rows)


def _csv(file: Path, ports: Sequence[Port], rows: int) -> Iterator[Arrays]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        names = next(reader, [])
        number = 0
        while lines := list(islice(reader, rows)):
            for line in lines:
                number += 1
                if len(line) != len(names):
                    raise UsageError(
                        f"{file}: expected {len(names)} values in row {number}, got {len(line)}"
                    )
            columns = dict(zip(names, zip(*lines, strict=True), strict=True))
            yield _table(file, columns, ports)


def _parquet(file: Path, ports: Sequence[Port], rows: int) -> Iterator[Arrays]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(
            f'{file}: reading Parquet needs pyarrow: pip install "skerry[parquet]"'
        ) from None
    with parquet.ParquetFile(file) as found:
        for batch in found.iter_batches(batch_size=rows):
            columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            yield _table(file, columns, ports)


def _picture(file: Path, ports: Sequence[Port], _: int) -> Iterator[Arrays]:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(
            f'{file}: reading pictures needs Pillow: pip install "skerry[images]"'
        ) from None
    port = _only(file, ports)
    if len(port.shape) not in (3, 4):
        raise UsageError(f"{file}: expected a model that takes pictures, it takes {port.shape}")
    shape = port.shape[1:]
    channels_last = len(shape) == 3 and shape[-1] in (1, 3) and shape[0] not in (1, 3)
    channels = 1 if len(shape) == 2 else shape[-1] if channels_last else shape[0]
    with Image.open(file) as picture:
        values = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    if len(shape) == 3:
        values = values.reshape(*values.shape[:2], channels)
        values = values if channels_last else np.moveaxis(values, -1, 0)
    if port.datatype.startswith("FP") and not (port.range and port.range[1] > 1.0):
        values = values / np.float32(BYTE)  # from 0 to 1, unless the model says otherwise
    yield _fit(file, {port.name: values[None]}, ports)


_READERS: Final[Mapping[str, Callable[[Path, Sequence[Port], int], Iterator[Arrays]]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    **dict.fromkeys(PICTURES, _picture),
}
SUFFIXES: Final = tuple(_READERS)


def _only(file: Path, ports: Sequence[Port]) -> Port:
    if len(ports) != 1:
        names = ", ".join(port.name for port in ports)
        raise UsageError(
            f"{file}: the model takes {names}; give them by name in an .npz, .csv or .parquet"
        )
    return ports[0]


def _cut(file: Path, arrays: Arrays, ports: Sequence[Port], rows: int) -> Iterator[Arrays]:
    sizes = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if len(set(sizes.values())) > 1 or not all(values.ndim for values in arrays.values()):
        raise UsageError(f"{file}: expected arrays with as many samples each, got {sizes}")
    for first in range(0, max(sizes.values(), default=0), rows):
        part = {name: values[first : first + rows] for name, values in arrays.items()}
        yield _fit(file, part, ports)


def _table(file: Path, columns: Mapping[str, Sequence[Any]], ports: Sequence[Port]) -> Arrays:
    """Return columns as inputs: each its own, or all side by side for the only one."""
    if all(port.name in columns for port in ports):
        return _fit(file, {p.name: _array(file, p, p.name, columns[p.name]) for p in ports}, ports)
    port = ports[0]
    if len(ports) == 1 and len(port.shape) == 2 and port.shape[1] in (-1, len(columns)):
        side = [_array(file, port, name, values) for name, values in columns.items()]
        return _fit(file, {port.name: np.stack(side, axis=1)}, ports)
    wanted = ", ".join(f"{p.name} {list(p.shape)}" for p in ports)
    raise UsageError(
        f"{file}: expected a column for each of {wanted}, or as many columns as the only input "
        f"has; got {len(columns)}: {', '.join(columns)[:200]}"
    )


def _array(file: Path, port: Port, name: str, values: Sequence[Any]) -> NDArray[Any]:
    dtype = DTYPES[port.datatype]
    if dtype.kind == "O":
        return np.array([str(value) for value in values], dtype=object)
    try:
        return np.array(values, dtype=np.float64 if dtype.kind == "f" else None).astype(dtype)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{file}: expected {port.datatype} in column {name[:80]!r}: {error}"
        ) from None


def _fit(file: Path, arrays: Arrays, ports: Sequence[Port]) -> Arrays:
    """Return arrays of the types and shapes that the model takes."""
    fitted: Arrays = {}
    for port in ports:
        values = arrays[port.name]
        if values.ndim == 1 and len(port.shape) == 2 and port.shape[1] in (-1, 1):
            values = values[:, None]
        fits = len(values.shape) == len(port.shape) and all(
            want in (-1, got) for got, want in zip(values.shape[1:], port.shape[1:], strict=True)
        )
        if not fits:
            raise UsageError(
                f"{file}: expected samples of shape {list(port.shape[1:])} for {port.name!r} "
                f"(-1 is any length), got {list(values.shape[1:])}"
            )
        dtype = DTYPES[port.datatype]
        if dtype.kind != "O" and not np.can_cast(values.dtype, dtype, "same_kind"):
            raise UsageError(
                f"{file}: expected {port.datatype} for {port.name!r}, got {values.dtype}; "
                "convert it as in training"
            )
        fitted[port.name] = np.ascontiguousarray(values, dtype=dtype)
    return fitted
