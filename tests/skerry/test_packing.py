"""Packing: every byte comes back, and nothing hostile grows beyond the bound."""

import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import FormatError
from skerry.packing import pack, unpack


@given(st.binary(max_size=2000))
def test_what_was_packed_comes_back(data: bytes) -> None:
    assert unpack(pack(data), limit=2000) == data


@given(st.binary(max_size=200))
def test_noise_is_refused_or_bounded(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert len(unpack(data, limit=50)) <= 50


def test_a_bomb_is_refused_before_it_grows() -> None:
    bomb = pack(bytes(50_000_000))
    with pytest.raises(FormatError, match="at most 131072 bytes unpacked"):
        unpack(bomb, limit=131072)


def test_exactly_the_limit_passes() -> None:
    assert unpack(pack(b"x" * 100), limit=100) == b"x" * 100
    with pytest.raises(FormatError, match="at most 99"):
        unpack(pack(b"x" * 100), limit=99)


@pytest.mark.parametrize("spoilt", [pack(b"abc" * 50)[:-1], pack(b"abc" * 50) + b"x", b""])
def test_a_part_or_a_rest_is_refused(spoilt: bytes) -> None:
    with pytest.raises(FormatError, match="to its end"):
        unpack(spoilt, limit=1000)


def test_other_compressions_are_refused() -> None:
    with pytest.raises(FormatError, match="expected DEFLATE"):
        unpack(zlib.compress(b"abc" * 50), limit=1000)
