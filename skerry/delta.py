"""Patches: what makes a new file of one that is there already, piece by piece.

    magic    8 bytes    "SKDELTA1"
    old      40 bytes   sha256 and size of the file that it is made for
    new      40 bytes   sha256 and size of the file that comes of it
    window   1 byte     of the compression: 2^window bytes, 12 to 23
    body                LZMA2: instructions until the new file is complete, then nothing

    1  COPY  skip length              bytes of the old file
    2  NEW   length bytes             bytes as they stand here
    4+n DIFF skip length bytes        the old file's words of 2^n bytes, each plus a difference

Numbers are LEB128. `skip` says where the old file is read: so far behind the end of what was read
last, zigzag coded. A difference of words is taken modulo their size and zigzag coded too: a small
step up or down in a weight, integer or float, is a small number, which is what compresses.

A patch comes from elsewhere. Every length is held against what the new file still lacks and what
the old one has before a byte is made for it; memory is the window and two pieces of `PIECE_BYTES`,
however large the files are. The result is right only if the iterator ends without an error.
"""

import hashlib
import lzma
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO, Final

import msgspec

from skerry.errors import FormatError

__all__ = [
    "COPY",
    "DIFF",
    "HEAD_BYTES",
    "MAGIC",
    "MAX_INSTRUCTIONS",
    "MAX_WINDOW",
    "MIN_WINDOW",
    "NEW",
    "PatchHead",
    "apply_patch",
    "filters",
    "read_head",
]

MAGIC: Final = b"SKDELTA1"
HEAD_BYTES: Final = 89
MIN_WINDOW, MAX_WINDOW = 12, 23  # 4 KiB to 8 MiB
MAX_INSTRUCTIONS: Final = 200_000
MAX_SIZE_BYTES: Final = 1 << 40
PIECE_BYTES: Final = 1 << 16
READ_BYTES: Final = 1 << 14
COPY, NEW, DIFF = 1, 2, 4
WIDTHS: Final = {DIFF: 1, DIFF + 1: 2, DIFF + 2: 4, DIFF + 3: 8}


class PatchHead(msgspec.Struct, frozen=True):
    """What a patch says of itself: digests ``sha256:...``, sizes in bytes."""

    old: str
    old_size: int
    new: str
    new_size: int
    window: int = MAX_WINDOW

    def to_bytes(self) -> bytes:
        """Return the head as it stands in a patch."""
        return b"".join((
            MAGIC,
            bytes.fromhex(self.old.removeprefix("sha256:")), self.old_size.to_bytes(8, "big"),
            bytes.fromhex(self.new.removeprefix("sha256:")), self.new_size.to_bytes(8, "big"),
            bytes([self.window]),
        ))  # fmt: skip


def read_head(patch: BinaryIO) -> PatchHead:
    """Read the head of a patch from a stream.

    Raises:
        FormatError: code ``patch``: it is none.
    """
    data = patch.read(HEAD_BYTES)
    if len(data) < HEAD_BYTES or data[:8] != MAGIC:
        raise _wrong("expected a patch, got other bytes")
    head = PatchHead(
        old="sha256:" + data[8:40].hex(),
        old_size=int.from_bytes(data[40:48], "big"),
        new="sha256:" + data[48:80].hex(),
        new_size=int.from_bytes(data[80:88], "big"),
        window=data[88],
    )
    if not MIN_WINDOW <= head.window <= MAX_WINDOW:
        raise _wrong(f"expected a window of 2^{MIN_WINDOW} to 2^{MAX_WINDOW} bytes")
    if max(head.old_size, head.new_size) > MAX_SIZE_BYTES:
        raise _wrong(f"expected files of at most {MAX_SIZE_BYTES} bytes")
    return head


def filters(window: int) -> list[dict[str, int]]:
    """Return how the body is compressed, as the `lzma` module takes it."""
    return [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << window}]


def apply_patch(
    old: BinaryIO, patch: BinaryIO, *, limit_bytes: int, wanted: str | None = None
) -> Iterator[bytes]:
    """Give the new file in pieces of at most `PIECE_BYTES`.

    Args:
        old: the file that the patch is made for; seekable.
        patch: read once, from where it stands to its end.
        limit_bytes: of the new file.
        wanted: the new file's digest, where the caller knows it.

    Raises:
        FormatError: code ``patch``: no patch, damaged, lying, or for other files; what was given
            so far is of no use.
    """
    head = read_head(patch)
    if wanted is not None and head.new != wanted:
        raise _wrong(f"expected a patch that makes {wanted}, this one makes {head.new}")
    if head.new_size > limit_bytes:
        raise _wrong(f"expected a new file of at most {limit_bytes} bytes, got {head.new_size}")
    if old.seek(0, 2) != head.old_size:
        raise _wrong(f"expected an old file of {head.old_size} bytes")
    body, hasher = _Body(patch, head.window), hashlib.sha256()
    for piece in _pieces(old, body, head):
        hasher.update(piece)
        yield piece
    body.check_end()
    if "sha256:" + hasher.hexdigest() != head.new:
        raise _wrong(f"expected {head.new}, made sha256:{hasher.hexdigest()}; the old file differs")


def _pieces(old: BinaryIO, body: "_Body", head: PatchHead) -> Iterator[bytes]:
    left, place = head.new_size, 0
    for _ in range(MAX_INSTRUCTIONS):
        if left == 0:
            return
        kind = body.read(1)[0]
        if kind not in WIDTHS and kind not in (COPY, NEW):
            raise _wrong(f"unknown instruction {kind}")
        if kind != NEW:
            skip = body.number()
            place += (skip >> 1) ^ -(skip & 1)
        length = body.number()
        if not 0 < length <= left:
            raise _wrong(f"an instruction makes {length} bytes where {left} are left")
        left -= length
        if kind == NEW:
            for size in _steps(length):
                yield body.read(size)
            continue
        if place < 0 or place + length > head.old_size:
            raise _wrong("an instruction reads beyond the old file")
        width = WIDTHS.get(kind, 1)
        if length % width:
            raise _wrong(f"{length} bytes are no words of {width}")
        old.seek(place)
        place += length
        for size in _steps(length):
            piece = old.read(size)
            if len(piece) != size:
                raise _wrong("the old file became shorter")
            yield piece if kind == COPY else _plus(piece, body.read(size), width)
    if left:
        raise _wrong(f"expected at most {MAX_INSTRUCTIONS} instructions")


def _steps(length: int) -> Iterator[int]:
    for start in range(0, length, PIECE_BYTES):
        yield min(PIECE_BYTES, length - start)


def _plus(old: bytes, coded: bytes, width: int) -> bytes:
    """Return words plus their coded differences, all at once as digits of one long number.

    The sum of two words must not carry into the next: it is taken without their highest bits,
    which are added without a carry.
    """
    ones = _ones(len(old) // width, width)
    highest = ones << (8 * width - 1)
    rest = highest - ones  # every word with all bits set but the highest
    a, z = int.from_bytes(old, "little"), int.from_bytes(coded, "little")
    step = (z >> 1 & rest) ^ (z & ones) * ((1 << 8 * width) - 1)
    total = ((a & rest) + (step & rest)) ^ ((a ^ step) & highest)
    return total.to_bytes(len(old), "little")


@cache
def _full(width: int) -> int:
    return int.from_bytes((b"\x01" + bytes(width - 1)) * (PIECE_BYTES // width), "little")


def _ones(words: int, width: int) -> int:
    """Return so many words of value 1 behind each other."""
    return _full(width) & ((1 << 8 * width * words) - 1)


class _Body:
    """The body of a patch, decompressed as far as it is read."""

    def __init__(self, patch: BinaryIO, window: int) -> None:
        self._patch = patch
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters(window))
        self._ready = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self._at + size
        if end <= len(self._ready):
            data = self._ready[self._at : end]
            self._at = end
            return data
        parts = [self._ready[self._at :]]
        missing = size - len(parts[0])
        while missing > 0:
            self._ready = self._more()
            self._at = min(missing, len(self._ready))
            parts.append(self._ready[: self._at])
            missing -= self._at
        return b"".join(parts)

    def number(self) -> int:
        """Return the next number, below 2^63."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.read(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    break  # there is one way to write a number
                return value
        raise _wrong("a number is too long")

    def check_end(self) -> None:
        """Refuse anything behind what was read."""
        if self._at < len(self._ready) or (not self._decoder.eof and self._decode()):
            raise _wrong("unexpected instructions after the end of the new file")
        if not self._decoder.eof:
            raise _wrong("it is cut short")
        if self._decoder.unused_data or self._patch.read(1):
            raise _wrong("unexpected bytes after its end")

    def _more(self) -> bytes:
        data = b"" if self._decoder.eof else self._decode()
        if not data:
            raise _wrong("it is cut short")
        return data

    def _decode(self) -> bytes:
        """Return some bytes, none at the end."""
        try:
            while not self._decoder.eof:
                given = self._patch.read(READ_BYTES) if self._decoder.needs_input else b""
                wanting = self._decoder.needs_input and not given
                data = self._decoder.decompress(given, PIECE_BYTES)
                if data or wanting:
                    return data
        except lzma.LZMAError as error:
            raise _wrong(f"it does not decompress: {error}") from None
        return b""


def _wrong(what: str) -> FormatError:
    return FormatError(f"unusable patch: {what}", "patch")
