"""One range of a file is understood; what a server may ignore is ignored."""

import pytest

from fleet.byte_range import byte_range


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("bytes=0-", range(0, 100)),
        ("bytes=40-", range(40, 100)),
        ("bytes=40-49", range(40, 50)),
        ("bytes=40-1000", range(40, 100)),
        ("bytes=99-99", range(99, 100)),
        ("bytes=-10", range(90, 100)),
        ("bytes=-1000", range(0, 100)),
        ("bytes=5-4", None),  # malformed
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
    ],
)
def test_a_range_of_a_hundred_bytes(header: str | None, wanted: range | None) -> None:
    assert byte_range(header, 100) == wanted


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_with_no_byte_in_it_is_empty(header: str) -> None:
    found = byte_range(header, 100)
    assert found is not None
    assert len(found) == 0
