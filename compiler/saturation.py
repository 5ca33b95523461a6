"""Weights with which a product of 8 bits may saturate on x86 without VNNI.

There onnxruntime adds two products of an unsigned activation and a signed weight into 16
bits: 2 x 255 x 64 is 32,640 and fits, one step more does not. Forms that Skerry makes keep to
64 (`compiler.quantize`); a model that came quantized may not, and then its answers depend on
the CPU. Unsigned weights have other kernels, which do not saturate.
"""

from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["LARGEST", "full_range_weights"]

LARGEST: Final = 64  # (2**15 - 1) // (2 * 255)
# operators of which an input is a weight of 8 bits, and at which place
DIRECT: Final = {
    "ConvInteger": 1, "MatMulInteger": 1, "QLinearConv": 3, "QLinearMatMul": 3,
    "DequantizeLinear": 0, "DynamicQuantizeMatMul": 1, "MatMulIntegerToFloat": 1, "QGemm": 3,
}  # fmt: skip


def full_range_weights(model: onnx.ModelProto) -> list[str]:
    """Return the names of signed 8-bit weights that go beyond 64 either way, in order."""
    signed = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    found: dict[str, None] = {}
    for node in model.graph.node:
        place = DIRECT.get(node.op_type)
        name = node.input[place] if place is not None and len(node.input) > place else ""
        if name not in signed:
            continue
        values = numpy_helper.to_array(signed[name]).astype(np.int16)
        # one value alone is a zero point or a scale's neighbour: nothing is summed
        if values.size > 1 and int(np.abs(values).max()) > LARGEST:
            found[name] = None
    return list(found)
