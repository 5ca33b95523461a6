"""Quantization: fp32 weights and activations to 8 bits, the same bytes every time.

Static QDQ, weights per channel, int8 within seven bits (`reduce_range`): on x86
without VNNI onnxruntime adds two 8-bit products into 16 bits, which saturates with
full weights (measured: 97.8 % accuracy became 88.0 %). Seven bits cannot saturate,
so one variant answers alike on every CPU, at no cost in speed.

Convolutions and products gain; what stands between them is quantized too, so that
values stay in 8 bits from one to the next. Softmax, sigmoid, normalisation and
recurrent cells stay in float: there int8 costs accuracy and brings no speed.
"""

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from skerry.errors import RefusedError

__all__ = ["OP_TYPES", "quantize"]

OP_TYPES = (
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "MatMul",
    "MaxPool",
    "Relu",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def quantize(model: onnx.ModelProto, ranges: dict[str, tuple[float, float]]) -> bytes:
    """Return the int8 form of a prepared model.

    Args:
        model: prepared, with shapes, opset 17 or newer.
        ranges: of every tensor, from `calibrate`.

    Raises:
        RefusedError: onnxruntime cannot quantize this model, or nothing in it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # the quantizer works in place
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in ranges.items()
    }
    try:
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=list(OP_TYPES),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # it appends; ONNX wants every value made before it is used
    except Exception as error:  # it raises whatever went wrong inside
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise RefusedError(f"onnxruntime cannot quantize the model: {reason}") from None
    done = quantizer.model.model
    if not any(node.op_type == "QuantizeLinear" for node in done.graph.node):
        raise RefusedError("nothing in the model is of a kind that int8 helps")
    result: bytes = done.SerializeToString(deterministic=True)
    return result
