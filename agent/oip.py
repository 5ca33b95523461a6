"""The Open Inference Protocol's messages: bytes into tensors, tensors into bytes.

A request is JSON, or JSON followed by raw tensors (binary tensor data extension): the
header ``Inference-Header-Content-Length`` then gives the length of the JSON, and a
tensor with ``binary_data_size`` takes that many of the bytes behind it, in order. The
same holds for a response, where the request asked for binary outputs.

Every refusal here is a `UsageError` that says what was expected and what came.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from skerry.errors import FormatError, UsageError
from skerry.manifest import TensorSpec
from skerry.tensors import DTYPES, as_text, from_raw, to_raw

__all__ = [
    "Answer",
    "InferRequest",
    "check_texts",
    "check_wanted",
    "decode_request",
    "encode_answer",
    "read_inputs",
]

Tensors = dict[str, NDArray[Any]]
MAX_ID_LENGTH: Final = 128
MAX_TEXT: Final = 1 << 17  # characters of one request for a model with a tokenizer in it
MAX_DEPTH: Final = 8  # dimensions of a tensor given as nested JSON lists
_OPENING: Final = re.compile(rb"\s*\[[\s\[]*")
_KIND: Final[Mapping[str, type]] = {"b": bool, "i": int, "u": int, "f": float, "O": str}


class InputTensor(msgspec.Struct):
    """One input as the request gives it; `data` is absent where the bytes follow."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class RequestedOutput(msgspec.Struct):
    """One output that the request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON part of an inference request."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[RequestedOutput] = []


class OutputTensor(msgspec.Struct, omit_defaults=True):
    """One output as the response gives it."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: msgspec.Raw | None = None


class Answer(msgspec.Struct):
    """The JSON part of a response."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, str | bool]
    outputs: list[OutputTensor] = []


_REQUEST: Final = msgspec.json.Decoder(InferRequest)
_ENCODER: Final = msgspec.json.Encoder()


def decode_request(body: bytes, json_length: int | None) -> tuple[InferRequest, memoryview]:
    """Split a body into its JSON part and the raw tensors behind it.

    Args:
        body: the whole body, decompressed.
        json_length: of ``Inference-Header-Content-Length``; None without that header.
    """
    view = memoryview(body)
    end = len(body) if json_length is None else json_length
    if end > len(body):
        raise UsageError(f"expected {end} bytes of JSON in the body, got {len(body)} bytes in all")
    try:
        request = _REQUEST.decode(view[:end])
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"expected an inference request in JSON: {error}") from None
    # '#' divides the id of a batch from the number of its row
    if len(request.id) > MAX_ID_LENGTH or "#" in request.id:
        raise UsageError(f"expected an id of at most {MAX_ID_LENGTH} characters without '#'")
    return request, view[end:]


def read_inputs(request: InferRequest, raw: memoryview, specs: Mapping[str, TensorSpec]) -> Tensors:
    """Return the input tensors, checked against what the model takes.

    Args:
        request: the JSON part.
        raw: the bytes behind it.
        specs: the model's inputs by name; -1 is a dimension that the caller chooses.
    """
    tensors: Tensors = {}
    for given in request.inputs:
        spec = specs.get(given.name)
        if spec is None or given.name in tensors:
            known = ", ".join(specs)
            raise UsageError(f"expected the inputs {known}, each once; got {given.name[:80]!r}")
        _check(given, spec)
        size = given.parameters.get("binary_data_size")
        if size is None:
            if "shared_memory_region" in given.parameters:
                raise UsageError("shared memory is not offered; send the tensor in the request")
            tensors[given.name] = _from_json(given, spec)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(raw):
            raise UsageError(
                f"expected {str(size)[:20]} bytes for {given.name!r}, {len(raw)} are left"
            )
        try:
            tensors[given.name] = as_text(from_raw(raw[:size], given.datatype, given.shape))
        except FormatError as error:
            raise UsageError(f"input {given.name!r}: {error}") from None
        raw = raw[size:]
    if len(tensors) < len(specs):
        missing = ", ".join(name for name in specs if name not in tensors)
        raise UsageError(f"expected a value for each input; {missing} is missing")
    if len(raw):
        raise UsageError(f"expected the body to end with the last tensor; {len(raw)} bytes follow")
    return tensors


def check_texts(tensors: Tensors) -> None:
    """Refuse texts that a tokenizer in the model would end unsaid, or take much memory for.

    As many ideographs as are allowed took 55 MB for a moment (measured): each is a string.
    """
    letters = 0
    for name, tensor in tensors.items():
        for text in tensor.ravel().tolist() if tensor.dtype.kind == "O" else ():
            letters += len(text)
            if "\0" in text:
                raise UsageError(f"expected text without NUL characters in input {name!r}")
    if letters > MAX_TEXT:
        raise UsageError(
            f"expected at most {MAX_TEXT} characters of text in a request, got {letters}; the "
            "model reads the beginning of each text alone"
        )


def check_wanted(request: InferRequest, specs: Mapping[str, TensorSpec]) -> None:
    """Refuse a request for outputs that there are not, before anything is run."""
    for output in request.outputs:
        if output.name not in specs:
            known = ", ".join(specs)
            raise UsageError(f"expected outputs of {known}; got {output.name[:80]!r}")
        if output.parameters.get("classification"):
            raise UsageError("the classification extension is not offered; ask for the tensor")
        if "shared_memory_region" in output.parameters:
            raise UsageError("shared memory is not offered; take the tensor from the response")


def encode_answer(
    answer: Answer,
    request: InferRequest,
    outputs: Mapping[str, NDArray[Any]],
    specs: Mapping[str, TensorSpec],
) -> tuple[list[bytes], int | None]:
    """Return the body of a response, and the length of its JSON part where raw tensors follow.

    Args:
        answer: its head; the outputs are filled in here.
        request: which outputs it asks for, in which order and form; `check_wanted` passed.
        outputs: every output of the model.
        specs: the model's outputs by name.
    """
    every = bool(request.parameters.get("binary_data_output", False))
    parts: list[bytes] = [b""]
    wanted = request.outputs or [RequestedOutput(name) for name in specs]
    for output in wanted:
        spec = specs[output.name]
        tensor = outputs[output.name]
        shape = list(tensor.shape)
        if output.parameters.get("binary_data", every):
            raw = to_raw(tensor)
            parts.append(raw)
            entry = OutputTensor(output.name, spec.datatype, shape, {"binary_data_size": len(raw)})
        else:
            data = msgspec.Raw(_ENCODER.encode(tensor.ravel().tolist()))
            entry = OutputTensor(output.name, spec.datatype, shape, data=data)
        answer.outputs.append(entry)
    parts[0] = _ENCODER.encode(answer)
    return parts, len(parts[0]) if len(parts) > 1 else None


def _check(given: InputTensor, spec: TensorSpec) -> None:
    if given.datatype != spec.datatype:
        raise UsageError(
            f"expected {spec.datatype} for input {spec.name!r}, got {given.datatype[:20]!r}"
        )
    fits = len(given.shape) == len(spec.shape) and all(
        got > 0 and want in (-1, got) for got, want in zip(given.shape, spec.shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"expected shape {spec.shape} for input {spec.name!r} (-1 is any length of at least 1), "
            f"got {given.shape[:16]}"
        )


def _from_json(given: InputTensor, spec: TensorSpec) -> NDArray[Any]:
    data = bytes(given.data)
    opening = _OPENING.match(data)
    depth = min(opening[0].count(b"["), MAX_DEPTH) if opening else 1
    dtype = DTYPES[spec.datatype]
    try:
        values = _decoder(dtype.kind, depth).decode(data)
        array = np.array(values, dtype=dtype)
    except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
        raise UsageError(
            f"expected {spec.datatype} values for input {spec.name!r}, flat or nested as its "
            f"shape: {error}"
        ) from None
    if array.size != math.prod(given.shape) or (array.ndim > 1 and [*array.shape] != given.shape):
        raise UsageError(
            f"expected data of shape {given.shape} for input {spec.name!r}, got {[*array.shape]}"
        )
    return array.reshape(given.shape)


@cache
def _decoder(kind: str, depth: int) -> msgspec.json.Decoder[Sequence[Any]]:
    nested: Any = _KIND[kind]
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested)
