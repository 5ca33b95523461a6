"""Data sets: named arrays of samples, from whatever file or function keeps them.

    calibration.npz        arrays of numpy, no pickles
    calibration/           a directory with one `.npy` per array
    calibration.csv        one column per array, its first line the names
    calibration.parquet    the same; lists become axes (needs `skerry[parquet]`)
    module:function        a Python function of the recipe's folder: () -> {name: array}
    data.npz[0:500]        some samples of any of these, from the first to before the last

Files may come from anywhere: pickles are refused, and what a file would unpack to is
looked up before anything is unpacked. A function is the publisher's own code, and runs.
The digest is of the arrays, so that the same data has one name in any form.
"""

import contextlib
import csv
import functools
import hashlib
import importlib
import importlib.util
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import FormatError, NotFoundError, UsageError

__all__ = ["DataSet", "entry_point", "read_data", "spread"]

MAX_UNPACKED_BYTES: Final = 8 << 30
MAX_TEXT_BYTES: Final = 1 << 30
_PART: Final = re.compile(r"(?P<of>.+)\[(?P<first>[0-9]{0,12}):(?P<last>[0-9]{0,12})\]")


@dataclass(frozen=True, slots=True)
class DataSet:
    """Arrays of samples, by name, and the digest of all of them."""

    arrays: Mapping[str, NDArray[Any]]
    digest: str


def read_data(given: str, folder: Path, key: str = "the recipe") -> DataSet:
    """Read a data set.

    Args:
        given: as the recipe says it: a file, a directory, or ``module:function``.
        folder: of the recipe, where relative paths and modules begin.
        key: of the recipe, for messages.

    Raises:
        NotFoundError: there is no such file, directory or function.
        FormatError: damaged, of another kind, or too large.
        UsageError: the function raised, or returned something else.
    """
    part = _PART.fullmatch(given)
    if part is not None and not (folder / given).exists():
        whole = read_data(part["of"], folder, key)
        first, last = (int(part[name]) if part[name] else None for name in ("first", "last"))
        some = {name: values[first:last] for name, values in whole.arrays.items() if values.ndim}
        return DataSet(some, _digest(some))
    path = folder / given
    if path.is_dir():
        arrays = _directory(path)
    elif path.is_file():
        arrays = _file(path)
    elif ":" in given:
        arrays = _called(given, folder)
    else:
        raise NotFoundError(
            f"{key} names {given!r}, and there is no file {path}; "
            "correct the path, or make the file"
        )
    if not arrays:
        raise FormatError(f"expected named arrays in {given}, it has none")
    return DataSet(arrays, _digest(arrays))


def entry_point(given: str, folder: Path) -> Callable[..., Any]:
    """Return the function that ``module:function`` names, from the recipe's folder.

    What it prints goes to stderr, since stdout is for data; where it ends the program it raises
    RuntimeError instead.

    Raises:
        NotFoundError: there is no such module or function.
        UsageError: the module cannot be imported.
    """
    module, _, name = given.partition(":")
    if not module or not name:
        raise UsageError(f"expected module:function, got {given!r}")
    file = folder / f"{module.replace('.', '/')}.py"
    try:
        with _held():
            found = _load(module, file) if file.is_file() else importlib.import_module(module)
    except Exception as error:  # the publisher's own code may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            raise NotFoundError(
                f"expected a module {module!r} for {given!r}, beside the recipe or installed: "
                f"there is no file {file}, and {error}"
            ) from None
        raise UsageError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(found, name, None)
    if not callable(function):
        raise NotFoundError(f"expected a function {name!r} in {module}, there is none")

    @functools.wraps(function)
    def held(*args: Any) -> Any:
        with _held():
            return function(*args)

    return held


def spread(n: int, most: int) -> NDArray[np.int64]:
    """Return up to `most` positions spread evenly over `n` samples, int64, ascending."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _file(path: Path) -> dict[str, NDArray[Any]]:
    readers = {".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix)
    if reader is None:
        raise UsageError(
            f"expected data as {', '.join(readers)}, a directory of .npy or module:function; "
            f"got {path.name}"
        )
    return reader(path)


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # as below
        raise FormatError(f"expected {path.name} to be an .npz of plain arrays: {error}") from None
    if unpacked > MAX_UNPACKED_BYTES:
        raise FormatError(f"{path.name} unpacks to {unpacked} bytes; take fewer samples")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _plain(name, arrays[name]) for name in arrays.files}
    except Exception as error:  # damage makes zipfile, zlib, numpy and tokenize raise their own
        raise FormatError(f"expected {path.name} to be an .npz of plain arrays: {error}") from None


def _directory(path: Path) -> dict[str, NDArray[Any]]:
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        try:
            arrays[file.stem] = _plain(file.stem, np.load(file, allow_pickle=False))
        except Exception as error:  # as above
            raise FormatError(
                f"expected plain arrays as .npy in {path}, {file.name} is none: {error}"
            ) from None
    return arrays


def _plain(name: str, values: object) -> NDArray[Any]:
    if not isinstance(values, np.ndarray):  # another kind of file between the arrays
        raise ValueError(f"{name!r} is no array")
    return values


def _csv(path: Path) -> dict[str, NDArray[Any]]:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise FormatError(f"expected a .csv of at most {MAX_TEXT_BYTES} bytes, take an .npz")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise FormatError(f"expected {path.name} to be UTF-8 CSV: {error}") from None
    if len(set(names)) != len(names):
        raise FormatError(f"expected different column names in {path.name}, got {names}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise FormatError(
                f"expected {len(names)} columns in line {number} of {path.name}, got {len(row)}"
            )
    return {name: _column([row[i] for row in rows]) for i, name in enumerate(names)}


def _column(values: list[str]) -> NDArray[Any]:
    """Return whole numbers, numbers or text, the first that all values are; empty is NaN."""
    for dtype in (np.int64, np.float64):
        try:
            given = values if dtype is np.int64 else [value or "nan" for value in values]
            return np.asarray([dtype(value) for value in given], dtype=dtype)
        except (ValueError, OverflowError):
            continue
    return np.asarray(values, dtype=object)


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        raise UsageError(
            f"reading {path.name} needs pyarrow, which is not installed: "
            "pip install 'skerry[parquet]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise FormatError(f"expected {path.name} to be Parquet: {error}") from None
    arrays = {}
    for name in table.column_names:
        values = table.column(name).to_numpy(zero_copy_only=False)
        if values.dtype == object and len(values) and isinstance(values[0], np.ndarray):
            try:
                values = np.stack([np.stack(list(v)) if v.dtype == object else v for v in values])
            except ValueError:
                raise FormatError(
                    f"expected lists of one length in column {name!r} of {path.name}"
                ) from None
        arrays[name] = values
    return arrays


def _called(given: str, folder: Path) -> dict[str, NDArray[Any]]:
    function = entry_point(given, folder)
    try:
        found = function()
        if not isinstance(found, Mapping):  # a function that yields batches
            with _held():  # the body of a generator runs only now
                batches = list(found)
            if not batches:
                raise ValueError("it yields none")
            found = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
        return {str(name): np.asarray(values) for name, values in found.items()}
    except Exception as error:  # as in `entry_point`
        raise UsageError(
            f"expected {given} to return arrays by name: {type(error).__name__}: {error}"
        ) from error


def _load(module: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(module, file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    before = sys.modules.get(module)
    sys.modules[module] = found  # data classes look themselves up there
    sys.path.insert(0, str(file.parent))  # its neighbours may be imported too
    try:
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(file.parent))
        if before is None:
            sys.modules.pop(module, None)
        else:
            sys.modules[module] = before
    return found


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Run the publisher's code so that it neither ends the program nor writes among its data."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        except SystemExit as error:
            raise RuntimeError(f"it ends the program: sys.exit({error.code!r})") from None


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        values = arrays[name]
        total.update(f"{name}\0{values.dtype.str}\0{values.shape}\0".encode())
        if values.dtype.kind == "O":
            for value in values.reshape(-1).tolist():
                text = str(value).encode(errors="surrogatepass")
                total.update(f"{len(text)}\0".encode() + text)
        else:
            if values.dtype.kind in "mM":  # times have no buffer
                values = values.view(np.int64)
            little = values.astype(values.dtype.newbyteorder("<"), copy=False)
            total.update(np.ascontiguousarray(little).data if values.size else b"")
    return f"sha256:{total.hexdigest()}"
