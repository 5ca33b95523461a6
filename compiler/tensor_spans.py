"""Where the tensors of an ONNX file lie: name, type and span of the bytes of every initializer.

Walks the file on the wire, as `skerry.onnx_outline` does, since a parser gives values and not
places. A file that is none, or does things that ONNX files do not do, has no tensors here: it is a
file like any other then.

Source: onnx.proto of ONNX 1.17 (IR version 10); protobuf's encoding guide.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Span", "tensor_spans"]

GRAPH, INITIALIZER = 7, 5
DATA_TYPE, NAME = 2, 8
# field -> bytes of a word: what holds the values, if it is packed
VALUES: Final = {4: 4, 9: 0, 10: 8}  # float_data, raw_data, double_data
# data type -> bytes of a word of raw_data, where it is not 1
WORD_BYTES: Final = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # fmt: skip
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Span:
    """Where one tensor's values lie, and in words of how many bytes."""

    start: int
    end: int
    width: int


class _Strange(Exception):  # noqa: N818 - never leaves this module
    """Not the wire format of an ONNX file."""


def tensor_spans(data: bytes) -> dict[str, Span]:
    """Return the spans of all initializers by name, in the order of the file.

    Empty for anything but the wire format of an ONNX model, and for names that occur twice.
    """
    spans: dict[str, Span] = {}
    try:
        for field, start, end in _messages(data, 0, len(data)):
            if field != GRAPH:
                continue
            for inner, first, last in _messages(data, start, end):
                if inner == INITIALIZER:
                    name, span = _tensor(data, first, last)
                    if span is not None and spans.setdefault(name, span) is not span:
                        return {}
    except _Strange:
        return {}
    return spans


def _tensor(data: bytes, start: int, end: int) -> tuple[str, Span | None]:
    name, kind, found = "", 0, None
    position = start
    while position < end:
        field, wire, first, position = _field(data, position, end)
        if field == NAME and wire == BYTES:
            name = data[first:position].decode("utf-8", "replace")
        elif field == DATA_TYPE and wire == VARINT:
            kind = data[first]
        elif field in VALUES and wire == BYTES and position > first:
            found = (field, first, position)
    if found is None:
        return name, None
    field, first, last = found
    width = VALUES[field] or WORD_BYTES.get(kind, 1)
    return name, Span(first, last, width if (last - first) % width == 0 else 1)


def _messages(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Give number and span of every field that may be a message."""
    while start < end:
        field, wire, first, start = _field(data, start, end)
        if wire == BYTES:
            yield field, first, start


def _field(data: bytes, position: int, end: int) -> tuple[int, int, int, int]:
    tag, position = _varint(data, position, end)
    wire, start = tag & 7, position
    if wire == VARINT:
        _, position = _varint(data, position, end)
    elif wire == BYTES:
        length, start = _varint(data, position, end)
        position = start + length
    elif wire in (FIXED64, FIXED32):
        position += 8 if wire == FIXED64 else 4
    else:
        raise _Strange
    if position > end:
        raise _Strange
    return tag >> 3, wire, start, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _Strange
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Strange
