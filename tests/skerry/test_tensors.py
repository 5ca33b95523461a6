"""Raw tensors: what was written is read, and other lengths are refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skerry.errors import FormatError, UsageError
from skerry.tensors import DTYPES, datatype_of, from_raw, to_raw

NUMBERS = st.sampled_from([dtype for name, dtype in DTYPES.items() if name != "BYTES"])
SHAPES = arrays.array_shapes(max_dims=4, max_side=4)


@given(array=NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)))
def test_numbers_come_back_byte_by_byte(array: Any) -> None:
    back = from_raw(to_raw(array), datatype_of(array), array.shape)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(elements=st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_bytes_come_back(elements: list[bytes]) -> None:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    assert from_raw(to_raw(array), "BYTES", [len(elements)]).tolist() == elements


def test_text_becomes_utf8() -> None:
    array = np.array(["a", "ö"])
    assert datatype_of(array) == "BYTES"
    assert to_raw(array) == b"\x01\0\0\0a\x02\0\0\0\xc3\xb6"


def test_big_endian_is_turned_around() -> None:
    array = np.array([1, 2], dtype=">i4")
    assert datatype_of(array) == "INT32"
    assert to_raw(array) == b"\x01\0\0\0\x02\0\0\0"


def test_a_view_at_an_odd_place_is_aligned() -> None:
    data = memoryview(b"x" + np.arange(3, dtype=np.float64).tobytes())[1:]
    array = from_raw(data, "FP64", [3])
    assert array.flags.aligned
    assert array.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("data", "datatype", "shape"),
    [
        (b"123", "FP32", [1]),
        (b"12345678", "FP32", [1]),
        (b"", "FP32", [1]),
        (b"\x05\0\0\0abc", "BYTES", [1]),
        (b"\x01\0\0\0ab", "BYTES", [1]),
        (b"\x01\0\0\0a\x01\0", "BYTES", [2]),
        (b"\x01\0\0\0a", "BYTES", [2]),
    ],
)
def test_other_lengths_are_refused(data: bytes, datatype: str, shape: list[int]) -> None:
    with pytest.raises(FormatError, match="expected"):
        from_raw(data, datatype, shape)


def test_a_type_that_the_protocol_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="complex"):
        datatype_of(np.zeros(1, dtype=np.complex64))
