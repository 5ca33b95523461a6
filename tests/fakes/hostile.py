"""Models that an attacker would hand in."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["EXTERNAL_PLACES", "endless", "external", "good", "huge_result", "wrapped"]

WEIGHT = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def good() -> onnx.ModelProto:
    """Scores [n, 3] of an image [n, 1, 4, 4]: nothing wrong with it."""
    return _classifier([helper.make_node("MatMul", ["flat", "weight"], ["scores"])])


def endless() -> onnx.ModelProto:
    """The same, after a loop of 2^62 rounds that changes nothing."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["state"], ["state_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_on", TensorProto.FLOAT, ["n", 3]),
        ],
    )
    return _classifier(
        [
            helper.make_node("MatMul", ["flat", "weight"], ["first"]),
            helper.make_node("Loop", ["rounds", "true", "first"], ["scores"], body=body),
        ],
        numpy_helper.from_array(np.array(1 << 62, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "true"),
    )


def huge_result() -> onnx.ModelProto:
    """The same, after it has filled 2^40 elements."""
    value = numpy_helper.from_array(np.array([0.5], np.float32))
    return _classifier(
        [
            helper.make_node("Shape", ["flat"], ["sizes"]),
            helper.make_node("ReduceMin", ["sizes"], ["one"], keepdims=1),
            helper.make_node("Mul", ["one", "many"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["filled"], value=value),
            helper.make_node("ReduceMax", ["filled"], ["most"], keepdims=0),
            helper.make_node("MatMul", ["flat", "weight"], ["first"]),
            helper.make_node("Add", ["first", "most"], ["scores"]),
        ],
        numpy_helper.from_array(np.array([1 << 40], np.int64), "many"),
    )


def external(location: str) -> onnx.ModelProto:
    """The good one, its weight in another file."""
    model = good()
    _outside(model.graph.initializer[0], location)
    return model


def _in_a_branch(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    node = helper.make_node("Constant", [], ["o"], value=tensor)
    inner = helper.make_graph([node], "i", [], [])
    model.graph.node.append(helper.make_node("If", ["true"], ["o"], then_branch=inner))


def _in_a_list(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("list", [tensor]))


def _in_a_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.add(values=tensor)


def _in_training(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.training_info.add().initialization.initializer.append(tensor)


EXTERNAL_PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], None]] = {
    "initializer": lambda model, tensor: model.graph.initializer.append(tensor),
    "attribute": lambda model, tensor: model.graph.node[0].attribute.append(
        helper.make_attribute("value", tensor)
    ),
    "list of an attribute": _in_a_list,
    "branch": _in_a_branch,
    "sparse initializer": _in_a_sparse,
    "training graph": _in_training,
}


def wrapped(place: str) -> onnx.ModelProto:
    """The good one with a tensor in another file, hidden in some place."""
    model, tensor = good(), numpy_helper.from_array(WEIGHT, "hidden")
    _outside(tensor, "weights.bin")
    EXTERNAL_PLACES[place](model, tensor)
    return model


def _outside(tensor: onnx.TensorProto, location: str) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(WEIGHT.nbytes))
    tensor.ClearField("raw_data")


def write_weights(path: Path) -> None:
    """Write what `external` refers to."""
    path.write_bytes(WEIGHT.tobytes())


def _classifier(nodes: list[onnx.NodeProto], *constants: onnx.TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"], axis=1), *nodes],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(WEIGHT, "weight"), *constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
