"""Telemetry made smaller on its way: raw DEFLATE (RFC 1951), bounded on both sides.

Names and counts repeat; a window is two thirds of its size when packed, a run of predictions 0.6
(`benchmarks/outbox_cost.py`). The fastest level gives most of that for a tenth of the best one's time.
"""

import zlib
from typing import Final

from skerry.errors import FormatError

__all__ = ["pack", "unpack"]

LEVEL: Final = 1
RAW: Final = -15  # no header, and no checksum: what is packed is signed


def pack(data: bytes) -> bytes:
    """Return bytes as raw DEFLATE."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, RAW)
    return packer.compress(data) + packer.flush()


def unpack(data: bytes, *, limit: int) -> bytes:
    """Return what `pack` was given.

    Args:
        data: raw DEFLATE.
        limit: bytes that may come of it at most; no more than one above it are ever made.

    Raises:
        FormatError: cut short, followed by something, damaged, or more than `limit`.
    """
    unpacker = zlib.decompressobj(RAW)
    try:
        found = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise FormatError(f"expected DEFLATE: {error}") from None
    if len(found) > limit:
        raise FormatError(f"expected at most {limit} bytes unpacked, got more")
    if not unpacker.eof or unpacker.unused_data:
        raise FormatError("expected DEFLATE from its beginning to its end, and nothing more")
    return found
