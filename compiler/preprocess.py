"""Preprocessing as a part of the graph, so that a device does what training did.

Plain ONNX operators alone, which every onnxruntime has: a photo is resized, scaled and ordered,
numbers are scaled, sound becomes a log-mel spectrogram. The model then takes what the camera
or the microphone gives.

Sources: ONNX Resize-13 (linear, half_pixel), STFT-17; mel scale of Slaney 1998 with triangles
of equal area, as in common audio libraries.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.nodes import Nodes
from compiler.recipe import Preprocess
from skerry.errors import UsageError

__all__ = ["build_step", "mel_filters", "put_before"]

LOG_FLOOR: Final = 1e-10


def put_before(model: onnx.ModelProto, steps: Mapping[str, Preprocess]) -> list[str]:
    """Put steps before inputs of a model, in place; return what was done, in words.

    Raises:
        UsageError: an input that the model does not have, or steps that do not fit it.
    """
    done = []
    for name, wanted in sorted(steps.items()):
        if wanted.kind == "tokenizer":
            continue  # `compiler.texts`
        value = next((v for v in model.graph.input if v.name == name), None)
        if value is None:
            have = ", ".join(v.name for v in model.graph.input)
            raise UsageError(f"preprocess.{name}: the model has no such input; it has {have}")
        prepared = f"{name}__prepared"
        for node in model.graph.node:
            node.input[:] = [prepared if n == name else n for n in node.input]
        raw, graph = build_step(name, prepared, wanted, _shape(value))
        value.CopyFrom(raw)
        nodes = [*graph.nodes, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(graph.weights)
        done.append(f"input {name}: {wanted.kind} steps are a part of the model")
    return done


def build_step(
    name: str, output: str, steps: Preprocess, wanted: list[int]
) -> tuple[onnx.ValueInfoProto, Nodes]:
    """Return the raw input and the nodes that prepare it.

    Args:
        name: of the raw input.
        output: of the prepared tensor.
        steps: of the recipe.
        wanted: the shape that the model takes, -1 where it is open.

    Raises:
        UsageError: the steps give another shape.
    """
    graph = Nodes(name)
    if steps.kind == "image":
        return _image(graph, output, steps, wanted), graph
    if steps.kind == "mel":
        return _mel(graph, output, steps, wanted), graph
    scaled = graph.node("Mul", [name, graph.weight(steps.scale, np.float32)])
    _normalise(graph, scaled, output, steps, (len(steps.mean),) if len(steps.mean) > 1 else ())
    raw = helper.make_tensor_value_info(name, TensorProto.FLOAT, _dims(wanted))
    return raw, graph


def _image(graph: Nodes, output: str, steps: Preprocess, wanted: list[int]) -> onnx.ValueInfoProto:
    channels_first = steps.layout == "nchw"
    if len(wanted) != 4:
        raise UsageError(
            f"preprocess.{graph.name}: expected a model that takes images of four axes, it takes "
            f"{wanted}"
        )
    channels = wanted[1] if channels_first else wanted[3]
    sides = wanted[2:] if channels_first else wanted[1:3]
    if channels < 1 or any(
        have not in (-1, want) for have, want in zip(sides, steps.size, strict=True)
    ):
        raise UsageError(
            f"preprocess.{graph.name}: the steps give {steps.size} in {steps.layout}, the model "
            f"takes {wanted}"
        )
    value = graph.node("Cast", [graph.name], to=TensorProto.FLOAT)
    value = graph.node("Transpose", [value], perm=[0, 3, 1, 2])
    # the sizes of batch and channels are the input's own
    shape = graph.node("Shape", [value])
    head = graph.node("Slice", [shape, graph.weight([0], np.int64), graph.weight([2], np.int64)])
    target = graph.node("Concat", [head, graph.weight(steps.size, np.int64)], axis=0)
    value = graph.node(
        "Resize", [value, "", "", target], mode="linear",
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    if steps.order == "bgr":
        value = graph.node("Gather", [value, graph.weight([2, 1, 0], np.int64)], axis=1)
    value = graph.node("Mul", [value, graph.weight(steps.scale, np.float32)])
    last = f"{output}__nchw" if not channels_first else output
    _normalise(graph, value, last, steps, (len(steps.mean), 1, 1))
    if not channels_first:
        graph.node("Transpose", [last], output, perm=[0, 2, 3, 1])
    return helper.make_tensor_value_info(
        graph.name, TensorProto.UINT8, ["n", "height", "width", channels]
    )


def _normalise(
    graph: Nodes, value: str, output: str, steps: Preprocess, shape: tuple[int, ...]
) -> None:
    mean = np.asarray(steps.mean, np.float32).reshape(shape)
    factor = (1 / np.asarray(steps.std, np.float64)).astype(np.float32).reshape(shape)
    centred = graph.node("Sub", [value, graph.weight(mean, np.float32)])
    graph.node("Mul", [centred, graph.weight(factor, np.float32)], output)


def _mel(graph: Nodes, output: str, steps: Preprocess, wanted: list[int]) -> onnx.ValueInfoProto:
    if len(wanted) != 3 or wanted[1] not in (-1, steps.mels):
        raise UsageError(
            f"preprocess.{graph.name}: the steps give [n, {steps.mels}, frames], the model takes "
            f"{wanted}"
        )
    window = np.hanning(steps.window + 1)[:-1]  # periodic, as for a spectrum
    sound = graph.node("Unsqueeze", [graph.name, graph.weight([2], np.int64)])
    spectrum = graph.node(
        "STFT",
        [sound, graph.weight(steps.hop, np.int64), graph.weight(window, np.float32)],
        onesided=1,
    )  # [n, frames, bins, 2]
    power = graph.node("ReduceSumSquare", [spectrum], axes=[3], keepdims=0)
    filters = mel_filters(steps)
    mels = graph.node("MatMul", [power, graph.weight(filters, np.float32)])
    floor = graph.node("Max", [mels, graph.weight(LOG_FLOOR, np.float32)])
    logs = graph.node("Mul", [
        graph.node("Log", [floor]), graph.weight(10 / np.log(10), np.float32)
    ])  # fmt: skip
    turned = graph.node("Transpose", [logs], perm=[0, 2, 1])
    scaled = graph.node("Mul", [turned, graph.weight(steps.scale, np.float32)])
    _normalise(graph, scaled, output, steps, (len(steps.mean), 1) if len(steps.mean) > 1 else ())
    return helper.make_tensor_value_info(graph.name, TensorProto.FLOAT, ["n", "samples"])


def mel_filters(steps: Preprocess) -> NDArray[np.float64]:
    """Return triangular filters of equal area on the mel scale, float64 [bins, mels]."""
    bins = np.arange(steps.window // 2 + 1) * steps.rate / steps.window
    high = steps.high_hz or steps.rate / 2
    edges = _to_hz(np.linspace(_to_mel(steps.low_hz), _to_mel(high), steps.mels + 2))
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (edges[2:] - edges[:-2])))


def _to_mel(hz: float) -> float:
    """Return the mel of a frequency: linear to 1 kHz, logarithmic above."""
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * float(np.log(hz / 1000) / np.log(6.4))


def _to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in dims]


def _dims(shape: list[int]) -> list[int | str]:
    return [f"d{place}" if size < 0 else size for place, size in enumerate(shape)]
