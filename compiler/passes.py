"""From a file to a graph that is safe to keep: every pass either mends or refuses.

In order, the cheap ones first, so that a hostile file costs little:

1. tensors from the one file that the recipe names, folded in (`compiler.external`)
2. on the wire, before it is parsed (`skerry.onnx_outline`): one file, no tensor's bytes
   elsewhere; bounded size, depth, nodes and tensors; only operators of ONNX itself and those
   that onnxruntime's quantizer writes, no local functions
3. a trial in a child process, which may hang, crash or eat memory (`compiler.trial`)
4. opset raised to 17: below 13 per-channel quantization writes invalid models
5. outputs that are no tensors are dropped, or unwrapped: scikit-learn's maps of classes
6. `onnx.checker`, then onnxruntime must load it
7. for quantization: constants folded, batch normalisation with them, and shapes inferred,
   with a fallback; nodes named
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from compiler.external import fold_external
from compiler.runtime import open_session
from compiler.trial import try_model
from compiler.workspace import check_room, workspace
from skerry.errors import FormatError, NotFoundError, RefusedError
from skerry.manifest import TensorSpec
from skerry.onnx_outline import EXTENSIONS, IMPORT, check_outline

__all__ = ["Graph", "graph_of", "load_graph", "prepare"]

MIN_OPSET: Final = 17
TEXT_DOMAINS: Final = frozenset({EXTENSIONS, "com.microsoft.extensions"})

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


def load_graph(
    path: Path,
    *,
    external: str = "",
    keep: str = "",
    change: Callable[[onnx.ModelProto], list[str]] = lambda _: [],
) -> Graph:
    """Read a model file and pass it through passes 1 to 6.

    Args:
        path: of the file.
        external: the name of the one file beside it from which its tensors may come.
        keep: the output that is needed; others that are no tensors are dropped. All that can
            be are unwrapped where it is empty.
        change: changes the checked model in place, and says what it did.

    Raises:
        FormatError: not an ONNX model.
        RefusedError: an ONNX model that Skerry does not ship; the message says why.
    """
    data = read_model(path)
    notes: list[str] = []
    if external:
        data = fold_external(data, path.parent, external)
        notes.append(f"tensors of {external} folded in")
    check_outline(data, IMPORT)
    try_model(data)
    model = parse(data)
    opset = opset_of(model)
    changed = False
    if opset < MIN_OPSET:
        model, changed = raise_opset(model), True
        notes.append(f"opset {opset} raised to {MIN_OPSET}")
    dropped = plain_outputs(model, keep)
    if dropped:
        notes.append(f"outputs that are no tensors: {', '.join(dropped)}")
    done = change(model)
    notes += done
    if changed or dropped or done:
        data = model.SerializeToString(deterministic=True)
    check_model(model)
    open_session(data)
    return graph_of(model, data, tuple(notes))


def graph_of(model: onnx.ModelProto, data: bytes, notes: tuple[str, ...]) -> Graph:
    """Return what a checked model is.

    Raises:
        RefusedError: an input or output is no tensor of a plain type.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = [value for value in model.graph.input if value.name not in weights]
    if not taken or not model.graph.output:
        raise RefusedError(
            f"expected a model with inputs and outputs, this one has {len(taken)} and "
            f"{len(model.graph.output)}; export the model again"
        )
    return Graph(
        data=data,
        opset=opset_of(model),
        inputs=tuple(_spec(value) for value in taken),
        outputs=tuple(_spec(v) for v in model.graph.output),
        notes=notes,
    )


def plain_outputs(model: onnx.ModelProto, keep: str) -> list[str]:
    """Drop outputs that are no tensors, or unwrap the one that is needed; say what was done.

    scikit-learn's exporter wraps probabilities in a sequence of maps (`ZipMap`), which no
    device reads: the tensor before it is what is meant.
    """
    graph, done = model.graph, []
    for value in list(graph.output):
        if value.type.HasField("tensor_type"):
            continue
        maker = next((n for n in graph.node if value.name in n.output), None)
        if maker is not None and maker.op_type == "ZipMap" and keep in ("", value.name):
            width = next(
                (
                    len(a.ints) or len(a.strings)
                    for a in maker.attribute
                    if a.name.startswith("classl")
                ),
                -1,
            )
            inner = maker.input[0]
            graph.node.remove(maker)
            for node in graph.node:
                node.output[:] = [value.name if name == inner else name for name in node.output]
                node.input[:] = [value.name if name == inner else name for name in node.input]
            value.CopyFrom(
                helper.make_tensor_value_info(
                    value.name, onnx.TensorProto.FLOAT, ["n", width if width > 0 else "classes"]
                )
            )
            done.append(f"{value.name} unwrapped")
        elif value.name != keep:
            if maker is not None and len(maker.output) == 1:
                graph.node.remove(maker)
            graph.output.remove(value)
            done.append(f"{value.name} dropped")
    return done


def read_model(path: Path) -> bytes:
    """Return a model file's bytes, at most as many as are allowed.

    Raises:
        FormatError: no plain file.
        NotFoundError: no file.
        RefusedError: too large.
    """
    if not path.exists():
        raise NotFoundError(f"expected a model at {path}, and there is no such file")
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


def raise_opset(model: onnx.ModelProto, opset: int = MIN_OPSET) -> onnx.ModelProto:
    """Return the model in a higher opset.

    Raises:
        RefusedError: the converter cannot.
    """
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # its errors share no base class but this
        reason = str(error).splitlines()[0][:300]
        raise RefusedError(
            f"opset {opset_of(model)} cannot be raised to {opset}: {reason}; "
            f"export the model with opset {opset} or newer"
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
        SkerryError: there is no room for its files.
    """
    failure = ""
    # where it fails, it leaves a file in the directory that the process is in
    with workspace("preparation", 5 * len(graph.data)) as folder, contextlib.chdir(folder):
        given, out = _folded(parse(graph.data)), folder / "prepared.onnx"
        for symbolic in (True, False):
            try:
                quant_pre_process(
                    given, out, skip_optimization=True, skip_symbolic_shape=not symbolic
                )
            except (OSError, MemoryError):
                raise
            except Exception as error:  # it raises whatever went wrong inside, bare or not
                check_room(folder)
                failure = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
                failure = failure or type(error).__name__
                continue
            how = "symbolic" if symbolic else f"plain, since symbolic failed ({failure})"
            model = parse(out.read_bytes())
            name_nodes(model)
            flatten_biases(model)
            return model, f"shape inference: {how}"
    raise RefusedError(f"the model cannot be prepared for quantization: {failure}")


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose constants are folded, batch normalisation into its convolution too.

    onnxruntime's own optimization, at the level that changes no meaning; its tool for
    quantization fails on models whose weights are nodes (measured: two models in six).
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    out = Path("folded.onnx")  # in a directory of its own
    options.optimized_model_filepath = str(out)
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = parse(out.read_bytes())
    except (OSError, MemoryError):
        raise
    except Exception:  # onnxruntime's errors share no base class but this
        check_room(Path.cwd())
        return model
    # it declares every domain that this process knows: a tokenizer built before adds one
    given = {known.domain for known in model.opset_import}
    for known in list(folded.opset_import):
        if known.domain in TEXT_DOMAINS and known.domain not in given:
            folded.opset_import.remove(known)
    return folded


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, by which it can be left in float."""
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)


def flatten_biases(model: onnx.ModelProto) -> None:
    """Make every constant bias [1, n] of a Gemm one of [n]: the quantizer raises on the former.

    scikit-learn's exporter writes them so (measured: every multilayer perceptron of its own).
    """
    graph = model.graph
    rows = {t.name: t for t in graph.initializer if len(t.dims) == 2 and t.dims[0] == 1}
    flat: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in rows:
            name = node.input[2]
            if name not in flat:
                values = numpy_helper.to_array(rows[name]).reshape(-1)
                flat[name] = numpy_helper.from_array(values, f"{name}__flat")
            node.input[2] = flat[name].name
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [t for t in graph.initializer if t.name not in flat or t.name in used]
    if flat:
        graph.ClearField("initializer")
        graph.initializer.extend([*kept, *flat.values()])


def complete_types(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]]) -> int:
    """Note the type of every tensor that shape inference did not reach; return how many.

    It stops at operators that it does not know, such as those of ai.onnx.ml, and the quantizer
    then leaves everything behind them as it is. Running the model once tells.

    Args:
        model: prepared; it is changed.
        feed: one call's tensors.
    """
    graph = model.graph
    known = {v.name for v in (*graph.value_info, *graph.input, *graph.output) if v.HasField("type")}
    known |= {tensor.name for tensor in graph.initializer}
    missing = [name for node in graph.node for name in node.output if name and name not in known]
    if not missing:
        return 0
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    session = open_session(asked.SerializeToString())
    kinds = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)): kind for kind in DATATYPES}
    found = 0
    for name, value in zip(missing, session.run(missing, dict(feed)), strict=True):
        kind = kinds.get(value.dtype) if isinstance(value, np.ndarray) else None
        if kind is not None:
            # the batch may be of any size; the other axes are taken as they came
            shape = [None, *value.shape[1:]] if value.ndim else []
            graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
            found += 1
    return found


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
