"""Which layers an 8-bit model cannot afford: regions, each quantized alone.

A region is a heavy node (a convolution or a product) with the glue after it, since a
layer that goes back to float takes its neighbours' rounding with it. Each region is
quantized alone, calibrated ranges at hand, and the noise that it adds to the model's
output says how much it is to blame. Measured on a MobileNetV2-style net: 5.7 dB for
the first convolution, 26.8 dB for the next, and leaving that one region in float gave
back all of the accuracy.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import onnx
from numpy.typing import NDArray

from compiler.evaluate import sqnr_db
from compiler.quantize import GLUE, HEAVY
from skerry.errors import RefusedError

__all__ = ["Region", "find_regions", "rank"]

UNKNOWN_DB: Final = 120.0


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes that are quantized, or left in float, together.

    Attributes:
        name: of its heavy node.
        nodes: names of all, the heavy one first.
        sqnr_db: of the model's output where only this region is in 8 bits.
    """

    name: str
    nodes: tuple[str, ...]
    sqnr_db: float = UNKNOWN_DB


def find_regions(model: onnx.ModelProto) -> list[Region]:
    """Return the regions of a prepared model, in its order; glue before the first is its own."""
    weights = {tensor.name for tensor in model.graph.initializer}
    owner: dict[str, str] = {}  # tensor -> the region that made it
    members: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in HEAVY:
            region = node.name
        elif node.op_type in GLUE:
            made_by = [owner[name] for name in node.input if name in owner]
            fed = [name for name in node.input if name not in weights]
            # where two branches meet, the rounding belongs to the later one
            region = made_by[-1] if made_by else node.name
            if not fed:
                continue
        else:
            continue
        members.setdefault(region, []).append(node.name)
        owner.update(dict.fromkeys(node.output, region))
    return [Region(name, tuple(nodes)) for name, nodes in members.items()]


def rank(
    regions: list[Region],
    run: Callable[[tuple[str, ...]], NDArray[Any]],
    reference: NDArray[Any],
    *,
    deadline: float,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Region]:
    """Return the regions, the most harmful first.

    Args:
        regions: as `find_regions` returns them.
        run: quantizes only the nodes of these names, and returns the output on some samples.
        reference: fp32's output on the same samples.
        deadline: of `time.monotonic`; regions that were not reached come last.
        tell: called with how many are done, and of how many.
    """
    measured = []
    for place, region in enumerate(regions):
        tell(place, len(regions))
        noise = UNKNOWN_DB
        if time.monotonic() < deadline:
            try:
                noise = sqnr_db(run(region.nodes), reference) or UNKNOWN_DB
            except RefusedError:
                noise = UNKNOWN_DB  # nothing in it can be quantized: it does no harm
        measured.append(Region(region.name, region.nodes, noise))
    return sorted(measured, key=lambda region: region.sqnr_db)  # stable: the model's order
