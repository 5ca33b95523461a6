"""A model passes checked and in one piece, or not at all."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler import passes
from skerry.errors import FormatError, RefusedError
from skerry.onnx_outline import Limits
from tests.fakes.models import Task, graph, linear

W = np.eye(2, dtype=np.float32)


def load(path: Path, model: onnx.ModelProto | bytes) -> passes.Graph:
    file = path / "m.onnx"
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return passes.load_graph(file)


def test_a_good_model_keeps_its_bytes(tmp_path: Path) -> None:
    model = linear(W)
    loaded = load(tmp_path, model)
    assert loaded.data == model.SerializeToString()
    assert loaded.opset == 17
    assert [(s.name, s.datatype, s.shape) for s in loaded.inputs] == [("x", "FP32", [-1, 2])]
    assert [s.name for s in loaded.outputs] == ["y"]
    assert loaded.notes == ()


def test_an_old_opset_is_raised_and_answers_as_before(tmp_path: Path) -> None:
    model = linear(W, opset=11)
    loaded = load(tmp_path, model)
    assert loaded.opset == 17
    assert loaded.notes == ("opset 11 raised to 17",)
    x = {"x": np.array([[1, 2]], np.float32)}
    before, after = (
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, x)[0]
        for data in (model.SerializeToString(), loaded.data)
    )
    np.testing.assert_allclose(before, after, rtol=1e-6)


def test_a_model_beyond_the_size_limit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "IMPORT", Limits(size_bytes=100))
    with pytest.raises(RefusedError, match="at most 100 bytes"):
        load(tmp_path, linear(W))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello world", b"\x00" * 64, b"\xff" * 64, b"{}", b"\x08\x08", b"\x3a\xff\xff\xff\x7f"],
)
def test_other_bytes_are_no_model(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FormatError):
        load(tmp_path, data)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    data = linear(np.ones((50, 50))).SerializeToString()
    with pytest.raises((FormatError, RefusedError)):
        load(tmp_path, data[: int(len(data) * keep)])


def external(tensor: onnx.TensorProto) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")


def test_external_data_is_refused_in_a_weight(tmp_path: Path) -> None:
    model = linear(W)
    external(model.graph.initializer[0])
    with pytest.raises(RefusedError, match="keeps its data in another"):
        load(tmp_path, model)


def test_external_data_is_refused_in_a_branch_of_a_branch(tmp_path: Path) -> None:
    hidden = numpy_helper.from_array(W, "hidden")
    external(hidden)
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=hidden)],
        "inner", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 2])],
    )  # fmt: skip
    outer = helper.make_graph(
        [helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)],
        "outer", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 2])],
    )  # fmt: skip
    model = graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer)],
        {"c": np.array(True)},
    )
    with pytest.raises(RefusedError, match="'hidden' keeps its data in another"):
        load(tmp_path, model)


def test_a_foreign_domain_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("FusedGemm", ["x", "w"], ["y"], domain="com.microsoft")
    model = graph([node], {"w": W}, domains={"com.microsoft": 1})
    with pytest.raises(RefusedError, match=r"domain 'com\.microsoft'"):
        load(tmp_path, model)


def test_local_functions_are_refused(tmp_path: Path) -> None:
    model, relu = linear(W), helper.make_node("Relu", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("ai.onnx", "F", ["a"], ["b"], [relu], opsets)
    model.functions.append(function)
    with pytest.raises(RefusedError, match="local functions"):
        load(tmp_path, model)


def test_a_tensor_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    model = linear(W)
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    with pytest.raises(RefusedError, match="claims 1099511627776 elements"):
        load(tmp_path, model)


def test_graphs_too_deep_are_refused(tmp_path: Path) -> None:
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "leaf", [], [])
    for _ in range(passes.IMPORT.depth):
        node = helper.make_node("If", ["c"], ["y"], then_branch=body)
        body = helper.make_graph([node], "level", [], [])
    model = graph(list(body.node), {"c": np.array(True)})
    with pytest.raises(RefusedError, match="graphs 8 deep"):
        load(tmp_path, model)


def test_a_graph_that_the_checker_refuses_is_refused(tmp_path: Path) -> None:
    model = graph([helper.make_node("Relu", ["nowhere"], ["y"])], {})
    with pytest.raises(RefusedError, match="no valid ONNX"):
        load(tmp_path, model)


def test_an_input_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    model = linear(W)
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model.graph.input.append(sequence)
    with pytest.raises(RefusedError, match="'s' to be a tensor"):
        load(tmp_path, model)


def test_preparing_infers_shapes(shapes_task: Task, tmp_path: Path) -> None:
    prepared, how = passes.prepare(load(tmp_path, shapes_task.model))
    assert how.startswith("shape inference: ")
    assert len(prepared.graph.value_info) >= 5


def test_preparing_falls_back_where_symbolic_inference_fails(
    shapes_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = passes.quant_pre_process

    def fails(
        model: object, out: object, *, skip_optimization: bool, skip_symbolic_shape: bool
    ) -> None:
        if not skip_symbolic_shape:
            raise AssertionError
        real(model, out, skip_optimization=skip_optimization, skip_symbolic_shape=True)

    monkeypatch.setattr(passes, "quant_pre_process", fails)
    _, how = passes.prepare(load(tmp_path, shapes_task.model))
    assert how == "shape inference: plain, since symbolic failed (AssertionError)"
