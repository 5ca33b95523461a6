"""What a device writes down of its own work: predictions, windows, and what is gone.

These are the items of a telemetry batch (`skerry.wire`) and of the segments on the
device's disk. Every record has a number in its process's `boot`, counted from 1;
a `Skip` stands for `count` numbers whose records stay on the device.
"""

from typing import Annotated

import msgspec

from skerry.feedback import ErrorSketch
from skerry.sketch import Column

__all__ = ["Context", "Errors", "Item", "Loss", "Prediction", "SketchWindow", "Skip", "width"]


class Context(msgspec.Struct, frozen=True, array_like=True):
    """What the records of one process have in common, named by its position."""

    slot: str
    model: str
    model_version: str
    bundle: str
    variant: str


class Prediction(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    """One answered prediction, as the record policy lets it leave the device."""

    id: str  # the request id, unique per device
    at: float  # Unix seconds
    ctx: int
    prediction: int  # class position, -1 where the output is no class
    confidence: float  # of that class, or the value predicted
    latency_us: int
    features: list[float]


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


def width(item: Item) -> int:
    """Return how many sequence numbers an item takes: one, or a `Skip`'s count."""
    return item.count if isinstance(item, Skip) else 1
