"""The int8 form of a model on the scales of its parent, so that the patch between them stays small.

A quantizer takes scales from the extremes of the weights and of the calibration data. Training that
moves each weight a little moves the extremes too, and then every integer of a channel may change.
On the parent's scales only those change whose weight crossed a rounding edge (measured: a patch of
5.0 % instead of 7.8 %, decision 0021). What lies beyond an old range is cut off: that costs accuracy,
so this is one form more for the gate to judge, never a replacement unseen.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["keep_scales"]

SUFFIX: Final = (
    "_quantized"  # onnxruntime's name of a quantized initializer is the float's and this
)
Arrays = dict[str, NDArray[Any]]


def keep_scales(model: bytes, parent: bytes, floats: onnx.ModelProto) -> bytes | None:
    """Return an int8 form with every scale and zero point that its parent has too.

    Args:
        model: static int8, from `quantize_static`.
        parent: the form in service, made the same way of the same network.
        floats: the prepared model that `model` was made of.

    Returns:
        The same graph with other integers; None where the parent has no scale to keep, or other ones
        only.
    """
    try:
        old = onnx.load_model_from_string(parent)
    except DecodeError:
        return None
    new = onnx.load_model_from_string(model)
    now, before, real = (_arrays(m) for m in (new, old, floats))
    kept = {
        name: before[name]
        for node in new.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
        if name in now and _alike(now[name], before.get(name))
    }
    if all(np.array_equal(array, now[name]) for name, array in kept.items()):
        return None
    made = {**now, **kept}
    for node in new.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in now:
            continue
        weight = real.get(node.input[0].removesuffix(SUFFIX))
        if weight is None or weight.shape != now[node.input[0]].shape:
            return None  # not made of these floats
        made[node.input[0]] = _rounded(weight, now[node.input[0]], node, made)
    for tensor in new.graph.initializer:
        if made[tensor.name] is not now[tensor.name]:
            tensor.CopyFrom(numpy_helper.from_array(made[tensor.name], tensor.name))
    return bytes(new.SerializeToString(deterministic=True))


def _rounded(
    weight: NDArray[Any], was: NDArray[Any], node: onnx.NodeProto, made: Mapping[str, NDArray[Any]]
) -> NDArray[Any]:
    """Return weights as integers on a scale, within the integers that the quantizer used."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [-1 if d == axis % max(weight.ndim, 1) else 1 for d in range(weight.ndim)]

    def spread(name: str) -> NDArray[Any]:
        values = made[name].astype(np.float64)
        return values.reshape(shape) if values.size > 1 else values.reshape(())

    zero = spread(node.input[2]) if len(node.input) > 2 and node.input[2] in made else 0.0
    integers = np.rint(weight.astype(np.float64) / spread(node.input[1])) + zero
    low, high = (int(bound) for bound in (was.min(initial=0), was.max(initial=0)))
    if was.dtype == np.int8:  # seven bits or eight, the same to both sides
        high = max(-low, high)
        low = -high
    elif was.dtype == np.int32:  # biases: their range is no limit of the quantizer's
        low, high = -(2**31), 2**31 - 1
    else:
        low, high = np.iinfo(was.dtype).min, np.iinfo(was.dtype).max
    rounded: NDArray[Any] = np.clip(integers, low, high).astype(was.dtype)
    return rounded


def _arrays(model: onnx.ModelProto) -> Arrays:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _alike(one: NDArray[Any], other: NDArray[Any] | None) -> bool:
    return other is not None and (one.dtype, one.shape) == (other.dtype, other.shape)
