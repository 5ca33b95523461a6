"""The best form of a model that looking at all of them finds: what a search is measured against.

    python benchmarks/frontier.py [--zoo /tmp/zoo] [--only NAME ...] [--out frontier]

Every way of quantizing (per channel in seven bits; the same without the glue between heavy nodes;
per tensor; unsigned weights; products alone, static and dynamic; weights only) is combined with
every set of the most harmful regions left in float, in ranked order: 0, 1, 2, ... all. Each is
judged on all evaluation samples at the recipe's gate, and timed where it holds. Weights of eight
signed bits are no candidates: they saturate on CPUs without VNNI. A model of more than 24 regions
(8 where it is large) is looked at in so many sets per way, closer together where few are left out.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - after the path is set
import onnx  # noqa: E402
from onnxruntime.quantization import QuantType  # noqa: E402
from onnxruntime.quantization.calibrate import (  # noqa: E402
    CalibrationMethod,
    TensorData,
    TensorsData,
)
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer  # noqa: E402

from benchmarks.outcome import write  # noqa: E402
from compiler.candidates import Workshop  # noqa: E402
from compiler.evaluate import compare  # noqa: E402
from compiler.gate import holds  # noqa: E402
from compiler.latency import measure  # noqa: E402
from compiler.materials import gather  # noqa: E402
from compiler.ports import count  # noqa: E402
from compiler.quantize import HEAVY, OP_TYPES, quantize_dynamic  # noqa: E402
from compiler.recipe import read_recipe  # noqa: E402
from compiler.runtime import one_call, open_session, run_samples  # noqa: E402
from compiler.sensitivity import find_regions, rank  # noqa: E402
from skerry.errors import SkerryError  # noqa: E402

RANKED_ON = 48  # samples
STEPS, FEW_STEPS = 24, 8  # sets of regions per way
WHOLE = ("int8-weights", "fp16", "int4")  # ways without regions


@dataclass
class Point:
    """One form, with as many of the worst regions in float.

    Attributes:
        way: how it was quantized.
        left: regions left in float.
        bytes: of the model.
        value: of the metric.
        drop: below fp32, with its 95 % interval.
        holds: whether the outputs pass the gate, with confidence.
        ratio: CPU time to fp32, with its 95 % interval; only where the outputs hold.
    """

    way: str
    left: int
    bytes: int
    value: float
    drop: tuple[float, float, float]
    holds: bool
    ratio: tuple[float, float, float] | None = None


@dataclass
class Frontier:
    """All points of one model, and the best two."""

    points: list[Point]
    regions: int
    fastest: tuple[Point, bytes] | None
    smallest: tuple[Point, bytes] | None
    seconds: float

    def told(self) -> dict[str, Any]:
        """As JSON, the points in the order of trial."""
        return {
            "regions": self.regions,
            "tried": len(self.points),
            "holding": sum(point.holds for point in self.points),
            "fastest": asdict(self.fastest[0]) if self.fastest else "fp32",
            "smallest": asdict(self.smallest[0]) if self.smallest else "fp32",
            "seconds": round(self.seconds, 1),
            "points": [asdict(point) for point in self.points],
        }


def static(
    workshop: Workshop,
    leave: tuple[str, ...],
    *,
    kinds: tuple[str, ...],
    per_channel: bool,
    unsigned: bool = False,
) -> bytes:
    """Quantize with calibrated ranges; `compiler.quantize` is one setting of this."""
    copy = onnx.ModelProto()
    copy.CopyFrom(workshop.prepared)
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in workshop.ranges.items()
    }
    quantizer = QDQQuantizer(
        copy,
        per_channel=per_channel,
        reduce_range=not unsigned,
        weight_qType=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=sorted(leave),
        op_types_to_quantize=list(kinds),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantizer.model.clean_initializers()
    done = quantizer.model.model
    if not any(node.op_type == "QuantizeLinear" for node in done.graph.node):
        raise ValueError("nothing in it is quantized")
    return bytes(done.SerializeToString(deterministic=True))


Way = Callable[[Workshop, tuple[str, ...]], bytes]
WAYS: dict[str, Way] = {
    "static": lambda w, leave: static(w, leave, kinds=OP_TYPES, per_channel=True),
    "static heavy": lambda w, leave: static(w, leave, kinds=HEAVY, per_channel=True),
    "static per tensor": lambda w, leave: static(w, leave, kinds=OP_TYPES, per_channel=False),
    "static u8u8": lambda w, leave: static(
        w, leave, kinds=OP_TYPES, per_channel=True, unsigned=True
    ),
    "static products": lambda w, leave: static(
        w, leave, kinds=("MatMul", "Gemm"), per_channel=True
    ),
    "dynamic": lambda w, leave: quantize_dynamic(w.prepared, leave=leave),
}


def sets(regions: int, most: int) -> list[int]:
    """How many regions to leave out: all counts, or `most` of them, close where few are left."""
    if regions <= most:
        return list(range(regions))
    return sorted(set((np.geomspace(1, regions, most) - 1).astype(int).tolist()))


def candidates(workshop: Workshop, most: int) -> Iterator[tuple[str, int, bytes]]:
    """Yield every form as (way, regions in float, bytes); those that cannot be made are left out."""
    kinds = {node.op_type for node in workshop.prepared.graph.node}
    regions = find_regions(workshop.prepared)
    few = workshop.samples(RANKED_ON)
    output = workshop.materials.recipe.metric.output
    ranked = []
    if regions:
        reference = workshop.run(workshop.materials.graph.data, few)[output]
        ranked = rank(
            regions,
            lambda nodes: workshop.run(workshop.make("int8", only=nodes), few)[output],
            reference,
            deadline=time.monotonic() + 600,
        )
    for name, way in WAYS.items():
        by_products = name in ("static products", "dynamic")
        if by_products and not kinds & {"MatMul", "Gemm"}:
            continue
        if by_products:
            heavy = {
                n.name for n in workshop.prepared.graph.node if n.op_type in ("MatMul", "Gemm")
            }
            mine = [region for region in ranked if region.name in heavy]
        else:
            mine = ranked
        seen: set[bytes] = set()
        for many in sets(len(mine), most):
            leave = tuple(node for region in mine[:many] for node in region.nodes)
            try:
                data = way(workshop, leave)
            except Exception as error:  # quantizers raise whatever went wrong inside
                print(
                    f"  {name}, {many} left: {type(error).__name__}: {str(error)[:90]}", flush=True
                )
                continue
            if data not in seen:
                seen.add(data)
                yield name, many, data
    for form in WHOLE:
        try:
            yield form, 0, workshop.make(form)
        except SkerryError as error:
            print(f"  {form}: {str(error)[:90]}", flush=True)


def frontier(workshop: Workshop, *, most: int) -> Frontier:
    """Look at every form of a model.

    Args:
        workshop: of the recipe.
        most: sets of regions per way.
    """
    began = time.monotonic()
    materials = workshop.materials
    metric, gate = materials.recipe.metric, materials.recipe.gate
    reference = workshop.reference
    assert reference.outputs is not None
    assert reference.session is not None
    call = one_call(materials.ports, materials.evaluation)
    points: list[Point] = []
    fastest = smallest = None
    for way, left, data in candidates(workshop, most):
        try:
            session = open_session(data)
            outputs = run_samples(session, materials.ports, materials.evaluation, metric.output)
            quality = compare(
                metric, outputs[metric.output], reference.outputs[metric.output],
                materials.labels, function=materials.function, slices=materials.slices,
            )  # fmt: skip
        except SkerryError as error:
            print(f"  {way}, {left} left: {str(error)[:90]}", flush=True)
            continue
        point = Point(
            way, left, len(data), quality.value,
            (quality.drop, quality.drop_low, quality.drop_high),
            holds(metric, quality, gate).accepted,
        )  # fmt: skip
        points.append(point)
        if not point.holds:
            continue
        took = measure(session, reference.session, call)
        point.ratio = (took.ratio, took.low, took.high)
        if took.high <= gate.latency_ratio and (
            fastest is None or took.ratio < fastest[0].ratio[0]  # type: ignore[index]
        ):
            fastest = point, data
        if took.low <= 1.05 and (smallest is None or len(data) < smallest[0].bytes):
            smallest = point, data
    return Frontier(
        points, len(find_regions(workshop.prepared)), fastest, smallest, time.monotonic() - began
    )


def steps_for(workshop: Workshop) -> int:
    """Return how many sets of regions a model's size and samples let one look at, per way."""
    slow = count(workshop.materials.evaluation) * len(workshop.materials.graph.data) > 2e9
    return FEW_STEPS if slow else STEPS


def main() -> None:
    """Look, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("/tmp/zoo"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", default="frontier")
    given = parser.parse_args()
    os.nice(5)
    found: dict[str, object] = {}
    for recipe in sorted(given.zoo.glob("*/about.json")):
        name = recipe.parent.name
        if given.only and name not in given.only:
            continue
        workshop = Workshop(gather(read_recipe(recipe.parent / "recipe.toml")))
        seen = frontier(workshop, most=steps_for(workshop))
        found[name] = seen.told()
        print(f"{name}: {len(seen.points)} forms in {seen.seconds:.0f} s", flush=True)
        for what in ("fastest", "smallest"):
            best = getattr(seen, what)
            print(f"  {what}: {best[0] if best else 'fp32'}", flush=True)
    write(given.out, found)


if __name__ == "__main__":
    main()
