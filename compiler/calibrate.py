"""Calibration: the range of every float tensor over real samples, taken once.

Ranges are the smallest and largest value (min-max): once weights keep to seven bits,
percentile and entropy change little (measured), and min-max needs no histogram.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

from compiler.ports import Arrays, Ports, count
from compiler.quantize import OP_TYPES, Ranges
from compiler.workspace import check_room, workspace
from skerry.errors import RefusedError

__all__ = ["calibrate"]

BATCH: Final = 32


def calibrate(model: onnx.ModelProto, ports: Ports, arrays: Arrays) -> Ranges:
    """Return the range of every tensor that quantization may touch.

    Args:
        model: prepared, with shapes.
        ports: its inputs.
        arrays: as `Ports.fit` returns them.

    Raises:
        RefusedError: the model fails on the samples, or gives values that are not finite.
        SkerryError: there is no room for its files.
    """
    with workspace("calibration", 3 * model.ByteSize()) as folder:
        path = folder / "model.onnx"
        onnx.save(model, path)
        try:
            calibrator = create_calibrator(
                path,
                list(OP_TYPES),
                augmented_model_path=str(folder / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of NaN, which is refused below
                calibrator.collect_data(_Reader(ports, arrays))
                found = calibrator.compute_data()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # onnxruntime's errors share no base class but this
            check_room(folder)
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise RefusedError(f"calibration failed: {reason}") from None
    ranges: Ranges = {}
    for name in sorted(found.keys()):  # the calibrator keeps them in a set
        low, high = (float(np.asarray(value).item()) for value in found[name].range_value)
        if not (high - low < float("inf")):
            raise RefusedError(
                f"tensor {name[:80]!r} is not finite on the calibration samples: {low} to {high}"
            )
        ranges[name] = (low, high)
    return ranges


class _Reader(CalibrationDataReader):  # type: ignore[misc] # it has no types
    """Samples in batches, as the calibrator wants them."""

    def __init__(self, ports: Ports, arrays: Arrays) -> None:
        step, n = min(BATCH, ports.step(arrays)), count(arrays)
        step = max(step, ports.fixed)
        # a fixed batch is filled only by whole steps; a rest of it is left out
        last = n - n % step if ports.fixed and n >= step else n
        self._feeds: Iterator[dict[str, NDArray[Any]]] = (
            ports.call(arrays, start, start + step)[0] for start in range(0, last, step)
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)
