"""Quantization: float products to 8 bits, the same bytes every time.

`int8` is static QDQ: weights per channel, within seven bits (`reduce_range`), and ranges
of activations from calibration. On x86 without VNNI onnxruntime adds two products of 8
bits into 16, which saturates with full weights (measured: 97.8 % accuracy became
88.0 %). Seven bits cannot saturate: 2 x 255 x 64 stays below 32,767. So one variant
answers alike on every CPU, at no cost in speed. `int8-u8u8` keeps eight bits in unsigned
weights, whose kernels do not saturate and are slower. `int8-tensor` has one scale for all of
a weight, and `int8-heavy` leaves in float what stands between the products: where their outputs
hold too, one of them is faster on some models, by up to a sixth. `int8-dynamic` takes the ranges of
activations as they come, for products with constant weights alone: the safe form for
transformers, whose activations no calibration bounds.

Convolutions and products gain; what stands between them is quantized too, so that
values stay in 8 bits from one to the next. Softmax, sigmoid, normalisation and
recurrent cells stay in float: there int8 costs accuracy and brings no speed.
"""

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode

from skerry.errors import RefusedError

__all__ = ["HEAVY", "OP_TYPES", "Ranges", "quantize_dynamic", "quantize_static"]

Ranges = dict[str, tuple[float, float]]  # tensor -> smallest and largest value, by name

HEAVY: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
GLUE: Final = (
    "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Relu",
    "Reshape", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
OP_TYPES: Final = (*HEAVY, *GLUE)


def quantize_static(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    only: Collection[str] = (),
    leave: Collection[str] = (),
    unsigned: bool = False,
    full_range: bool = False,
    per_tensor: bool = False,
    glue: bool = True,
) -> bytes:
    """Return the int8 form of a prepared model.

    Args:
        model: prepared, with shapes, opset 17 or newer.
        ranges: of every tensor, from `calibrate`.
        only: names of nodes to quantize; all that can be where it is empty.
        leave: names of nodes to leave in float.
        unsigned: weights of eight unsigned bits, instead of seven signed ones.
        full_range: weights of eight signed bits, which saturate on some CPUs: to measure, never
            to ship.
        per_tensor: one scale for all of a weight, instead of one for each channel.
        glue: whether what stands between the products is quantized too.

    Raises:
        RefusedError: onnxruntime cannot quantize this model, or nothing in it.
    """
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # the quantizer works in place

    def run() -> Any:
        quantizer = QDQQuantizer(
            copy,
            per_channel=not per_tensor,
            reduce_range=not (unsigned or full_range),
            weight_qType=QuantType.QUInt8 if unsigned else QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=sorted(only),
            nodes_to_exclude=sorted(leave),
            op_types_to_quantize=list(OP_TYPES if glue else HEAVY),
            extra_options={},
        )
        quantizer.quantize_model()
        return quantizer.model

    return _finish(run, {"QuantizeLinear"})


def quantize_dynamic(model: onnx.ModelProto, *, leave: Collection[str] = ()) -> bytes:
    """Return a form whose products with constant weights are int8, ranges found as it runs.

    Args:
        model: prepared, with shapes.
        leave: names of nodes to leave in float.

    Raises:
        RefusedError: onnxruntime cannot quantize this model, or it has no such product.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)

    def run() -> Any:
        plain = ONNXModel(copy)
        plain.replace_gemm_with_matmul()
        quantizer = ONNXQuantizer(
            plain.model,
            per_channel=True,
            reduce_range=True,
            mode=QuantizationMode.IntegerOps,
            static=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=None,
            nodes_to_quantize=[],
            nodes_to_exclude=sorted(leave),
            op_types_to_quantize=["MatMul"],
            extra_options={"MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
        return quantizer.model

    return _finish(run, {"MatMulInteger", "DynamicQuantizeMatMul"})


def _finish(run: Any, wanted: set[str]) -> bytes:
    try:
        made = run()
        made.topological_sort()  # it appends; ONNX wants every value made before it is used
        made.clean_initializers()
    except Exception as error:  # it raises whatever went wrong inside
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise RefusedError(f"onnxruntime cannot quantize the model: {reason}") from None
    done = made.model
    if not any(node.op_type in wanted for node in done.graph.node):
        raise RefusedError("nothing in the model is of a kind that int8 helps")
    result: bytes = done.SerializeToString(deterministic=True)
    return result
