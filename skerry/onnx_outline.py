"""The outline of an ONNX file, walked on the wire before anything parses it.

A model is a program from elsewhere. What this walk refuses is never seen by a protobuf
library, by `onnx` or by onnxruntime:

1. bytes that are not the protobuf of a model; more bytes, fields, nodes, tensors or graphs
   than a limit; graphs or messages nested too deep
2. a tensor whose data lies elsewhere, by any path, link or address
3. an operator of a domain that is not listed, and functions that a file brings along
4. a tensor that claims more elements than a limit

It keeps its own stack, so depth costs no recursion; data of tensors is stepped over.
Guarantee: linear in the number of fields, no more memory than the open messages.
Source: onnx.proto of ONNX 1.17 (IR version 10); protobuf's encoding guide.
"""

from dataclasses import dataclass
from typing import Final

from skerry.errors import FormatError, RefusedError

__all__ = [
    "DEVICE", "DEVICE_TEXTS", "EXTENSIONS", "IMPORT", "Limits", "Outline", "check_outline",
]  # fmt: skip

STANDARD: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
# what onnxruntime's quantizer writes where ONNX has no operator of its own
QUANTIZED: Final = frozenset({
    "DequantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "QLinearAdd",
    "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu",
    "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere",
    "QuantizeLinear",
})  # fmt: skip
MICROSOFT: Final = "com.microsoft"
# of onnxruntime-extensions, which has many more: what splits texts
TEXTS: Final = frozenset({
    "GPT2Tokenizer", "SentencepieceTokenizer", "StringJoin", "StringLower", "StringRegexReplace",
    "StringRegexSplitWithOffsets", "WordpieceTokenizer",
})  # fmt: skip
EXTENSIONS: Final = "ai.onnx.contrib"
# onnxruntime declares every domain that it knows in what it saves, used or not
DECLARED: Final = STANDARD | {
    MICROSOFT, "com.microsoft.experimental", "com.microsoft.nchwc", "ai.onnx.preview",
    "ai.onnx.preview.training", "ai.onnx.training", "org.pytorch.aten",
    EXTENSIONS, "com.microsoft.extensions",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model may be.

    Attributes:
        size_bytes: of the file.
        depth: of graphs in graphs: If, Loop, Scan.
        elements: of one tensor.
        microsoft: operators of the domain ``com.microsoft`` that may stand in it.
        extensions: operators of onnxruntime-extensions that may.
        imports: whether the domains that the file declares must be known ones too.
    """

    size_bytes: int = 1 << 30
    fields: int = 8_000_000
    nodes: int = 100_000
    tensors: int = 100_000
    graphs: int = 10_000
    depth: int = 8
    elements: int = 1 << 30
    microsoft: frozenset[str] = frozenset()
    extensions: frozenset[str] = frozenset()
    imports: bool = True


IMPORT: Final = Limits(microsoft=QUANTIZED)
DEVICE: Final = Limits(microsoft=QUANTIZED, imports=False)
# for a release whose manifest requires onnxruntime-extensions
DEVICE_TEXTS: Final = Limits(microsoft=QUANTIZED, extensions=TEXTS, imports=False)


@dataclass(slots=True)
class Outline:
    """What was counted."""

    fields: int = 0
    nodes: int = 0
    tensors: int = 0
    graphs: int = 0
    depth: int = 0


# --- the parts of onnx.proto that matter here: message -> field -> kind of its content ----

MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, OPSET, TRAINING, FUNCTION, VALUE, TYPE, INNER, MAP = (
    "model", "graph", "node", "attribute", "tensor", "sparse tensor", "opset import",
    "training info", "function", "value info", "type", "inner type", "map type",
)  # fmt: skip
MESSAGES: Final[dict[str, dict[int, str]]] = {
    MODEL: {7: GRAPH, 8: OPSET, 20: TRAINING, 25: FUNCTION},
    GRAPH: {1: NODE, 5: TENSOR, 11: VALUE, 12: VALUE, 13: VALUE, 15: SPARSE},
    NODE: {5: ATTRIBUTE},
    ATTRIBUTE: {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 14: TYPE, 15: TYPE, 22: SPARSE, 23: SPARSE},
    SPARSE: {1: TENSOR, 2: TENSOR},
    TRAINING: {1: GRAPH, 2: GRAPH},
    OPSET: {},
    VALUE: {2: TYPE},
    TYPE: {4: INNER, 5: MAP, 9: INNER},
    INNER: {1: TYPE},
    MAP: {2: TYPE},
}  # fmt: skip
MAX_OPEN: Final = 64  # messages in messages; the protobuf library itself stops at 100
DIMS, NAME, EXTERNAL_DATA, DATA_LOCATION = 1, 8, 13, 14  # of a tensor
OP_TYPE, NODE_DOMAIN, OPSET_DOMAIN, GRAPH_FIELD = 4, 7, 1, 7
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def check_outline(data: bytes, limits: Limits = IMPORT) -> Outline:
    """Walk a model file and refuse what must not reach a parser.

    Raises:
        FormatError: code ``not_onnx``: not the protobuf of a model.
        RefusedError: code ``model_too_large``, ``too_deep``, ``too_many_fields``,
            ``too_many_nodes``, ``too_many_tensors``, ``too_many_graphs``, ``tensor_too_large``,
            ``external_data``, ``foreign_domain`` or ``local_functions``.
    """
    if len(data) > limits.size_bytes:
        raise RefusedError(
            f"expected a model of at most {limits.size_bytes} bytes, got {len(data)}",
            "model_too_large",
        )
    outline, graphs = Outline(), 0
    # open messages: (kind, where to go on, end, graphs around it, operator, its domain)
    stack: list[_Open] = [_Open(MODEL, 0, len(data), 0)]
    while stack:
        message = stack[-1]
        if message.position >= message.end:
            stack.pop()
            if message.kind == NODE:
                _check_operator(message, limits)
            continue
        field, wire, start, end = _field(data, message.position, message.end)
        message.position = end
        outline.fields += 1
        if outline.fields > limits.fields:
            raise _beyond("too_many_fields", f"{limits.fields} fields")
        kind = MESSAGES[message.kind].get(field)
        if kind is None:
            _look(data, message, field, wire, start, end, limits)
            continue
        if wire != BYTES:
            raise _not_onnx(f"a {kind} is no message")
        if kind == FUNCTION:
            raise RefusedError(
                "expected no local functions; inline them with onnx.inliner.inline_local_functions",
                "local_functions",
            )
        if kind == TENSOR:
            outline.tensors += 1
            if outline.tensors > limits.tensors:
                raise _beyond("too_many_tensors", f"{limits.tensors} tensors")
            _check_tensor(data, start, end, outline, limits)
            continue
        depth = message.depth + (kind == GRAPH)
        outline.depth = max(outline.depth, depth)
        outline.nodes += kind == NODE
        outline.graphs += kind == GRAPH
        graphs += message.kind == MODEL and kind == GRAPH
        if outline.nodes > limits.nodes:
            raise _beyond("too_many_nodes", f"{limits.nodes} nodes")
        if outline.graphs > limits.graphs:
            raise _beyond("too_many_graphs", f"{limits.graphs} graphs")
        if depth > limits.depth or len(stack) >= MAX_OPEN:
            raise _beyond("too_deep", f"graphs {limits.depth} deep")
        stack.append(_Open(kind, start, end, depth))
    if graphs != 1:  # protobuf would merge two into one
        raise _not_onnx(f"expected one graph, found {graphs}")
    return outline


class _Open:
    """A message that is being walked."""

    __slots__ = ("depth", "domain", "end", "kind", "operator", "position")

    def __init__(self, kind: str, position: int, end: int, depth: int) -> None:
        self.kind = kind
        self.position = position
        self.end = end
        self.depth = depth
        self.operator = ""
        self.domain = ""


def _look(
    data: bytes, message: _Open, field: int, wire: int, start: int, end: int, limits: Limits
) -> None:
    """Take what is needed of a field that is no message."""
    if message.kind == NODE and field in (OP_TYPE, NODE_DOMAIN):
        text = _text(data, wire, start, end)
        if field == OP_TYPE:
            message.operator = text
        else:
            message.domain = text
    elif message.kind == OPSET and field == OPSET_DOMAIN and limits.imports:
        domain = _text(data, wire, start, end)
        if domain not in DECLARED:
            raise _foreign(domain)


def _check_operator(node: _Open, limits: Limits) -> None:
    if node.domain in STANDARD:
        return
    listed = {MICROSOFT: limits.microsoft, EXTENSIONS: limits.extensions}
    if node.operator not in listed.get(node.domain, ()):
        raise _foreign(node.domain, node.operator)


def _check_tensor(data: bytes, start: int, end: int, outline: Outline, limits: Limits) -> None:
    """Walk one tensor: its data must lie in it, and its claims within limits."""
    position, elements, name, outside = start, 1, "", False
    while position < end:
        field, wire, first, position = _field(data, position, end)
        outline.fields += 1
        if outline.fields > limits.fields:
            raise _beyond("too_many_fields", f"{limits.fields} fields")
        if field == NAME:
            name = _text(data, wire, first, position)
        elif field in (EXTERNAL_DATA, DATA_LOCATION):
            # 0 is DEFAULT, said aloud; a longer number is cut to 32 bits by some readers
            outside |= wire != VARINT or data[first:position].strip(b"\x80\0") != b""
        elif field == DIMS:
            for size in _dims(data, wire, first, position):
                if size > limits.elements and elements:
                    raise _too_large(name, size, limits)
                elements *= size
                if elements > limits.elements:
                    raise _too_large(name, elements, limits)
    if outside:
        raise RefusedError(
            f"expected one file; tensor {name[:80]!r} keeps its data in another. "
            "Save the model with save_as_external_data=False",
            "external_data",
        )


def _dims(data: bytes, wire: int, start: int, end: int) -> list[int]:
    if wire not in (VARINT, BYTES):
        raise _not_onnx("a dimension is no number")
    sizes: list[int] = []
    while start < end:  # one, or many behind each other
        size, start = _varint(data, start, end)
        sizes.append(size)
    return sizes


def _field(data: bytes, position: int, end: int) -> tuple[int, int, int, int]:
    """Return number, wire type, and where the content begins and ends."""
    tag, position = _varint(data, position, end)
    field, wire = tag >> 3, tag & 7
    if not 0 < field < 1 << 29:
        raise _not_onnx("a field has no number")
    start = position
    if wire == VARINT:
        _, position = _varint(data, position, end)
    elif wire == BYTES:
        length, start = _varint(data, position, end)
        position = start + length
    elif wire in (FIXED64, FIXED32):
        position += 8 if wire == FIXED64 else 4
    else:  # groups, which ONNX never had
        raise _not_onnx("a field is of no known type")
    if position > end:
        raise _not_onnx("the file is cut short")
    return field, wire, start, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _not_onnx("the file is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise _not_onnx("a number is too long")


def _text(data: bytes, wire: int, start: int, end: int) -> str:
    if wire != BYTES:
        raise _not_onnx("a name is no text")
    return data[start : min(end, start + 200)].decode("utf-8", "backslashreplace")


def _not_onnx(what: str) -> FormatError:
    return FormatError(f"expected an ONNX model: {what}; export the model again", "not_onnx")


def _beyond(code: str, limit: str) -> RefusedError:
    return RefusedError(f"expected a model of at most {limit}, got more", code)


def _too_large(name: str, elements: int, limits: Limits) -> RefusedError:
    return RefusedError(
        f"tensor {name[:80]!r} claims {elements} elements, more than {limits.elements}",
        "tensor_too_large",
    )


def _foreign(domain: str, operator: str = "") -> RefusedError:
    what = f"{operator[:80]} of domain" if operator else "domain"
    return RefusedError(
        f"expected operators of ai.onnx and ai.onnx.ml only, got {what} {domain[:80]!r}; "
        "export the model with standard operators",
        "foreign_domain",
    )
