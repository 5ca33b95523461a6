"""Patches: what they make, and everything that they must not be believed."""

import hashlib
import io
import lzma
import tracemalloc

import numpy as np
import pytest

from skerry.canonical import sha256
from skerry.delta import (
    COPY,
    DIFF,
    HEAD_BYTES,
    NEW,
    PIECE_BYTES,
    PatchHead,
    apply_patch,
    filters,
    read_head,
)
from skerry.errors import FormatError

OLD = np.random.default_rng(0).bytes(300_000)


def number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def skip(step: int) -> bytes:
    return number(step << 1 if step >= 0 else (-step << 1) - 1)


def head(new: bytes, old: bytes = OLD) -> PatchHead:
    return PatchHead(sha256(old), len(old), sha256(new), len(new), 16)


def packed(head: PatchHead, *instructions: bytes) -> bytes:
    body = b"".join(instructions)
    return head.to_bytes() + lzma.compress(body, lzma.FORMAT_RAW, filters=filters(head.window))


def made(patch: bytes, old: bytes = OLD, limit: int = 1 << 24, wanted: str | None = None) -> bytes:
    pieces = list(apply_patch(io.BytesIO(old), io.BytesIO(patch), limit_bytes=limit, wanted=wanted))
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


NEW_FILE = OLD[1000:200_000] + b"hello" + OLD[:10]
GOOD = (
    bytes([COPY]) + skip(1000) + number(199_000),
    bytes([NEW]) + number(5) + b"hello",
    bytes([COPY]) + skip(-200_000) + number(10),
)


def test_copies_and_new_bytes_make_the_new_file() -> None:
    patch = packed(head(NEW_FILE), *GOOD)
    assert made(patch) == NEW_FILE
    assert made(patch, wanted=sha256(NEW_FILE)) == NEW_FILE
    assert read_head(io.BytesIO(patch)) == head(NEW_FILE)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_differences_of_words_are_added_modulo_their_size(width: int) -> None:
    """Against numpy, over lengths around the piece, with every carry and sign there is."""
    rng = np.random.default_rng(width)
    for words in (1, 3, PIECE_BYTES // width, PIECE_BYTES // width + 1, 20_000):
        old = rng.bytes(words * width)
        was = np.frombuffer(old, f"<u{width}")
        change = np.frombuffer(rng.bytes(words * width), f"<i{width}")
        change = np.where(rng.random(words) < 0.5, change, change >> (8 * width - 3))
        now = was + change.view(f"<u{width}")
        coded = (change << 1) ^ (change >> (8 * width - 1))
        kind = DIFF + {1: 0, 2: 1, 4: 2, 8: 3}[width]
        new = now.tobytes()
        step = bytes([kind]) + skip(0) + number(len(new)) + coded.tobytes()
        assert made(packed(head(new, old), step), old) == new


def refused(patch: bytes, message: str, **rest: object) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        made(patch, **rest)  # type: ignore[arg-type]
    assert caught.value.code == "patch"


def test_what_is_no_patch_is_refused() -> None:
    good = packed(head(NEW_FILE), *GOOD)
    refused(b"", "other bytes")
    refused(good[: HEAD_BYTES - 1], "other bytes")
    refused(b"SKDELTA2" + good[8:], "other bytes")
    refused(good[:88] + bytes([40]) + good[89:], "window")
    refused(good[:40] + b"\xff" * 8 + good[48:], "files of at most")
    refused(good[:HEAD_BYTES] + b"\xff" * 50, "does not decompress")


def test_for_another_file_or_of_another_size_is_refused() -> None:
    good = packed(head(NEW_FILE), *GOOD)
    refused(good, "an old file of 300000 bytes", old=OLD[:-1])
    refused(good, "the old file differs", old=bytes([OLD[0] ^ 1]) + OLD[1:])
    refused(good, "at most 199014 bytes", limit=len(NEW_FILE) - 1)
    refused(good, "this one makes", wanted=sha256(b"another"))


def test_lies_about_lengths_and_places_are_refused() -> None:
    for step, message in (
        (bytes([COPY]) + skip(0) + number(len(OLD) + 1), "beyond the old file"),
        (bytes([COPY]) + skip(-1) + number(5), "beyond the old file"),
        (bytes([COPY]) + skip(1 << 50) + number(5), "beyond the old file"),
        (bytes([NEW]) + number(1 << 60) + b"x", "where 400000 are left"),
        (bytes([NEW]) + number(0), "makes 0 bytes"),
        (bytes([DIFF + 2]) + skip(0) + number(6) + bytes(6), "no words of 4"),
        (bytes([DIFF]) + skip(0) + number(300_000), "cut short"),
        (bytes([3]), "unknown instruction 3"),
        (bytes([DIFF + 4]), "unknown instruction 8"),
        (bytes([NEW]) + b"\xff" * 20, "too long"),
        (bytes([NEW]) + b"\x81\x00x", "too long"),
    ):
        refused(packed(head(bytes(400_000)), step), message)


def test_more_or_less_than_the_new_file_is_refused() -> None:
    whole = head(NEW_FILE)
    refused(packed(whole, *GOOD[:2]), "cut short")
    refused(packed(whole, *GOOD, b"\x01"), "after the end")
    refused(packed(whole, *GOOD) + b"x", "after its end")
    refused(packed(whole, *GOOD)[:-1], "cut short")


def test_a_bomb_costs_neither_memory_nor_a_byte_beyond_the_limit() -> None:
    """A body that unpacks to 256 MiB: as new bytes it is beyond the limit, as more it is never read."""
    zeros = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters(16))
    start = bytes([NEW]) + number(4)
    body = zeros.compress(start) + b"".join(zeros.compress(bytes(1 << 20)) for _ in range(256))
    body += zeros.flush()
    assert len(body) < 1 << 17
    tracemalloc.start()
    refused(head(bytes(4)).to_bytes() + body, "after the end")
    refused(PatchHead(sha256(OLD), len(OLD), sha256(b""), 1 << 30, 16).to_bytes() + body, "at most")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_memory_does_not_grow_with_the_files() -> None:
    size = 16 << 20
    old = bytes(size)
    coded = bytes([2]) * size  # one up, everywhere
    new = hashlib.sha256(bytes([1]) * size).hexdigest()
    to = PatchHead(sha256(old), size, "sha256:" + new, size, 16)
    patch = io.BytesIO(packed(to, bytes([DIFF]) + skip(0) + number(size), coded))
    source = io.BytesIO(old)
    tracemalloc.start()
    total = sum(map(len, apply_patch(source, patch, limit_bytes=size)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size
    assert peak < 2 << 20


def test_endless_small_instructions_are_refused() -> None:
    many = (bytes([NEW]) + number(1) + b"x") * 200_001
    refused(packed(head(b"x" * 200_001), many), "at most 200000 instructions")
