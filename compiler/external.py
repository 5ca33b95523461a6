"""Tensors that an exporter put beside the model, folded into the one file that ships.

A model may name any path for its tensors, so none is followed: only the one file that
the recipe's author names (`model.external_data`), beside the model, plain, no link, and
with no other name. Everything else is refused as before.
"""

import os
import stat
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs

from skerry.errors import FormatError, NotFoundError, RefusedError

__all__ = ["fold_external"]

MAX_BYTES: Final = 1 << 30


def fold_external(data: bytes, folder: Path, name: str) -> bytes:
    """Return the model with its tensors inside.

    Args:
        data: of the model file.
        folder: where it lies.
        name: of the file beside it.

    Raises:
        FormatError: not an ONNX model, or a tensor that is not where it says.
        NotFoundError: there is no such file.
        RefusedError: code ``external_data``: another file is named, or this is no plain one.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise RefusedError(
            f"expected model.external_data to be the name of a file beside the model, got {name!r}",
            "external_data",
        )
    kept = _read(folder / name)
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise FormatError(f"expected an ONNX model: {error}; export the model again") from None
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        if said.get("location") != name:
            raise RefusedError(
                f"tensor {tensor.name[:80]!r} lies in {said.get('location', '')[:200]!r}; "
                f"the recipe names {name!r} alone",
                "external_data",
            )
        try:
            start = int(said.get("offset", 0))
            length = int(said.get("length", len(kept) - start))
        except ValueError:
            start = length = -1
        if start < 0 or length < 0 or start + length > len(kept):
            raise FormatError(
                f"tensor {tensor.name[:80]!r} is not in {name}: {length} bytes from {start} on, of "
                f"{len(kept)}; export the model again, with both files"
            )
        tensor.raw_data = kept[start : start + length]
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(
            f"model.external_data names {path.name!r}, and there is no file {path}"
        ) from None
    except OSError as error:
        raise RefusedError(
            f"expected {path} to be a plain file: {error.strerror}", "external_data"
        ) from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(handle)
        raise RefusedError(
            f"expected {path} to be a plain file with one name, it is not", "external_data"
        )
    with os.fdopen(handle, "rb") as file:
        if facts.st_size > MAX_BYTES:
            raise RefusedError(
                f"expected tensors of at most {MAX_BYTES} bytes, got {facts.st_size}",
                "model_too_large",
            )
        return file.read(MAX_BYTES + 1)


def _tensors(graph: onnx.GraphProto) -> list[Any]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
            if attribute.HasField("g"):
                found += _tensors(attribute.g)
            for inner in attribute.graphs:
                found += _tensors(inner)
    return found
