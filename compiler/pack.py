"""Weights in fewer bytes, and the model as fast and as exact as its floats: transport forms.

A large float tensor is kept as float16, or as 8 or 4 bits with scales, and turned back
into float32 by two or three standard operators. onnxruntime folds them once, when it
loads the model: what runs is plain float32, on every CPU alike. So these forms save
bytes to carry and to keep, and neither time nor memory.

Scales are per output channel (8 bits), or per block of 32 values along the summed axis
(4 bits, scales in float16). Source: ONNX Cast-21 for the packed 4-bit type.
"""

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compiler.passes import opset_of, parse, raise_opset
from skerry.errors import RefusedError

__all__ = ["pack_weights"]

MIN_ELEMENTS: Final = 1024  # below, operators and scales cost more than they save
BLOCK: Final = 32
INT4_OPSET: Final = 21  # the first that casts from four bits
FP16_MAX: Final = float(np.finfo(np.float16).max)


def pack_weights(data: bytes, bits: int) -> bytes:
    """Return a model whose large float32 weights are kept in fewer bits.

    Args:
        data: a checked fp32 model.
        bits: 16 (float16), 8 or 4 (integers and scales).

    Raises:
        RefusedError: no weight is large enough, or the opset cannot be raised.
    """
    model = parse(data)
    if bits == 4 and opset_of(model) < INT4_OPSET:
        model = raise_opset(model, INT4_OPSET)
    graph = model.graph
    kinds = _consumers(graph)
    kept: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    packed = 0
    for tensor in graph.initializer:
        small = tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MIN_ELEMENTS
        parts = None if small else _pack(tensor, bits, kinds.get(tensor.name, ("", 0)))
        if parts is None:
            kept.append(tensor)
            continue
        packed += 1
        kept += parts[0]
        nodes += parts[1]
    if not packed:
        raise RefusedError(f"no weight has {MIN_ELEMENTS} values or more that {bits} bits can hold")
    nodes += list(graph.node)
    # a weight may be listed as an input too, as old exporters did: it is made by a node now
    made = {name for node in nodes for name in node.output}
    inputs = [value for value in graph.input if value.name not in made]
    for field, values in (("initializer", kept), ("node", nodes), ("input", inputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _consumers(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """Return, by tensor, the operator that takes it first, and at which place."""
    found: dict[str, tuple[str, int]] = {}
    for node in graph.node:
        kind = node.op_type
        if kind == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            kind = "GemmT"
        for place, name in enumerate(node.input):
            found.setdefault(name, (kind, place))
    return found


Parts = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]


def _pack(tensor: onnx.TensorProto, bits: int, consumer: tuple[str, int]) -> Parts | None:
    values = numpy_helper.to_array(tensor)
    if not np.isfinite(values).all():
        return None
    if bits == 16:
        if np.abs(values).max() > FP16_MAX:
            return None
        half = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}__f16")
        return [half], [_node("Cast", [half.name], tensor.name, to=TensorProto.FLOAT)]
    if values.ndim < 2:
        return None
    return _eight(tensor.name, values, consumer) if bits == 8 else _four(tensor.name, values)


def _eight(name: str, values: NDArray[Any], consumer: tuple[str, int]) -> Parts:
    axes = _summed(values.ndim, consumer)
    scale = np.abs(values).max(axis=axes, keepdims=True) / 127
    scale = np.where(scale == 0, 1.0, scale).astype(np.float32)
    whole = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    tensors = [
        numpy_helper.from_array(whole, f"{name}__i8"),
        numpy_helper.from_array(scale, f"{name}__scale"),
    ]
    nodes = [
        _node("Cast", [f"{name}__i8"], f"{name}__float", to=TensorProto.FLOAT),
        _node("Mul", [f"{name}__float", f"{name}__scale"], name),
    ]
    return tensors, nodes


def _summed(rank: int, consumer: tuple[str, int]) -> tuple[int, ...]:
    """Return the axes over which a weight's products are summed: they share a scale."""
    kind, place = consumer
    if kind in ("MatMul", "Gemm") and place == 1:
        return (rank - 2,)
    if kind == "ConvTranspose":
        return (0, *range(2, rank))
    if kind in ("LSTM", "GRU", "RNN"):
        return (rank - 1,)
    return tuple(range(1, rank))


def _four(name: str, values: NDArray[Any]) -> Parts | None:
    flat = values.reshape(-1)
    if flat.size % BLOCK:
        return None
    blocks = flat.reshape(-1, BLOCK)
    # the value of largest size gets -8, so that all sixteen steps are used
    largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)][:, None]
    scale = np.where(largest == 0, 1.0, largest / -8).astype(np.float16)
    if not np.isfinite(scale).all() or (scale == 0).any():
        return None
    whole = np.clip(np.rint(blocks / scale.astype(np.float32)), -8, 7).astype(np.int8)
    nibbles = (whole.reshape(-1) & 0xF).astype(np.uint8)
    tensors = [
        helper.make_tensor(
            f"{name}__i4", TensorProto.INT4, whole.shape,
            (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes(), raw=True,
        ),
        numpy_helper.from_array(scale, f"{name}__scale"),
        numpy_helper.from_array(np.asarray(values.shape, np.int64), f"{name}__shape"),
    ]  # fmt: skip
    nodes = [
        _node("Cast", [f"{name}__i4"], f"{name}__float", to=TensorProto.FLOAT),
        _node("Cast", [f"{name}__scale"], f"{name}__step", to=TensorProto.FLOAT),
        _node("Mul", [f"{name}__float", f"{name}__step"], f"{name}__blocks"),
        _node("Reshape", [f"{name}__blocks", f"{name}__shape"], name),
    ]
    return tensors, nodes


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"unpack__{output}", **attributes)
