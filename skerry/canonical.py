"""One value, one byte string: canonical JSON, MessagePack, and digests of bytes.

JSON here is UTF-8, keys sorted, no spaces, no NaN: equal values have equal bytes,
so that a digest names a value. MessagePack goes through msgspec, with limits on
length and depth checked before anything is believed.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from skerry.errors import FormatError

__all__ = [
    "DIGEST_PATTERN",
    "check_digest",
    "from_json",
    "from_msgpack",
    "sha256",
    "to_json",
    "to_msgpack",
]

T = TypeVar("T")

DIGEST_PATTERN: Final = r"sha256:[0-9a-f]{64}"
_DIGEST: Final = re.compile(DIGEST_PATTERN)
_JSON_ENCODER: Final = msgspec.json.Encoder(order="sorted", decimal_format="string")
_MSGPACK_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")


def sha256(data: bytes | Iterable[bytes]) -> str:
    """Return the digest of bytes, or of chunks of bytes, as ``sha256:<64 hex>``."""
    hasher = hashlib.sha256()
    for chunk in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
        hasher.update(chunk)
    return "sha256:" + hasher.hexdigest()


def check_digest(text: str) -> str:
    """Return the text if it is a digest ``sha256:<64 hex>``.

    Raises:
        FormatError: it is not.
    """
    if _DIGEST.fullmatch(text) is None:
        raise FormatError(f"expected a digest sha256:<64 hex digits>, got {text[:80]!r}")
    return text


def to_json(value: Any) -> bytes:
    """Return the canonical JSON of a value made of msgspec structs and builtins.

    Raises:
        FormatError: the value holds a number that JSON cannot say (NaN, infinity).
    """
    builtins = msgspec.to_builtins(value, order="sorted")
    _refuse_non_finite(builtins)
    return _JSON_ENCODER.encode(builtins)


def from_json(data: bytes, type: type[T], *, limit: int = 4 << 20) -> T:
    """Decode JSON of at most `limit` bytes into a typed value.

    Raises:
        FormatError: too long, not JSON, or not of that type.
    """
    if len(data) > limit:
        raise FormatError(f"expected at most {limit} bytes of JSON, got {len(data)}")
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"expected JSON of {type.__name__}: {error}") from None


def to_msgpack(value: Any) -> bytes:
    """Return the MessagePack of a value made of msgspec structs and builtins."""
    return _MSGPACK_ENCODER.encode(value)


def from_msgpack(data: bytes, type: type[T], *, limit: int = 128 * 1024) -> T:
    """Decode MessagePack of at most `limit` bytes into a typed value.

    Raises:
        FormatError: too long, not MessagePack, or not of that type.
    """
    if len(data) > limit:
        raise FormatError(f"expected at most {limit} bytes of MessagePack, got {len(data)}")
    try:
        return msgspec.msgpack.decode(data, type=type)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        name = getattr(type, "__name__", str(type))
        raise FormatError(f"expected MessagePack of {name}: {error}") from None


def _refuse_non_finite(value: object) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FormatError(f"canonical JSON has no {value}; leave the field out")
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_non_finite(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_non_finite(item)
