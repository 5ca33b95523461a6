"""int8 keeps to seven bits, leaves the tail in float, and has the same bytes every time."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from compiler.calibrate import calibrate
from compiler.ports import Port, Ports
from compiler.quantize import Ranges, quantize_dynamic, quantize_static
from compiler.runtime import open_session
from skerry.errors import RefusedError
from tests.fakes.models import Task, graph

PORTS = Ports((Port("image", "image", np.dtype(np.float32), (-1, 1, 16, 16)),))


@pytest.fixture(scope="module")
def model(shapes_task: Task) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(shapes_task.model)


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto, shapes_task: Task) -> Ranges:
    return calibrate(model, PORTS, {"image": shapes_task.sets["calibration"][0]})


def test_ranges_are_the_extremes_of_every_tensor(ranges: Ranges, shapes_task: Task) -> None:
    rows = shapes_task.sets["calibration"][0]
    assert ranges["image"] == (float(rows.min()), float(rows.max()))
    assert {"a", "b", "c", "d", "e", "f", "g"} <= set(ranges)
    assert ranges["b"][0] == 0.0  # after a Relu


def test_weights_keep_to_seven_bits_so_that_no_cpu_saturates(
    model: onnx.ModelProto, ranges: Ranges
) -> None:
    done = onnx.load_model_from_string(quantize_static(model, ranges))
    weights = [
        numpy_helper.to_array(t)
        for t in done.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(weights) == 3
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64


def test_scales_are_per_channel(model: onnx.ModelProto, ranges: Ranges) -> None:
    done = onnx.load_model_from_string(quantize_static(model, ranges))
    scale = next(t for t in done.graph.initializer if t.name.startswith("w2_scale"))
    assert list(scale.dims) == [32]


def test_softmax_stays_in_float(model: onnx.ModelProto, ranges: Ranges) -> None:
    done = onnx.load_model_from_string(quantize_static(model, ranges))
    assert done.graph.node[-1].op_type == "Softmax"


def test_the_same_model_and_ranges_give_the_same_bytes(
    model: onnx.ModelProto, ranges: Ranges, shapes_task: Task
) -> None:
    again = calibrate(model, PORTS, {"image": shapes_task.sets["calibration"][0]})
    assert again == ranges
    assert list(again) == sorted(again)
    assert quantize_static(model, again) == quantize_static(model, ranges)


def test_the_model_given_is_left_as_it_was(model: onnx.ModelProto, ranges: Ranges) -> None:
    before = model.SerializeToString(deterministic=True)
    quantize_static(model, ranges)
    assert model.SerializeToString(deterministic=True) == before


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    model = graph([helper.make_node("Softmax", ["x"], ["y"], axis=1)], {})
    with pytest.raises(RefusedError, match="nothing in the model"):
        quantize_static(model, {"x": (0.0, 1.0), "y": (0.0, 1.0)})


def test_values_that_are_not_finite_are_refused() -> None:
    nodes = [
        helper.make_node("Log", ["x"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"], name="m"),
    ]
    model = onnx.shape_inference.infer_shapes(graph(nodes, {"w": np.eye(2, dtype=np.float32)}))
    ports = Ports((Port("x", "x", np.dtype(np.float32), (-1, 2)),))
    with pytest.raises(RefusedError, match="not finite"):
        calibrate(model, ports, {"x": np.zeros((4, 2), np.float32)})


def test_the_int8_model_is_valid_and_runs(
    model: onnx.ModelProto, ranges: Ranges, shapes_task: Task
) -> None:
    data = quantize_static(model, ranges)
    onnx.checker.check_model(onnx.load_model_from_string(data))
    session: ort.InferenceSession = open_session(data)
    rows, labels = shapes_task.sets["evaluation"]
    answer = session.run(None, {"image": rows})[0]
    assert (answer.argmax(axis=1) == labels).mean() > 0.95


def test_unsigned_weights_keep_eight_bits(model: onnx.ModelProto, ranges: Ranges) -> None:
    done = onnx.load_model_from_string(quantize_static(model, ranges, unsigned=True))
    weights = [
        numpy_helper.to_array(t)
        for t in done.graph.initializer
        if t.data_type == onnx.TensorProto.UINT8 and len(t.dims) > 1
    ]
    assert len(weights) == 3
    assert max(int(w.max()) for w in weights) > 200


def test_layers_are_left_in_float_by_name(model: onnx.ModelProto, ranges: Ranges) -> None:
    whole = onnx.load_model_from_string(quantize_static(model, ranges))
    part = onnx.load_model_from_string(quantize_static(model, ranges, leave=("c1", "r1")))
    kept = {t.name for t in part.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert "w1" in kept
    assert "w1" not in {
        t.name for t in whole.graph.initializer if t.data_type == onnx.TensorProto.FLOAT
    }


def test_dynamic_takes_products_with_constant_weights_alone(shapes_task: Task) -> None:
    done = onnx.load_model_from_string(quantize_dynamic(shapes_task.model))
    kinds = [node.op_type for node in done.graph.node]
    assert kinds.count("Conv") == 2  # as they were
    assert "MatMulInteger" in kinds
    weights = [
        numpy_helper.to_array(t)
        for t in done.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64
    onnx.checker.check_model(done)
    rows, labels = shapes_task.sets["evaluation"]
    answer = open_session(done.SerializeToString()).run(None, {"image": rows})[0]
    assert (answer.argmax(axis=1) == labels).mean() > 0.95
    nothing = graph([helper.make_node("Softmax", ["x"], ["y"], axis=1)], {})
    with pytest.raises(RefusedError, match="nothing in the model"):
        quantize_dynamic(nothing)


@pytest.mark.parametrize(("per_tensor", "glue"), [(True, True), (False, False)])
def test_coarser_forms_keep_to_seven_bits_too(
    model: onnx.ModelProto, ranges: Ranges, per_tensor: bool, glue: bool
) -> None:
    done = onnx.load_model_from_string(
        quantize_static(model, ranges, per_tensor=per_tensor, glue=glue)
    )
    onnx.checker.check_model(done)
    weights = [
        numpy_helper.to_array(t).astype(int)
        for t in done.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and t.dims
    ]
    assert max(int(np.abs(weight).max()) for weight in weights) <= 64
    scales = {
        t.name: numpy_helper.to_array(t)
        for t in done.graph.initializer
        if t.name.endswith("_scale")
    }
    kinds = [node.op_type for node in done.graph.node]
    if per_tensor:
        assert all(scale.size == 1 for scale in scales.values())
    if not glue:
        finer = onnx.load_model_from_string(quantize_static(model, ranges))
        assert kinds.count("QuantizeLinear") <= [n.op_type for n in finer.graph.node].count(
            "QuantizeLinear"
        )
