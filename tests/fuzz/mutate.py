"""Damage, by a seeded generator: to bytes, and to the values that bytes stand for.

`damage_bytes` flips, cuts, repeats, splices and overwrites what looks like a length.
`damage_value` takes a tree of dicts, lists and scalars and spoils one place of it, so that the
damage gets past the parser's first look.
"""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS = (
    0, 1, -1, 2, 63, 64, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32 - 1,
    2**32, 2**53, 2**62, 2**63 - 1, -(2**63), 2**64 - 1,
)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e-320, 1e300, -1e308, math.inf, -math.inf, math.nan)
TEXTS = (
    "", "a", "all", "../../etc/passwd", "/", "\x00", "a\x00b", "x" * 200, "é" * 70, "\u202e", "#", "+/#", "sha256:",
    "sha256:" + "0" * 64, "1.0.0", "-1", "99999999999999999999", "1e999", "nan", "a-b", "💥", "\n\r", "%2e%2e%2f",
)  # fmt: skip
TOKENS = (
    b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xc9\x7f\xff\xff\xff\x01", b"\xd4\x05\x00", b"\xc1", b"\xcf" + b"\xff" * 8, b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x00", b"[" * 64, b'{"a":' * 32, b"\x91" * 64,
    b"\x81\xa1a" * 32, b"1e400", b"9" * 400, b'"\\ud800"', b"\xed\xa0\x80", b"\xef\xbb\xbf", b"null", b"-0", b"\x00",
    b"nan", b"'''", b'"""', b"[[a]]\n", b"a.b.c=1\n",
)  # fmt: skip

Damage = Callable[[Random, bytearray, Sequence[bytes]], None]


def damage_bytes(rng: Random, data: bytes, others: Sequence[bytes], *, longest: int) -> bytes:
    """Return the bytes with one to four kinds of damage, at most `longest` of them."""
    spoilt = bytearray(data)
    for _ in range(1 + int(rng.random() * rng.random() * 4)):
        KINDS[int(rng.random() * len(KINDS))](rng, spoilt, others)
    del spoilt[longest:]
    return bytes(spoilt)


def damage_value(rng: Random, value: Any) -> Any:
    """Return the value with one place spoilt; what is not on the way there is shared."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        keys = list(value)
        key = keys[int(rng.random() * len(keys))]
        kind = rng.random()
        if kind < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.13:
            return value | {_scalar(rng): _anything(rng)}
        return value | {key: damage_value(rng, value[key])}
    if isinstance(value, list | tuple) and value and rng.random() < 0.85:
        items = list(value)
        at = int(rng.random() * len(items))
        kind = rng.random()
        if kind < 0.08:
            del items[at]
        elif kind < 0.16:
            items[at:at] = [items[at]] * (1 + int(300 ** rng.random()))
        elif kind < 0.2:
            items.append(_anything(rng))
        else:
            items[at] = damage_value(rng, items[at])
        return items
    if type(value) is int and rng.random() < 0.6:
        return value + NUMBERS[int(rng.random() * 8)] - 1
    return _anything(rng)


def _scalar(rng: Random) -> Any:
    kind = int(rng.random() * 6)
    if kind == 0:
        return NUMBERS[int(rng.random() * len(NUMBERS))]
    if kind == 1:
        return TEXTS[int(rng.random() * len(TEXTS))].encode()
    return TEXTS[int(rng.random() * len(TEXTS))]


def _anything(rng: Random) -> Any:
    kind = int(rng.random() * 9)
    if kind < 3:
        return NUMBERS[int(rng.random() * len(NUMBERS))]
    if kind == 3:
        return FLOATS[int(rng.random() * len(FLOATS))]
    if kind < 6:
        return _scalar(rng)
    if kind == 6:
        return (None, True, False, [], {}, [[]], {"": None}, b"")[int(rng.random() * 8)]
    if kind == 7:
        return [_scalar(rng)] * (1 + int(100 ** rng.random()))
    deep: Any = []
    for _ in range(int(rng.random() * 100)):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


# --- kinds of damage to bytes ------------------------------------------------------------


def _at(rng: Random, data: bytearray) -> int:
    return int(rng.random() * len(data))


def _flip(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        for _bit in range(1 + int(rng.random() * rng.random() * 8)):
            data[_at(rng, data)] ^= 1 << int(rng.random() * 8)


def _overwrite(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[_at(rng, data)] = int(rng.random() * 256)


def _cut(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_at(rng, data) :]


def _remove(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _at(rng, data)
    del data[at : at + 1 + int(64 ** rng.random())]


def _insert(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[(at := _at(rng, data)) : at] = rng.randbytes(1 + int(16 ** rng.random()))


def _token(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    token = TOKENS[int(rng.random() * len(TOKENS))]
    at = _at(rng, data)
    data[at : at + (len(token) if rng.random() < 0.5 else 0)] = token


def _repeat(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _at(rng, data)
    block = data[at : at + 1 + int(48 ** rng.random())]
    data[at:at] = block * (1 + int(200 ** rng.random()))


def _splice(rng: Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = others[int(rng.random() * len(others))]
    if other:
        start = int(rng.random() * len(other))
        piece = other[start : start + 1 + int(rng.random() * 256)]
        at = _at(rng, data)
        data[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece


def _length(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    width = 1 << int(rng.random() * 4)
    number = NUMBERS[int(rng.random() * len(NUMBERS))] & ((1 << 8 * width) - 1)
    at = _at(rng, data)
    data[at : at + width] = number.to_bytes(width, "big" if rng.random() < 0.5 else "little")


def _swap(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, size = _at(rng, data), 1 + int(32 ** rng.random())
    block = data[at : at + size]
    del data[at : at + size]
    data[(to := _at(rng, data)) : to] = block


def _digits(rng: Random, data: bytearray, _: Sequence[bytes]) -> None:
    places = [i for i in range(_at(rng, data), min(len(data), 4096)) if 48 <= data[i] <= 57][:1]
    if places:
        number = NUMBERS[int(rng.random() * len(NUMBERS))]
        data[places[0] : places[0] + 1] = b"%d" % number


KINDS: tuple[Damage, ...] = (
    _flip, _flip, _overwrite, _cut, _remove, _insert, _token, _repeat, _splice, _length, _length, _swap, _digits,
)  # fmt: skip
