"""What a record may carry besides its features, before it is stored."""

import math

import msgspec
import pytest

from fleet.intake import MAX_INPUTS, sound_items
from skerry.records import Aside, Context, Prediction, RawInput, SketchWindow
from skerry.sketch import CategoricalCounts
from skerry.tensors import MAX_RANK
from skerry.wire import MAX_INPUT_BYTES

CONTEXT = Context("camera", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")
ROW = RawInput("row", "FP32", [1, 2], b"\x00" * 8)


def sound(aside: Aside) -> bool:
    item = Prediction("r-1", 1.0, 0, 1, 0.5, 100, [0.25, math.nan], aside)
    return bool(sound_items([(1, item)], [CONTEXT], lambda _: None))


@pytest.mark.parametrize(
    "aside",
    [Aside(), Aside([ROW]), Aside(left_out_bytes=1 << 40), Aside(withheld=[1], hashed=[0])],
)
def test_what_is_in_form_is_stored(aside: Aside) -> None:
    assert sound(aside)


@pytest.mark.parametrize(
    "aside",
    [
        Aside([ROW] * (MAX_INPUTS + 1)),
        Aside([msgspec.structs.replace(ROW, name="")]),
        Aside([msgspec.structs.replace(ROW, datatype="FP8")]),
        Aside([msgspec.structs.replace(ROW, shape=[1] * (MAX_RANK + 1))]),
        Aside([msgspec.structs.replace(ROW, shape=[-1, 2])]),
        Aside([msgspec.structs.replace(ROW, data=b"x" * (MAX_INPUT_BYTES + 1))]),
        Aside(left_out_bytes=-1),
        Aside(withheld=[2]),
        Aside(hashed=[-1]),
        Aside(withheld=[0], hashed=[0]),
    ],
)
def test_what_is_not_is_left_out(aside: Aside) -> None:
    assert not sound(aside)


@pytest.mark.parametrize(("n", "errors", "fits"), [(1 << 40, 1 << 40, True), ((1 << 40) + 1, 0, False),
                                                  (0, (1 << 40) + 1, False), (-1, 0, False)])  # fmt: skip
def test_a_window_holds_what_a_database_can_add_up(n: int, errors: int, fits: bool) -> None:
    """Two windows of 2^63 - 1 rows would end every sum over them with an overflow."""
    column = CategoricalCounts(max(n, 0), [max(n, 0)])
    item = SketchWindow(0, 0.0, 60.0, n, errors, {"prediction": column})
    assert bool(sound_items([(1, item)], [CONTEXT], lambda _: None)) == fits
