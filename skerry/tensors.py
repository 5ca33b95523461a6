"""Tensors as raw bytes: the datatypes of the Open Inference Protocol, little-endian.

Numbers are their plain bytes in row-major order; a BYTES tensor is, for each element,
a 4-byte length and that many bytes (the protocol's binary tensor data extension).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import FormatError, UsageError

__all__ = ["DTYPES", "MAX_RANK", "as_text", "datatype_of", "from_raw", "to_raw"]

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_DATATYPES: Final = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES: Final = 4
MAX_RANK: Final = 32


def datatype_of(array: NDArray[Any]) -> str:
    """Return the protocol's name of an array's type.

    Raises:
        UsageError: a type that the protocol does not have.
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _DATATYPES[array.dtype.newbyteorder("<")]
    except KeyError:
        known = ", ".join(DTYPES)
        raise UsageError(f"expected an array of {known}; got {array.dtype}") from None


def to_raw(array: NDArray[Any]) -> bytes:
    """Return the raw bytes of an array; text becomes UTF-8."""
    if array.dtype.kind in "OSU":
        items = [x.encode() if isinstance(x, str) else bytes(x) for x in array.ravel().tolist()]
        return b"".join(len(x).to_bytes(_LENGTH_BYTES, "little") + x for x in items)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def from_raw(data: bytes | memoryview, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Return the array of raw bytes; it may be a read-only view of them.

    Args:
        data: exactly the tensor's bytes.
        datatype: a key of `DTYPES`.
        shape: no dimension open.

    Returns:
        An array of that shape; for BYTES, of `bytes` objects.

    Raises:
        FormatError: the bytes are not as many as type and shape promise.
    """
    if datatype not in DTYPES or any(size < 0 for size in shape) or len(shape) > MAX_RANK:
        raise FormatError(
            f"expected a tensor of {', '.join(DTYPES)} and a closed shape, "
            f"got {datatype[:40]!r} {list(shape)[:MAX_RANK]}"
        )
    count = math.prod(shape)
    if datatype == "BYTES":
        if count * _LENGTH_BYTES > len(data):  # before room is made for so many
            raise FormatError(f"expected {count} elements in BYTES, got {len(data)} bytes")
        elements = np.empty(count, dtype=object)
        elements[:] = _split(bytes(data), count)
        return elements.reshape(shape)
    dtype = DTYPES[datatype]
    if count * dtype.itemsize != len(data):
        raise FormatError(
            f"expected {count * dtype.itemsize} bytes for {datatype} {list(shape)}, got {len(data)}"
        )
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    # a tensor behind a header of odd length; not every kernel reads such memory
    return array if array.flags.aligned else array.copy()


def as_text(tensor: NDArray[Any]) -> NDArray[Any]:
    """Return a BYTES tensor as text, which is what a model takes; any other as it is.

    Raises:
        FormatError: bytes that are not UTF-8.
    """
    if tensor.dtype.kind != "O":
        return tensor
    text = np.empty(tensor.shape, dtype=object)
    try:
        text.ravel()[:] = [element.decode() for element in tensor.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise FormatError(f"expected UTF-8 in BYTES: {error}") from None
    return text


def _split(data: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at + _LENGTH_BYTES <= len(data) and len(elements) < count:
        end = at + _LENGTH_BYTES + int.from_bytes(data[at : at + _LENGTH_BYTES], "little")
        if end > len(data):
            break
        elements.append(data[at + _LENGTH_BYTES : end])
        at = end
    if at != len(data) or len(elements) != count:
        raise FormatError(f"expected {count} elements, each behind its 4-byte length, in BYTES")
    return elements
