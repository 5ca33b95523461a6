"""From a file to a graph that is safe to keep: every pass either mends or refuses.

In order, the cheap ones first, so that a hostile file costs little:

1. size, and the outermost fields of the protobuf, before it is parsed
2. one file: no tensor's bytes may lie elsewhere
3. only operators of ONNX itself, no local functions; bounded nodes, depth and tensors
4. opset raised to 17: below 13 per-channel quantization writes invalid models
5. `onnx.checker`, then onnxruntime must load it
6. for quantization: constants folded and shapes inferred, with a fallback
"""

import math
import tempfile
from collections.abc import Iterator
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
from skerry.errors import FormatError, RefusedError
from skerry.manifest import TensorSpec

__all__ = ["Graph", "load_graph", "prepare"]

MAX_MODEL_BYTES: Final = 1 << 30
MAX_NODES: Final = 100_000
MAX_DEPTH: Final = 8  # graphs within graphs: If, Loop, Scan
MAX_TENSOR_ELEMENTS: Final = 1 << 30
MIN_OPSET: Final = 17
DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})

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
    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise RefusedError(f"expected a model of at most {MAX_MODEL_BYTES} bytes, got {size}")
    data = path.read_bytes()
    check_outline(data)
    model = parse(data)
    check_single_file(model)
    check_domains(model)
    check_limits(model)
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


def check_outline(data: bytes) -> None:
    """Walk the outermost protobuf fields, without parsing what is in them.

    Raises:
        FormatError: not the outline of a `ModelProto` with a graph.
    """
    position, fields = 0, set[int]()
    while position < len(data):
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            _, position = _varint(data, position)
        elif wire == 2:
            length, position = _varint(data, position)
            position += length
        else:
            raise FormatError("expected an ONNX model, got other bytes; export the model again")
        fields.add(field)
    if position != len(data) or 7 not in fields:  # ModelProto.graph
        raise FormatError("expected an ONNX model with a graph; the file is cut short or another")


def parse(data: bytes) -> onnx.ModelProto:
    """Parse a model; the protobuf library itself stops at a depth of 100.

    Raises:
        FormatError: not an ONNX model.
    """
    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise FormatError(f"expected an ONNX model: {error}; export the model again") from None


def check_single_file(model: onnx.ModelProto) -> None:
    """Refuse a model any of whose bytes lie in another file.

    onnxruntime would read them by a path of the model's own choosing, through links too.

    Raises:
        RefusedError: a tensor names external data.
    """
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise RefusedError(
                f"expected one file; tensor {tensor.name[:80]!r} keeps its data in another. "
                "Save the model with save_as_external_data=False"
            )


def check_domains(model: onnx.ModelProto) -> None:
    """Refuse operators that only some builds of onnxruntime have.

    Raises:
        RefusedError: a foreign domain, or local functions.
    """
    if model.functions:
        raise RefusedError(
            f"expected no local functions, got {len(model.functions)}; "
            "inline them with onnx.inliner.inline_local_functions"
        )
    used = {node.domain for graph, _ in _graphs(model.graph) for node in graph.node}
    foreign = (used | {entry.domain for entry in model.opset_import}) - DOMAINS
    if foreign:
        raise RefusedError(
            f"expected operators of ai.onnx and ai.onnx.ml only, got domain "
            f"{min(foreign)[:80]!r}; export the model with standard operators"
        )


def check_limits(model: onnx.ModelProto) -> None:
    """Refuse a graph too large, too deep, or with tensors that claim what they do not hold.

    Raises:
        RefusedError: beyond a limit.
    """
    nodes = 0
    for graph, depth in _graphs(model.graph):
        nodes += len(graph.node)
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise RefusedError(
                f"expected at most {MAX_NODES} nodes and graphs {MAX_DEPTH} deep, got more"
            )
    for tensor in _tensors(model):
        elements = math.prod(tensor.dims)
        if any(dim < 0 for dim in tensor.dims) or elements > MAX_TENSOR_ELEMENTS:
            raise RefusedError(
                f"tensor {tensor.name[:80]!r} claims {elements} elements, more than "
                f"{MAX_TENSOR_ELEMENTS}"
            )


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


def _graphs(graph: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, int]]:
    waiting = [(graph, 1)]
    while waiting:
        current, depth = waiting.pop()
        yield current, depth
        for node in current.node:
            for attribute in node.attribute:
                inner = [attribute.g] if attribute.HasField("g") else []
                waiting += [(g, depth + 1) for g in (*inner, *attribute.graphs)]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph, _ in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            yield from _tensors_of_attributes(node)
    for function in model.functions:
        for node in function.node:
            yield from _tensors_of_attributes(node)


def _tensors_of_attributes(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for tensor in (*sparse, *attribute.sparse_tensors):
            yield from (tensor.values, tensor.indices)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    datatype = DATATYPES.get(tensor.elem_type)
    if not value.type.HasField("tensor_type") or datatype is None:
        raise RefusedError(f"expected {value.name[:80]!r} to be a tensor of a plain type")
    dims = tensor.shape.dim if tensor.HasField("shape") else ()
    shape = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in dims]
    return TensorSpec(name=value.name, datatype=datatype, shape=shape)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(data):
            raise FormatError("expected an ONNX model; the file is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise FormatError("expected an ONNX model, got other bytes")
