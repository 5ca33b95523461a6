"""Running a model here: one thread, no spinning, in batches that the model takes."""

import warnings
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compiler.ports import Arrays, Ports, count
from skerry.errors import RefusedError, UsageError
from skerry.io.extensions import add_extensions
from skerry.onnx_outline import EXTENSIONS

__all__ = ["Outputs", "one_call", "open_session", "run_samples"]

Outputs = dict[str, NDArray[Any]]  # output -> [n, ...]


def open_session(model: bytes) -> ort.InferenceSession:
    """Load a model into onnxruntime, on the CPU, one thread.

    Raises:
        RefusedError: onnxruntime cannot load it.
        UsageError: it needs onnxruntime-extensions, which is not installed.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # spinning burns the neighbour's core and would be counted as our own time
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    named = EXTENSIONS.encode() in model  # by an operator, or declared alone
    added = named and add_extensions(options)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class but this
        if named and not added:
            raise UsageError(
                "the model's tokenizer needs onnxruntime-extensions, which is not installed: "
                "pip install 'skerry[extensions]'"
            ) from None
        raise RefusedError(
            f"onnxruntime {ort.__version__} cannot load the model: {_first_line(error)}"
        ) from None


def run_samples(
    session: ort.InferenceSession, ports: Ports, arrays: Arrays, needed: str | None = None
) -> Outputs:
    """Run all samples and return each output, its samples in the same order.

    Args:
        session: the model.
        ports: its inputs.
        arrays: as `Ports.fit` returns them.
        needed: an output that must have an entry for each sample; others that have none are
            left out of the answer. All must, where this is None.

    Raises:
        RefusedError: the model fails on the samples, or does not answer one by one.
    """
    names = [output.name for output in session.get_outputs()]
    n, step = count(arrays), ports.step(arrays)
    found: Outputs = {}
    left_out: set[str] = set()
    for start in range(0, n, step):
        feed, missing = ports.call(arrays, start, start + step)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                answer = session.run(names, feed)
        except Exception as error:  # as above
            raise RefusedError(
                f"the model fails on the samples from {start} on: {_first_line(error)}"
            ) from None
        wanted = min(step, n - start)
        for name, values in zip(names, answer, strict=True):
            if name in left_out:
                continue
            array = np.asarray(values)
            if ports.by_sample:
                array = array[None]
            elif array.ndim < 1 or len(array) != wanted + missing:
                if needed in (name, None):
                    raise RefusedError(
                        f"expected output {name!r} to have one entry for each of "
                        f"{wanted + missing} samples, got {list(array.shape)}; export the model "
                        "with a batch axis, or give its input `batch = false`"
                    )
                left_out.add(name)
                found.pop(name, None)
                continue
            if name not in found:  # at once for all: joining parts would take twice the memory
                found[name] = np.empty((n, *array.shape[1:]), array.dtype)
            elif found[name].shape[1:] != array.shape[1:]:
                shapes = sorted({found[name].shape[1:], array.shape[1:]})
                raise RefusedError(
                    f"expected output {name!r} to have one shape for all samples, got {shapes}; "
                    "give samples of one length"
                )
            found[name][start : start + wanted] = array[:wanted]
    return found


def one_call(ports: Ports, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return the smallest input that the model takes: one sample, or its fixed batch."""
    feed, _ = ports.call(arrays, 0, max(1, ports.fixed))
    return feed


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
