"""Making patches: from a file that devices have to the next one, tensor by tensor.

1. Tensors of the same name, type and size lie opposite each other. Each is copied if it is the same,
   else given as differences or anew, whichever a quick compression finds smaller.
2. What stands between them, the graph, and all of a file without tensors, is put together of runs
   of 16 bytes and more that the old file has anywhere, and new bytes.
3. All of it is compressed as one. A patch that saves less than a tenth of the file is none.

The same two files give the same patch with one version of the `lzma` library; a patch is named by
its digest. Nothing leaves here that was not applied once, with the result compared.

Source: zigzag and LEB128 as in protobuf's encoding guide; matching by hashes of aligned blocks
after A. Tridgell, "Efficient Algorithms for Sorting and Synchronization", 1999, chapter 3.
"""

import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from compiler.tensor_spans import Span, tensor_spans
from skerry.canonical import sha256
from skerry.delta import (
    COPY,
    DIFF,
    MAX_INSTRUCTIONS,
    MAX_WINDOW,
    MIN_WINDOW,
    NEW,
    PatchHead,
    apply_patch,
    filters,
)
from skerry.errors import SkerryError

__all__ = ["make_patch"]

WORTH: Final = 0.9  # of the new file's bytes; a patch of more is not worth its trouble
BLOCK: Final = 16  # bytes
SMALLEST: Final = 4  # bytes of a tensor that gets a step of its own
MAX_BLOCKS: Final = 1 << 20  # of the old file that are looked at
CHUNK: Final = 1 << 22
SAMPLE_BYTES: Final = 1 << 20  # of a tensor, to choose by
SLOW_BELOW: Final = 16 << 20  # bytes of body that are worth the slowest compression
KIND: Final = {1: DIFF, 2: DIFF + 1, 4: DIFF + 2, 8: DIFF + 3}
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class _Step:
    """One instruction: bytes [start, end) of the new file, from `place` of the old one."""

    kind: int
    start: int
    end: int
    place: int = 0
    width: int = 1


def make_patch(old: bytes, new: bytes) -> bytes | None:
    """Return a patch that makes the new file of the old one, None where it saves too little.

    Args:
        old: what devices have.
        new: what they shall have.
    """
    steps = _merged(_plan(old, new))
    if len(steps) > MAX_INSTRUCTIONS:
        return None
    body = b"".join(_encoded(steps, old, new))
    window = min(max(MIN_WINDOW, (len(body) - 1).bit_length()), MAX_WINDOW)
    head = PatchHead(sha256(old), len(old), sha256(new), len(new), window)
    preset = 9 | lzma.PRESET_EXTREME if len(body) <= SLOW_BELOW else 6
    chain = [filters(window)[0] | {"preset": preset}]
    patch = head.to_bytes() + lzma.compress(body, lzma.FORMAT_RAW, filters=chain)
    if len(patch) > WORTH * len(new):
        return None
    made = apply_patch(io.BytesIO(old), io.BytesIO(patch), limit_bytes=len(new))
    if b"".join(made) != new:
        raise SkerryError("a patch was made that makes another file; please report this")
    return patch


# --- what is opposite what ----------------------------------------------------------------


def _plan(old: bytes, new: bytes) -> Iterator[_Step]:
    """Give steps that make the whole new file, in order."""
    before, after = tensor_spans(old), tensor_spans(new)
    matcher, position, was = _Matcher(old), 0, 0
    for name, span in sorted(after.items(), key=lambda item: item[1].start):
        twin = before.get(name)
        size = span.end - span.start
        if twin is None or size < SMALLEST or twin.end - twin.start != size:
            continue
        yield from _between(matcher, new, position, span.start, was, twin.start)
        yield _tensor(old, new, span, twin)
        position, was = span.end, twin.end
    yield from _between(matcher, new, position, len(new), was, len(old))


def _between(
    matcher: "_Matcher", new: bytes, start: int, end: int, was: int, until: int
) -> Iterator[_Step]:
    """Give steps for what lies between two tensors."""
    old = matcher.old
    if end - start == until - was and _same(old, new, start, end, was):
        if start < end:
            yield _Step(COPY, start, end, was)
        return
    yield from matcher.steps(new, start, end)


def _tensor(old: bytes, new: bytes, span: Span, twin: Span) -> _Step:
    """Choose how a tensor is given."""
    if _same(old, new, span.start, span.end, twin.start):
        return _Step(COPY, span.start, span.end, twin.start)
    choices = [
        _Step(NEW, span.start, span.end),
        *(_Step(KIND[w], span.start, span.end, twin.start, w) for w in {1, span.width}),
    ]
    return min(choices, key=lambda step: (_cost(step, old, new), step.kind))


def _same(old: bytes, new: bytes, start: int, end: int, place: int) -> bool:
    return memoryview(old)[place : place + end - start] == memoryview(new)[start:end]


def _cost(step: _Step, old: bytes, new: bytes) -> int:
    """Return about how many bytes a step takes, by a quick look at its beginning."""
    length = min(step.end - step.start, SAMPLE_BYTES)
    return len(zlib.compress(_content(step, old, new, length), 3))


class _Matcher:
    """Finds runs of an old file in a new one."""

    def __init__(self, old: bytes) -> None:
        self.old = old
        self._step = max(BLOCK, -(-len(old) // MAX_BLOCKS))
        self._hashes: NDArray[np.uint64] | None = None
        self._places: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def steps(self, new: bytes, start: int, end: int) -> Iterator[_Step]:
        """Give steps that make bytes [start, end) of a new file."""
        position = start  # up to where it is made
        for at, place in self._candidates(new, start, end):
            if at < position or not _same(self.old, new, at, at + BLOCK, place):
                continue
            back, most = 0, min(at - position, place)
            while back < most and new[at - back - 1] == self.old[place - back - 1]:
                back += 1
            length = _common(self.old, new, place, at, min(end - at, len(self.old) - place))
            if at - back > position:
                yield _Step(NEW, position, at - back)
            yield _Step(COPY, at - back, at + length, place - back)
            position = at + length
        if position < end:
            yield _Step(NEW, position, end)

    def _candidates(self, new: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Give (place in the new file, place in the old one) that may hold the same block."""
        hashes = self._index()
        if not len(hashes):
            return
        for first in range(start, end - BLOCK + 1, CHUNK):
            last = min(first + CHUNK + BLOCK - 1, end)
            data = np.frombuffer(new, np.uint8, last - first, first)
            values = _hash(sliding_window_view(data, BLOCK))
            slots = np.searchsorted(hashes, values)
            slots[slots == len(hashes)] = 0
            for hit in np.flatnonzero(hashes[slots] == values):
                yield first + int(hit), int(self._places[slots[hit]])

    def _index(self) -> NDArray[np.uint64]:
        if self._hashes is None:
            if len(self.old) >= BLOCK:
                windows = sliding_window_view(np.frombuffer(self.old, np.uint8), BLOCK)
                hashes = _hash(windows[:: self._step])
            else:
                hashes = np.zeros(0, np.uint64)
            self._hashes, first = np.unique(hashes, return_index=True)
            self._places = first * self._step
        return self._hashes


def _hash(blocks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a hash of every block [n, BLOCK]."""
    words = np.ascontiguousarray(blocks).view("<u8").astype(np.uint64)
    mixed = (words[:, 0] * _MULTIPLIER) ^ (words[:, 0] >> np.uint64(29)) ^ words[:, 1]
    return (mixed * _MULTIPLIER) ^ (mixed >> np.uint64(31))


def _common(old: bytes, new: bytes, place: int, at: int, most: int) -> int:
    """Return how many bytes are the same from two places on."""
    done = 0
    while done < most:
        size = min(1 << 16, most - done)
        a = np.frombuffer(old, np.uint8, size, place + done)
        b = np.frombuffer(new, np.uint8, size, at + done)
        different = np.flatnonzero(a != b)
        if len(different):
            return done + int(different[0])
        done += size
    return done


# --- the steps as bytes ---------------------------------------------------------------------


def _merged(steps: Iterator[_Step]) -> list[_Step]:
    """Join copies, and new bytes, that go on where the one before ended."""
    merged: list[_Step] = []
    for step in steps:
        last = merged[-1] if merged else step
        goes_on = last.place + last.end - last.start == step.place and step.kind == COPY
        if last is not step and last.kind == step.kind and (goes_on or step.kind == NEW):
            merged[-1] = _Step(step.kind, last.start, step.end, last.place)
        else:
            merged.append(step)
    return merged


def _encoded(steps: list[_Step], old: bytes, new: bytes) -> Iterator[bytes]:
    place = 0
    for step in steps:
        length = step.end - step.start
        yield bytes([step.kind])
        if step.kind != NEW:
            skip = step.place - place
            yield _number(skip << 1 if skip >= 0 else (-skip << 1) - 1)
            place = step.place + length
        yield _number(length)
        if step.kind != COPY:
            yield _content(step, old, new, length)


def _content(step: _Step, old: bytes, new: bytes, length: int) -> bytes:
    """Return the first bytes that a step carries."""
    if step.kind == NEW:
        return new[step.start : step.start + length]
    words = length // step.width
    was = np.frombuffer(old, f"<u{step.width}", words, step.place)
    now = np.frombuffer(new, f"<u{step.width}", words, step.start)
    change = (now - was).view(f"<i{step.width}")
    coded = (change << 1) ^ (change >> (8 * step.width - 1))
    return bytes(coded.tobytes())


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
