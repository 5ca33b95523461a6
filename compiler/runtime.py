"""Running a model here: one thread, no spinning, in batches that the model takes."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from skerry.errors import RefusedError, UsageError
from skerry.manifest import TensorSpec

__all__ = ["Outputs", "Port", "open_session", "run_rows"]

BATCH: Final = 128  # rows of one call, where the model leaves it open

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Port:
    """The one input that rows go into."""

    name: str
    dtype: NDArray[Any]  # an empty array of the input's type
    shape: tuple[int, ...]  # -1 is open; the first axis is the batch

    @classmethod
    def of(cls, spec: TensorSpec) -> "Port":
        """Return the port of an input.

        Raises:
            UsageError: rows cannot go into it.
        """
        dtype = DTYPES.get(spec.datatype)
        if dtype is None or not spec.shape:
            raise UsageError(
                f"expected input {spec.name!r} to be a numeric tensor with a batch axis, "
                f"it is {spec.datatype} {spec.shape}"
            )
        return cls(spec.name, np.empty(0, dtype), tuple(spec.shape))

    def fit(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the rows in the input's type.

        Args:
            rows: [n, ...], of a type that converts without loss of kind.

        Raises:
            UsageError: another shape or kind of number.
        """
        wanted = self.shape[1:]
        fits = len(rows.shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(wanted, rows.shape[1:], strict=True)
        )
        if not fits or not np.can_cast(rows.dtype, self.dtype.dtype, "same_kind"):
            raise UsageError(
                f"expected rows of {self.dtype.dtype} {list(wanted)} for input {self.name!r}, "
                f"got {rows.dtype} {list(rows.shape[1:])}; prepare the data as the model takes it"
            )
        return np.ascontiguousarray(rows, dtype=self.dtype.dtype)


DTYPES: Final[dict[str, type[np.generic]]] = {
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}


def open_session(model: bytes) -> ort.InferenceSession:
    """Load a model into onnxruntime, on the CPU, one thread.

    Raises:
        RefusedError: onnxruntime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # spinning burns the neighbour's core and would be counted as our own time
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class but this
        reason = str(error).splitlines()[0][:300]
        raise RefusedError(
            f"onnxruntime {ort.__version__} cannot load the model: {reason}"
        ) from None


def run_rows(session: ort.InferenceSession, port: Port, rows: NDArray[Any]) -> Outputs:
    """Run all rows and return each output, its rows in the same order.

    Args:
        session: the model.
        port: its input.
        rows: [n, ...] as `Port.fit` returns them.

    Raises:
        RefusedError: the model fails on the rows, or does not answer row by row.
    """
    names = [output.name for output in session.get_outputs()]
    step = port.shape[0] if port.shape[0] > 0 else min(BATCH, len(rows))
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        short = step - len(part) if port.shape[0] > 0 else 0
        if short:
            part = np.concatenate([part, np.repeat(part[-1:], short, axis=0)])
        try:
            answer = session.run(names, {port.name: part})
        except Exception as error:  # as above
            reason = str(error).splitlines()[0][:300]
            raise RefusedError(f"the model fails on the rows from {start} on: {reason}") from None
        for name, values in zip(names, answer, strict=True):
            if np.ndim(values) < 1 or len(values) != len(part):
                raise RefusedError(
                    f"expected output {name!r} to have one entry for each of {len(part)} rows, "
                    f"got {list(np.shape(values))}; export the model with a batch axis"
                )
        parts.append([values[: step - short] for values in answer])
    return {name: np.concatenate(columns) for name, *columns in zip(names, *parts, strict=True)}
