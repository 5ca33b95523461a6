"""Small models that really classify, and recipes for them, made without training.

`shapes` are images of four kinds that a random convolution with a fitted last layer
tells apart: int8 keeps its accuracy and is faster. `scales` are two numbers of which
the small one decides and the large one spoils every 8-bit range: int8 fails.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 16
KINDS = 4


@dataclass(frozen=True)
class Task:
    """A model with data for it; the data sets have no row in common."""

    model: onnx.ModelProto
    input: str
    output: str
    sets: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]]


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    *,
    inputs: Sequence[tuple[str, Sequence[int | str]]] = (("x", ("n", 2)),),
    outputs: Sequence[tuple[str, Sequence[int | str]]] = (("y", ("n", 2)),),
    opset: int = 17,
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of float tensors."""
    model = helper.make_model(
        helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in outputs],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[
            helper.make_opsetid("", opset),
            *(helper.make_opsetid(d, v) for d, v in (domains or {}).items()),
        ],
    )
    model.ir_version = 8
    return model


def linear(weights: NDArray[Any], opset: int = 17) -> onnx.ModelProto:
    """`y = x @ weights`, then softmax."""
    rows, columns = weights.shape
    return graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"], name="product"),
            helper.make_node("Softmax", ["z"], ["y"], name="softmax", axis=1),
        ],
        {"w": weights.astype(np.float32)},
        inputs=[("x", ("n", rows))],
        outputs=[("y", ("n", columns))],
        opset=opset,
    )


def shapes(channels: int = 32) -> Task:
    """Images float32 [n, 1, 16, 16] of stripes and blobs, and a small convolutional network."""
    rng = np.random.default_rng(3)
    sets = {name: _images(rng, n) for name, n in SIZES.items()}
    first = rng.normal(0, 0.4, (channels, 1, 3, 3)).astype(np.float32)
    second = rng.normal(0, 0.08, (channels, channels, 3, 3)).astype(np.float32)
    flat = channels * (SIDE // 4) ** 2
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], name="c1", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], name="r1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="c2", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"], name="r2"),
        helper.make_node("MaxPool", ["d"], ["e"], name="p", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["e"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "w3"], ["g"], name="last"),
        helper.make_node("Softmax", ["g"], ["y"], name="s", axis=1),
    ]
    shape = ("n", 1, SIDE, SIDE)
    body = graph(
        nodes[:6], {"w1": first, "w2": second},
        inputs=[("image", shape)], outputs=[("f", ("n", flat))],
    )  # fmt: skip
    rows, labels = sets["calibration"]
    features = ort.InferenceSession(
        body.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"image": rows})[0]
    # ridge regression on the features: a last layer as good as training would make it
    gram = features.T @ features + 10 * np.eye(flat)
    last = np.linalg.solve(gram, features.T @ (8 * np.eye(KINDS)[labels] - 2))
    model = graph(
        nodes, {"w1": first, "w2": second, "w3": last.astype(np.float32)},
        inputs=[("image", shape)], outputs=[("y", ("n", KINDS))],
    )  # fmt: skip
    return Task(model, "image", "y", sets)


def scales() -> Task:
    """Rows float32 [n, 2] whose large number hides the small one from 8 bits."""
    rng = np.random.default_rng(4)
    sets = {}
    for name, n in SIZES.items():
        small, large = rng.uniform(-1, 1, n), rng.uniform(0, 10_000, n)
        rows = np.stack([small, large], axis=1).astype(np.float32)
        sets[name] = (rows, (small > 0).astype(np.int64))
    return Task(linear(np.array([[-4.0, 4.0], [0.0, 0.0]])), "x", "y", sets)


SIZES = {"calibration": 160, "evaluation": 240, "baseline": 160}

RECIPE = """\
[model]
name = "{name}"
version = "{version}"
file = "model.onnx"
description = "Tells four kinds of shapes apart"

[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
baseline = "baseline.npz"
input = "{input}"
label = "label"

[metric]
name = "accuracy"
output = "{output}"

[gate]
max_drop = {max_drop}
min_value = {min_value}
max_latency_ratio = {max_latency_ratio}

[precisions]
try = ["int8"]

[features]
{features}

[lineage]
data = "made up"
run = "seed 3"

[card]
text = "For tests."
"""


def write_recipe(
    folder: Path,
    task: Task,
    *,
    name: str = "shapes",
    version: str = "1.0.0",
    max_drop: float = 0.02,
    min_value: float = 0.5,
    max_latency_ratio: float = 100.0,
    features: str = 'level = "mean"',
) -> Path:
    """Write a task's files and a recipe for them; by default int8 passes on any machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(task.model.SerializeToString(deterministic=True))
    for set_name, (rows, labels) in task.sets.items():
        np.savez(folder / f"{set_name}.npz", **{task.input: rows, "label": labels})
    path = folder / "recipe.toml"
    path.write_text(
        RECIPE.format(
            name=name, version=version, input=task.input, output=task.output, max_drop=max_drop,
            min_value=min_value, max_latency_ratio=max_latency_ratio, features=features,
        )
    )  # fmt: skip
    return path


def _images(rng: np.random.Generator, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    labels = rng.integers(0, KINDS, n)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    phase = rng.uniform(0, 6, (n, 1, 1))
    patterns = np.stack(
        [
            np.sin(x + phase),
            np.sin(y + phase),
            np.sin(x + y + phase),
            np.exp(-((x - 8) ** 2 + (y - 8) ** 2) / 20) + 0 * phase,
        ]
    )
    images = patterns[labels, np.arange(n)] + rng.normal(0, 0.3, (n, SIDE, SIDE))
    return np.clip(images * 0.25 + 0.5, 0, 1).astype(np.float32)[:, None], labels.astype(np.int64)
