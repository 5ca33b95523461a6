"""What onnxruntime's quantizers make of a model with nothing set: what most people get.

Each takes the model's file and gives bytes, or raises. Both see the graph after onnxruntime's own
preparation (`quant_pre_process`), tried again without symbolic shapes where those fail.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from compiler.materials import Materials
from compiler.ports import count

__all__ = ["OTHERS"]

logging.getLogger().setLevel(logging.ERROR)


def prepared(model: Path, folder: Path) -> Path:
    """Return the model as onnxruntime prepares it; the model itself where it cannot."""
    out = folder / "prepared.onnx"
    for skip in (False, True):
        try:
            quant_pre_process(str(model), str(out), skip_symbolic_shape=skip)
        except Exception as error:  # it raises whatever went wrong inside
            print(f"  quant_pre_process: {type(error).__name__}: {str(error)[:100]}")
            continue
        return out
    return model


def dynamic(model: Path, _: Materials) -> bytes:
    """Quantize dynamically with the defaults."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        out = folder / "out.onnx"
        quantize_dynamic(str(prepared(model, folder)), str(out))
        return out.read_bytes()


def static(model: Path, materials: Materials) -> bytes:
    """Quantize statically with the defaults: QDQ, smallest and largest values, per tensor."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        out = folder / "out.onnx"
        quantize_static(str(prepared(model, folder)), str(out), Samples(materials))
        return out.read_bytes()


def per_channel(model: Path, materials: Materials) -> bytes:
    """Quantize statically, U8S8 per channel in all eight bits: saturates on x86 without VNNI."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        out = folder / "out.onnx"
        opset = max(o.version for o in onnx.load(model).opset_import if o.domain in ("", "ai.onnx"))
        if opset < 13:
            raise ValueError(
                f"opset {opset}: per-channel scales need 13, the file would be invalid"
            )
        quantize_static(
            str(prepared(model, folder)), str(out), Samples(materials), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return out.read_bytes()


class Samples(CalibrationDataReader):
    """The calibration samples, as the calibrator asks for them."""

    def __init__(self, materials: Materials) -> None:
        ports, arrays = materials.ports, materials.calibration
        step = max(min(32, ports.step(arrays)), ports.fixed)
        n = count(arrays)
        self._feeds: Iterator[dict[str, np.ndarray[Any, Any]]] = (
            ports.call(arrays, start, start + step)[0] for start in range(0, n, step)
        )

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return the next batch."""
        return next(self._feeds, None)


OTHERS = {
    "onnxruntime dynamic": dynamic,
    "onnxruntime static": static,
    "onnxruntime U8S8 per channel": per_channel,
}
