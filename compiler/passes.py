"""From a file to a graph that is safe to keep: every pass either mends or refuses.

In order, the cheap ones first, so that a hostile file costs little:

1. on the wire, before it is parsed (`skerry.onnx_outline`): one file, no tensor's bytes
   elsewhere; bounded size, depth, nodes and tensors
2. only operators of ONNX itself, no local functions
3. a trial in a child process, which may hang, crash or eat memory (`compiler.trial`)
4. opset raised to 17: below 13 per-channel quantization writes invalid models
5. `onnx.checker`, then onnxruntime must load it
6. for quantization: constants folded and shapes inferred, with a fallback
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs
from onnxruntime.quantization.shape_inference import quant_pre_process

from compiler.runtime import open_session
from compiler.trial import try_model
from skerry.errors import FormatError, RefusedError
from skerry.manifest import TensorSpec
from skerry.onnx_outline import IMPORT, check_outline

__all__ = ["Graph", "load_graph", "prepare"]

MIN_OPSET: Final = 17

DATATYPES: Final[dict[int, str]] = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.STRING: "BYTES",
}


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked fp32 model.

    Attributes:
        data: its bytes; those of the file where nothing had to change.
        opset: of the default domain.
        inputs: what it takes.
        outputs: what it gives.
        notes: what the passes did, in words.
    """

    data: bytes
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


def load_graph(path: Path) -> Graph:
    """Read a model file and pass it through passes 1 to 5.

    Raises:
        FormatError: not an ONNX model.
        RefusedError: an ONNX model that Skerry does not ship; the message says why.
    """
    data = read_model(path)
    check_outline(data, IMPORT)
    try_model(data)
    model = parse(data)
    notes: list[str] = []
    opset = opset_of(model)
    if opset < MIN_OPSET:
        model = raise_opset(model)
        data = model.SerializeToString(deterministic=True)
        notes.append(f"opset {opset} raised to {MIN_OPSET}")
    check_model(model)
    open_session(data)
    weights = {tensor.name for tensor in model.graph.initializer}
    return Graph(
        data=data,
        opset=opset_of(model),
        inputs=tuple(_spec(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_spec(v) for v in model.graph.output),
        notes=tuple(notes),
    )


def read_model(path: Path) -> bytes:
    """Return a model file's bytes, at most as many as are allowed.

    Raises:
        FormatError: no plain file.
        RefusedError: too large.
    """
    if not path.is_file():  # a pipe or a device never ends
        raise FormatError(f"expected a model file at {path}; it is none", "not_onnx")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # a sparse file is as large as it says
        data = b"" if size > IMPORT.size_bytes else file.read(IMPORT.size_bytes + 1)
    if max(size, len(data)) > IMPORT.size_bytes:
        raise RefusedError(
            f"expected a model of at most {IMPORT.size_bytes} bytes, got {size}", "model_too_large"
        )
    return data


def parse(data: bytes) -> onnx.ModelProto:
    """Parse a model; the protobuf library itself stops at a depth of 100.

    Raises:
        FormatError: not an ONNX model.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise FormatError(f"expected an ONNX model: {error}; export the model again") from None


def raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in opset 17.

    Raises:
        RefusedError: the converter cannot.
    """
    try:
        return onnx.version_converter.convert_version(model, MIN_OPSET)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        reason = str(error).splitlines()[0][:300]
        raise RefusedError(
            f"opset {opset_of(model)} cannot be raised to {MIN_OPSET}: {reason}; "
            f"export the model with opset {MIN_OPSET} or newer"
        ) from None


def check_model(model: onnx.ModelProto) -> None:
    """Run the ONNX checker.

    Raises:
        RefusedError: it finds a fault.
    """
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0][:300]
        raise RefusedError(f"the model is no valid ONNX: {reason}; export it again") from None


def prepare(graph: Graph) -> tuple[onnx.ModelProto, str]:
    """Return the model folded and with shapes, ready to quantize, and how that was done.

    Symbolic shape inference fails on four models in six (measured), so it is tried
    first and then left out.

    Raises:
        RefusedError: neither way works.
    """
    failure = ""
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        out = Path(folder, "prepared.onnx")
        for symbolic in (True, False):
            try:
                quant_pre_process(parse(graph.data), out, skip_symbolic_shape=not symbolic)
            except Exception as error:  # it raises whatever went wrong inside, bare or not
                failure = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                failure = failure or type(error).__name__
                continue
            how = "symbolic" if symbolic else f"plain, since symbolic failed ({failure})"
            return parse(out.read_bytes()), f"shape inference: {how}"
    raise RefusedError(f"the model cannot be prepared for quantization: {failure}")


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    datatype = DATATYPES.get(tensor.elem_type)
    if not value.type.HasField("tensor_type") or datatype is None:
        raise RefusedError(f"expected {value.name[:80]!r} to be a tensor of a plain type")
    dims = tensor.shape.dim if tensor.HasField("shape") else ()
    shape = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in dims]
    return TensorSpec(name=value.name, datatype=datatype, shape=shape)
