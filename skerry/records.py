"""What a device writes down of its own work: predictions, windows, and what is gone.

These are the items of a telemetry batch (`skerry.wire`) and of the segments on the
device's disk. Every record has a number in its process's `boot`, counted from 1;
a `Skip` stands for `count` numbers whose records stay on the device.
"""

import zlib
from typing import Annotated

import msgspec

from skerry.feedback import ErrorSketch
from skerry.sketch import Column

__all__ = [
    "Aside",
    "Context",
    "Errors",
    "Item",
    "Loss",
    "Prediction",
    "RawInput",
    "SketchWindow",
    "Skip",
    "in_sample",
    "width",
]


class Context(msgspec.Struct, frozen=True, array_like=True):
    """What the records of one process have in common, named by its position."""

    slot: str
    model: str
    model_version: str
    bundle: str
    variant: str


class RawInput(msgspec.Struct, frozen=True, array_like=True):
    """One input of one row as the model took it; the bytes as `skerry.tensors` has them."""

    name: str
    datatype: str
    shape: list[int]  # of the row, the first axis being 1
    data: bytes


class Aside(msgspec.Struct, frozen=True, array_like=True):
    """What a prediction carries beside its features, and what it says that it lacks."""

    inputs: list[RawInput] = []
    left_out_bytes: int = 0  # of inputs that were too large, or for which there was no room
    withheld: list[int] = []  # positions in `Prediction.features`: NaN stands there
    hashed: list[int] = []  # the same: equal numbers there mean equal values, on one device


class Prediction(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """One answered prediction, as the record policy lets it leave the device."""

    id: str  # the request id, unique per device
    at: float  # Unix seconds
    ctx: int
    prediction: int  # class position, -1 where the output is no class
    confidence: float  # of that class, or the value predicted
    latency_us: int
    features: list[float]  # empty where the policy lets none leave
    aside: Aside | None = None


class SketchWindow(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """One closed window of one context: counts only, no row."""

    ctx: int
    start: float  # Unix seconds, a multiple of the window's length
    length_s: float
    n: int  # predictions answered in the window
    errors: int
    columns: dict[str, Column]
    covers: dict[str, tuple[int, int]] = {}  # per boot: first and last seq counted in it


class Errors(msgspec.Struct, frozen=True, array_like=True, tag="e"):
    """Errors of predictions made earlier, whose labels have come since.

    The contexts are its own: those predictions may be of a release that serves no more.
    """

    contexts: list[Context]
    sketches: list[ErrorSketch]
    covers: dict[str, tuple[int, int]] = {}  # per boot: first and last seq of the labels in it


class Loss(msgspec.Struct, frozen=True, array_like=True, tag="l"):
    """Records that the device no longer has, said rather than hidden."""

    boot: str
    at_most: int
    reason: str


class Skip(msgspec.Struct, frozen=True, array_like=True, tag="k"):
    """A run of records that the record policy keeps on the device."""

    count: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


Item = Prediction | SketchWindow | Errors | Loss | Skip


def in_sample(id: str, share: float) -> bool:
    """Tell whether a request is among a share of them: the same answer for every try.

    What is in a share is in every larger one.
    """
    return zlib.crc32(id.encode()) / 2**32 < share


def width(item: Item) -> int:
    """Return how many sequence numbers an item takes: one, or a `Skip`'s count."""
    return item.count if isinstance(item, Skip) else 1
