"""int8 keeps to seven bits, leaves the tail in float, and has the same bytes every time."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from compiler.calibrate import Ranges, calibrate
from compiler.quantize import quantize
from compiler.runtime import Port, open_session
from skerry.errors import RefusedError
from tests.fakes.models import Task, graph

PORT = Port("image", np.empty(0, np.float32), (-1, 1, 16, 16))


@pytest.fixture(scope="module")
def model(shapes_task: Task) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(shapes_task.model)


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto, shapes_task: Task) -> Ranges:
    return calibrate(model, PORT, shapes_task.sets["calibration"][0])


def test_ranges_are_the_extremes_of_every_tensor(ranges: Ranges, shapes_task: Task) -> None:
    rows = shapes_task.sets["calibration"][0]
    assert ranges["image"] == (float(rows.min()), float(rows.max()))
    assert {"a", "b", "c", "d", "e", "f", "g"} <= set(ranges)
    assert ranges["b"][0] == 0.0  # after a Relu


def test_weights_keep_to_seven_bits_so_that_no_cpu_saturates(
    model: onnx.ModelProto, ranges: Ranges
) -> None:
    done = onnx.load_model_from_string(quantize(model, ranges))
    weights = [
        numpy_helper.to_array(t)
        for t in done.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(weights) == 3
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64


def test_scales_are_per_channel(model: onnx.ModelProto, ranges: Ranges) -> None:
    done = onnx.load_model_from_string(quantize(model, ranges))
    scale = next(t for t in done.graph.initializer if t.name.startswith("w2_scale"))
    assert list(scale.dims) == [32]


def test_softmax_stays_in_float(model: onnx.ModelProto, ranges: Ranges) -> None:
    done = onnx.load_model_from_string(quantize(model, ranges))
    assert done.graph.node[-1].op_type == "Softmax"


def test_the_same_model_and_ranges_give_the_same_bytes(
    model: onnx.ModelProto, ranges: Ranges, shapes_task: Task
) -> None:
    again = calibrate(model, PORT, shapes_task.sets["calibration"][0])
    assert again == ranges
    assert list(again) == sorted(again)
    assert quantize(model, again) == quantize(model, ranges)


def test_the_model_given_is_left_as_it_was(model: onnx.ModelProto, ranges: Ranges) -> None:
    before = model.SerializeToString(deterministic=True)
    quantize(model, ranges)
    assert model.SerializeToString(deterministic=True) == before


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    model = graph([helper.make_node("Softmax", ["x"], ["y"], axis=1)], {})
    with pytest.raises(RefusedError, match="nothing in the model"):
        quantize(model, {"x": (0.0, 1.0), "y": (0.0, 1.0)})


def test_values_that_are_not_finite_are_refused() -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"], name="m"),
    ]
    model = onnx.shape_inference.infer_shapes(graph(nodes, {"w": np.eye(2, dtype=np.float32)}))
    with pytest.raises(RefusedError, match="not finite"):
        calibrate(model, Port("x", np.empty(0, np.float32), (-1, 2)), np.zeros((4, 2), np.float32))


def test_the_int8_model_is_valid_and_runs(
    model: onnx.ModelProto, ranges: Ranges, shapes_task: Task
) -> None:
    data = quantize(model, ranges)
    onnx.checker.check_model(onnx.load_model_from_string(data))
    session: ort.InferenceSession = open_session(data)
    rows, labels = shapes_task.sets["evaluation"]
    answer = session.run(None, {"image": rows})[0]
    assert (answer.argmax(axis=1) == labels).mean() > 0.95
