"""A model that runs: one onnxruntime session and what the manifest says of it.

One thread unless told otherwise and no spinning: on a device that does other work,
a spinning second thread doubles the CPU for nothing (measured).
"""

import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agent import prepacked
from agent.measure import Pace, example, measure_pace
from agent.rows import RowReader
from skerry.canonical import sha256
from skerry.errors import FormatError, RefusedError
from skerry.io.extensions import add_extensions
from skerry.manifest import FileRef, Manifest, Variant, parse_manifest
from skerry.onnx_outline import DEVICE, DEVICE_TEXTS, check_outline
from skerry.tensors import DTYPES

__all__ = ["Model", "prepack", "read_manifest"]

Tensors = Mapping[str, NDArray[Any]]
CPU: Final = "CPUExecutionProvider"
PACKING: Final = {
    "session.optimized_model_external_initializers_file_name": prepacked.WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "64",
    "session.save_external_prepacked_constant_initializers": "1",
}
ORT_TYPES: Final = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64", "tensor(int8)": "INT8",
    "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip


def read_manifest(path: Path) -> Manifest:
    """Return a bundle's manifest.

    Raises:
        FormatError: no manifest.
    """
    return parse_manifest(path.read_bytes())


class Model:
    """A loaded model.

    Args:
        file: single-file ONNX, verified.
        manifest: of its bundle.
        variant: the id of the variant that the file is.
        threads: of one operator.
        cache_dir: where models lie prepacked; None to load the file itself.

    Raises:
        RefusedError: it does not load, or is not what its manifest says.
    """

    def __init__(
        self,
        file: Path,
        manifest: Manifest,
        variant: str,
        *,
        threads: int = 1,
        cache_dir: Path | None = None,
    ) -> None:
        chosen = next((v for v in manifest.variants if v.id == variant), None)
        if chosen is None:
            raise RefusedError(f"expected a variant of the manifest, got {variant!r}")
        started = time.perf_counter()
        needs = manifest.needs
        packed = _open_packed(chosen, cache_dir, threads, needs)
        self.prepacked: Final = packed is not None
        self._session = packed or _open(
            _verified(file, chosen.file, needs), _options(threads, needs), chosen
        )
        self.manifest: Final = manifest
        self.inputs: Final = {spec.name: spec for spec in manifest.inputs}
        self.outputs: Final = {spec.name: spec for spec in manifest.outputs}
        self._output_names: Final = list(self.outputs)
        reader = RowReader(manifest)
        self.rows: Final = reader.rows
        self.table: Final = reader.table
        self._compare(file)
        self.pace: Final = self._warm()
        self.load_ms: Final = (time.perf_counter() - started) * 1000

    def run(self, tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model on checked inputs and return its outputs by name."""
        values = self._session.run(self._output_names, tensors)
        return dict(zip(self._output_names, values, strict=True))

    def _compare(self, file: Path) -> None:
        ports = (
            (self.inputs, self._session.get_inputs(), True),
            (self.outputs, self._session.get_outputs(), False),
        )
        for specs, found, all_of_them in ports:
            types = {port.name: ORT_TYPES.get(port.type, port.type) for port in found}
            wanted = {name: spec.datatype for name, spec in specs.items()}
            got = types if all_of_them else {n: t for n, t in types.items() if n in wanted}
            if got != wanted or not set(wanted.values()) <= set(DTYPES):
                raise RefusedError(f"expected {wanted} in {file.name}, the model has {types}")

    def _warm(self) -> Pace:
        """Run a few times, so that the first request pays for no allocation; return how fast."""
        for spec in self.inputs.values():
            if not spec.shape:
                raise RefusedError(f"expected a batch axis in input {spec.name!r}; it is a scalar")
        tensors = example(self.inputs, 1)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = self.run(tensors)
                rows = self.rows(tensors, outputs)
                pace = measure_pace(self.run, self.inputs, self.outputs)
        except Exception as error:  # onnxruntime's errors share no other base
            raise RefusedError(f"the model fails on an input of zeros: {error}") from None
        if len(rows) != len(next(iter(tensors.values()))):  # the manifest names it first
            raise RefusedError("expected one prediction per row; the first axis must be the batch")
        return pace


def _verified(file: Path, expected: FileRef, needs: Sequence[str] = ()) -> bytes:
    """Return a model's bytes; what is hashed here is what is loaded, not what lies there later."""
    try:
        with file.open("rb") as stream:
            data = stream.read(expected.size_bytes + 1)
    except OSError as error:
        raise RefusedError(
            f"expected a model at {file}; it is missing: {error.strerror}", "missing"
        ) from None
    if len(data) != expected.size_bytes or sha256(data) != expected.digest:
        raise RefusedError(
            f"expected {file.name} to have the {expected.size_bytes} bytes of {expected.digest}; "
            "it has others",
            "digest_mismatch",
        )
    try:
        check_outline(data, DEVICE_TEXTS if needs else DEVICE)
    except FormatError as error:
        raise RefusedError(str(error), error.code) from None
    return data


def prepack(file: Path, manifest: Manifest, variant: str, cache_dir: Path, threads: int) -> bool:
    """Keep a model as this onnxruntime lays it out for this CPU; False where it is not worth it.

    Args:
        file: single-file ONNX; it is verified here.
        manifest: of its bundle.
        variant: of the manifest.
        cache_dir: of all models.
        threads: of one operator.

    Raises:
        RefusedError: the file does not load, or is not what the manifest says.
    """
    chosen = next(v for v in manifest.variants if v.id == variant)
    folder = _place(cache_dir, chosen, threads)
    if chosen.file.size_bytes < prepacked.LEAST_BYTES or chosen.provider != CPU:
        return False
    if prepacked.find(folder) is not None:
        return True
    data = _verified(file, chosen.file, manifest.needs)
    options = _options(threads, manifest.needs)
    for key, value in PACKING.items():
        options.add_session_config_entry(key, value)

    def write(part: Path) -> None:
        options.optimized_model_filepath = str(part / prepacked.GRAPH)
        _open(data, options, chosen)

    return prepacked.make(folder, write)


def _open_packed(
    chosen: Variant, cache_dir: Path | None, threads: int, needs: Sequence[str]
) -> ort.InferenceSession | None:
    """Return the session of a prepacked model, where one is there, whole, and fits."""
    if cache_dir is None or chosen.provider != CPU:
        return None
    graph = prepacked.find(_place(cache_dir, chosen, threads))
    if graph is None:
        return None
    options = _options(threads, needs)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        # by its path, so that the weights are mapped and not copied
        return ort.InferenceSession(str(graph), options, providers=[CPU])
    except Exception:  # onnxruntime's errors share no other base; the file itself is still there
        shutil.rmtree(graph.parent, ignore_errors=True)
        return None


def _place(cache_dir: Path, chosen: Variant, threads: int) -> Path:
    return prepacked.place(cache_dir, chosen.file.digest, runtime=ort.__version__, threads=threads)


def _options(threads: int, needs: Sequence[str] = ()) -> ort.SessionOptions:
    options = ort.SessionOptions()
    # for no other model: the library takes memory and time
    if needs and not add_extensions(options):
        raise RefusedError(
            f"the model needs {', '.join(needs)}, which is not installed; "
            "pip install 'skerry[extensions]'",
            "no_extensions",
        )
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _open(data: bytes, options: ort.SessionOptions, chosen: Variant) -> ort.InferenceSession:
    if chosen.provider not in ort.get_available_providers():
        raise RefusedError(f"expected {chosen.provider} in this onnxruntime; it is not built in")
    try:
        # from bytes: a path would let a model name files beside itself
        return ort.InferenceSession(data, options, providers=[chosen.provider])
    except Exception as error:  # as above
        raise RefusedError(
            f"onnxruntime cannot load the model: {str(error)[:500]}", "load_failed"
        ) from None
