"""Frames between control and serve: any split of the bytes gives the same messages."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serve_protocol import (
    Accept,
    Drain,
    Drained,
    Failed,
    Ready,
    Settings,
    SlotStats,
    Stats,
    frame,
    frames_from_control,
    frames_from_serve,
)
from skerry.errors import FormatError

DOWN = [Accept(), Settings(1.0), Drain()]
UP = [
    Ready("b1", 12.5),
    Failed("expected a model"),
    Stats({"slot-a": SlotStats(3, 1, 100.0, 900.0)}, unrecorded=2),
    Drained(),
]


@given(cuts=st.lists(st.integers(0, 400), max_size=20))
def test_messages_come_out_whole_however_the_bytes_were_split(cuts: list[int]) -> None:
    for messages, frames in ((DOWN, frames_from_control()), (UP, frames_from_serve())):
        data = b"".join(frame(message) for message in messages)  # type: ignore[attr-defined]
        places = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
        found = []
        for start, end in pairwise(places):
            found += frames.feed(data[start:end])  # type: ignore[attr-defined]
        assert found == messages


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", frame(Drained()), b"\0\0\0\2\xc1\xc1"]
)
def test_what_control_never_says_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        frames_from_control().feed(data)
