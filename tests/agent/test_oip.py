"""The protocol's messages: what is refused, and with which words."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.oip import Answer, decode_request, encode_answer, read_inputs
from skerry.errors import UsageError
from skerry.manifest import TensorSpec

X = {"x": TensorSpec("x", "FP32", [-1, 2])}


def ask(body: dict[str, Any], raw: bytes = b"", specs: dict[str, TensorSpec] = X) -> Any:
    head = json.dumps(body).encode()
    request, rest = decode_request(head + raw, len(head) if raw else None)
    return read_inputs(request, rest, specs)


def given_x(**changes: Any) -> dict[str, Any]:
    x = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2]} | changes
    return {"inputs": [{key: value for key, value in x.items() if value is not None}]}


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_data_may_be_flat_or_nested(data: Any) -> None:
    tensor = ask(given_x(shape=[2, 2], data=data))["x"]
    assert tensor.dtype == np.float32
    assert tensor.tolist() == [[1, 2], [3, 4]]


def test_json_may_be_spaced_as_it_likes() -> None:
    body = b'{ "inputs" : [ {"name":"x", "shape":[1,2], "datatype":"FP32", "data" : [\n [ 1 ,2 ] ] } ] }'
    request, rest = decode_request(body, None)
    assert read_inputs(request, rest, X)["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("body", "raw", "message"),
    [
        (given_x(data=[1]), b"", r"data of shape \[1, 2\]"),
        (given_x(data=[[1], [2]]), b"", r"data of shape \[1, 2\]"),
        (given_x(data=[[1], [2, 3]]), b"", "flat or nested"),
        (given_x(data=[1, "2"]), b"", "flat or nested"),
        (given_x(data=[1, None]), b"", "flat or nested"),
        (given_x(data=None), b"", "flat or nested"),
        (given_x(data="text"), b"", "flat or nested"),
        (given_x(shape=[0, 2], data=[]), b"", "at least 1"),
        (given_x(shape=[-1, 2]), b"", "at least 1"),
        (given_x(shape=[2]), b"", r"expected shape \[-1, 2\]"),
        (given_x(datatype="BF16"), b"", "expected FP32"),
        (given_x(name="y"), b"", "expected the inputs x"),
        ({"inputs": []}, b"", "x is missing"),
        (given_x(data=None, parameters={"binary_data_size": 8}), b"1234", "4 are left"),
        (given_x(data=None, parameters={"binary_data_size": "8"}), bytes(8), "8 are left"),
        (given_x(data=None, parameters={"binary_data_size": 4}), bytes(4), "expected 8 bytes"),
        (given_x(data=None, parameters={"binary_data_size": 8}), bytes(9), "1 bytes follow"),
        (given_x(parameters={"shared_memory_region": "r"}), b"", "shared memory"),
        ({"inputs": 3}, b"", "inference request in JSON"),
        (given_x() | {"id": "x" * 200}, b"", "at most 128"),
    ],
)
def test_a_refusal_says_what_was_expected(body: Any, raw: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(body, raw)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(UsageError, match="inference request"):
        decode_request(body, None)


def test_a_header_longer_than_the_body_is_refused() -> None:
    with pytest.raises(UsageError, match="bytes of JSON"):
        decode_request(b"{}", 3)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("INT64", 2**63), ("UINT64", 2**64)],
)
def test_integers_beyond_their_type_are_refused(datatype: str, value: int) -> None:
    specs = {"x": TensorSpec("x", datatype, [1])}
    with pytest.raises(UsageError, match="flat or nested"):
        ask(given_x(shape=[1], datatype=datatype, data=[value]), specs=specs)


@pytest.mark.parametrize(("datatype", "value"), [("INT32", 1.5), ("INT32", True), ("BOOL", 1)])
def test_no_value_is_bent_into_another_kind(datatype: str, value: Any) -> None:
    specs = {"x": TensorSpec("x", datatype, [1])}
    with pytest.raises(UsageError, match="flat or nested"):
        ask(given_x(shape=[1], datatype=datatype, data=[value]), specs=specs)


def test_large_integers_keep_every_digit() -> None:
    specs = {"x": TensorSpec("x", "UINT64", [2])}
    tensor = ask(given_x(shape=[2], datatype="UINT64", data=[1, 2**64 - 1]), specs=specs)["x"]
    assert tensor.tolist() == [1, 2**64 - 1]


def test_text_that_is_no_utf8_is_refused() -> None:
    specs = {"x": TensorSpec("x", "BYTES", [1])}
    body = given_x(shape=[1], datatype="BYTES", data=None, parameters={"binary_data_size": 5})
    with pytest.raises(UsageError, match="UTF-8"):
        ask(body, b"\x01\0\0\0\xff", specs)


def test_what_json_cannot_say_is_null() -> None:
    request, _ = decode_request(json.dumps(given_x()).encode(), None)
    outputs = {"y": np.array([[math.nan, math.inf, 1.0]], dtype=np.float32)}
    answer = Answer("m", "1", "id", {})
    specs = {"y": TensorSpec("y", "FP32", [-1, 3])}
    (body,), length = encode_answer(answer, request, outputs, specs)
    assert length is None
    assert json.loads(body)["outputs"][0]["data"] == [None, None, 1.0]


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 200)))
def test_any_bytes_are_read_or_refused(body: bytes, length: int | None) -> None:
    try:
        request, raw = decode_request(body, length)
        read_inputs(request, raw, X)
    except UsageError:
        pass
