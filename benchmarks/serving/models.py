"""The two models that every server answers with, and the release in which the agent serves them.

    table   20 features, layers of 64 and 32, two classes: a tabular classifier as skl2onnx writes it
    cnn     32 x 32 pixels, three convolutions of 88, 176 and 320: some 0.6 ms of CPU

Weights are random and seeded: what a prediction costs does not depend on them.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from skerry.counting import count_categorical, quantile_spec
from skerry.features import extractor
from skerry.manifest import (
    Baseline,
    BaselineColumn,
    FeatureSpec,
    Golden,
    PredictionSpec,
    TensorSpec,
)
from skerry.reading import read_predictions
from skerry.sketch import CategoricalSpec, NumericCounts, NumericSpec
from tests.fakes.serving import Release, numeric, write_release

__all__ = ["MODELS", "Case", "make_models"]

TABLE_FEATURES = tuple(f"column.{place}" for place in range(20))
CNN_FEATURES = ("image.brightness", "image.contrast", "image.sharpness")
BASELINE_ROWS = 1_000
MODELS = ("table", "cnn")


@dataclass(frozen=True)
class Case:
    """A model, one input to ask with, and its release."""

    name: str
    file: Path
    input: str
    output: str
    row: NDArray[np.float32]  # [1, ...]
    release: Release

    def about(self) -> dict[str, object]:
        """What a server's program is told of it."""
        return {
            "file": str(self.file),
            "input": self.input,
            "output": self.output,
            "shape": list(self.row.shape),
        }


def make_models(folder: Path) -> dict[str, Case]:
    """Write both models, their releases, and `models.json` for the other servers."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "table": _case(folder, "table", table_model(), "row", (20,), TABLE_FEATURES),
        "cnn": _case(folder, "cnn", cnn_model(), "image", (1, 32, 32), CNN_FEATURES),
    }
    (folder / "models.json").write_text(json.dumps({n: c.about() for n, c in made.items()}))
    return made


def table_model() -> bytes:
    """Label [n] and probabilities [n, 2] of rows [n, 20], node by node as skl2onnx writes them."""
    rng = np.random.default_rng(5)
    sizes = (20, 64, 32, 1)
    scale = {"offset": [0.5] * sizes[0], "scale": [3.4] * sizes[0]}
    nodes = [
        helper.make_node("Scaler", ["row"], ["scaled"], domain="ai.onnx.ml", **scale),
        helper.make_node("Cast", ["scaled"], ["out"], to=TensorProto.FLOAT),
    ]
    weights = [
        numpy_helper.from_array(np.array([0, 1], np.int64), "classes"),
        numpy_helper.from_array(np.array([-1], np.int64), "flat"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    for i, (wide, narrow) in enumerate(pairwise(sizes)):
        weights += [_weight(rng, f"w{i}", (wide, narrow)), _weight(rng, f"b{i}", (narrow,))]
        nodes += [
            helper.make_node("MatMul", ["out" if i == 0 else f"out{i}", f"w{i}"], [f"product{i}"]),
            helper.make_node("Add", [f"product{i}", f"b{i}"], [f"sum{i}"]),
            helper.make_node("Sigmoid" if narrow == 1 else "Relu", [f"sum{i}"], [f"out{i + 1}"]),
        ]
    nodes += [
        helper.make_node("Sub", ["one", "out3"], ["other"]),
        helper.make_node("Concat", ["other", "out3"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=1),
        helper.make_node(
            "ArrayFeatureExtractor", ["classes", "best"], ["taken"], domain="ai.onnx.ml"
        ),
        helper.make_node("Cast", ["taken"], ["cast"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["cast", "flat"], ["label"]),
    ]
    return _save(nodes, weights, "row", (20,), 2, label=True)


def cnn_model() -> bytes:
    """Probabilities [n, 10] of images [n, 1, 32, 32]."""
    rng = np.random.default_rng(6)
    nodes, weights, at, channels = [], [], "image", 1
    for i, width in enumerate((88, 176, 320)):
        weights += [_weight(rng, f"w{i}", (width, channels, 3, 3)), _weight(rng, f"b{i}", (width,))]
        nodes += [
            helper.make_node("Conv", [at, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
            helper.make_node("MaxPool", [f"r{i}"], [f"p{i}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        at, channels = f"p{i}", width
    weights += [_weight(rng, "w", (320, 10)), _weight(rng, "b", (10,))]
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w", "b"], ["sums"]),
        helper.make_node("Softmax", ["sums"], ["scores"], axis=1),
    ]
    return _save(nodes, weights, "image", (1, 32, 32), 10)


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    scale = 1.0 / np.sqrt(max(1, np.prod(shape[1:] if len(shape) > 2 else shape[:1])))
    return numpy_helper.from_array((rng.normal(size=shape) * scale).astype(np.float32), name)


def _save(
    nodes, weights, name: str, shape: tuple[int, ...], classes: int, *, label: bool = False
) -> bytes:
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes])
    labels = [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])] if label else []
    graph = helper.make_graph(
        nodes,
        "measured",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])],
        [*labels, scores],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _case(
    folder: Path, name: str, data: bytes, port: str, shape: tuple[int, ...], kinds: tuple[str, ...]
) -> Case:
    rows = np.random.default_rng(7).random((BASELINE_ROWS, *shape), dtype=np.float32)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    scores = np.concatenate(
        [session.run(["scores"], {port: rows[i : i + 100]})[0] for i in range(0, len(rows), 100)]
    )
    names = [str(i) for i in range(scores.shape[1])]
    classes, confidence = read_predictions(scores, "argmax")
    spec = CategoricalSpec(names)
    latency = NumericSpec(quantile_spec(np.geomspace(1, 1e6, 1000)).edges, scale=1)
    columns = {kind: numeric(extractor(kind)(rows)) for kind in kinds}
    columns |= {
        "prediction": BaselineColumn(spec, count_categorical(classes, spec)),
        "confidence": numeric(confidence),
        "latency_us": BaselineColumn(
            latency, NumericCounts(n=0, bins=[0] * (len(latency.edges) - 1))
        ),
    }
    release = write_release(
        folder / name,
        data,
        model=name,
        version="1.0.0",
        inputs=[TensorSpec(port, "FP32", [-1, *shape])],
        outputs=[TensorSpec("scores", "FP32", [-1, len(names)], class_names=names)],
        prediction=PredictionSpec("scores", "argmax"),
        features=[FeatureSpec(kind, kind, port) for kind in kinds],
        baseline=Baseline(columns, n=len(rows)),
        golden=Golden([], [], 0.0, 0.0),
    )
    file = folder / f"{name}.onnx"
    file.write_bytes(data)
    return Case(name, file, port, "scores", rows[:1], release)
