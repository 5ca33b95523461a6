"""Packed weights cost fewer bytes, and run as the floats that they stand for."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.pack import pack_weights
from compiler.runtime import open_session
from skerry.errors import RefusedError
from skerry.onnx_outline import DEVICE, check_outline
from tests.fakes.models import Task, graph

RNG = np.random.default_rng(9)


@pytest.mark.parametrize(
    ("bits", "size", "error"), [(16, 0.52, 1e-3), (8, 0.29, 0.02), (4, 0.19, 0.3)]
)
def test_a_form_is_small_near_and_runs_on_devices(
    shapes_task: Task, bits: int, size: float, error: float
) -> None:
    given = shapes_task.model.SerializeToString(deterministic=True)
    packed = pack_weights(given, bits)
    assert len(packed) < size * len(given)
    onnx.checker.check_model(onnx.load_model_from_string(packed))
    check_outline(packed, DEVICE)
    rows, labels = shapes_task.sets["evaluation"]
    mine, theirs = (open_session(d).run(None, {"image": rows})[0] for d in (packed, given))
    assert 0 < np.abs(mine - theirs).max() < error
    assert (mine.argmax(axis=1) == labels).mean() > 0.95


def test_what_runs_is_plain_float(shapes_task: Task) -> None:
    for bits in (16, 8, 4):
        session = open_session(pack_weights(shapes_task.model.SerializeToString(), bits))
        again = open_session(pack_weights(shapes_task.model.SerializeToString(), bits))
        rows = shapes_task.sets["evaluation"][0][:4]
        first, second = (s.run(None, {"image": rows})[0] for s in (session, again))
        assert first.tolist() == second.tolist()


def one(weight: np.ndarray, kind: str = "MatMul", **attributes: int) -> bytes:
    nodes = [helper.make_node(kind, ["x", "w"], ["y"], name="n", **attributes)]
    n, k = weight.shape if not attributes.get("transB") else weight.shape[::-1]
    model = graph(
        nodes, {"w": weight.astype(np.float32)},
        inputs=[("x", ("n", n))], outputs=[("y", ("n", k))],
    )  # fmt: skip
    return bytes(model.SerializeToString(deterministic=True))


@pytest.mark.parametrize(("kind", "attributes"), [("MatMul", {}), ("Gemm", {"transB": 1})])
def test_scales_follow_the_output_channels(kind: str, attributes: dict[str, int]) -> None:
    # one channel is a thousand times the others: with one scale for all they would be nothing
    weight = RNG.normal(size=(64, 32))
    weight[:, 0] *= 1000
    given = weight.T if attributes else weight
    packed = pack_weights(one(given, kind, **attributes), 8)
    x = RNG.normal(size=(16, 64)).astype(np.float32)
    got = open_session(packed).run(None, {"x": x})[0]
    error = np.abs(got - x @ weight) / np.abs(weight).max(axis=0)
    assert error.max() < 0.2


def test_eight_bits_use_the_whole_range() -> None:
    packed = onnx.load_model_from_string(pack_weights(one(RNG.normal(size=(64, 32))), 8))
    whole = next(t for t in packed.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    values = numpy_helper.to_array(whole)
    assert (values.min(), values.max()) == (-127, 127) or np.abs(values).max() == 127


def test_a_value_that_float16_cannot_hold_stays_as_it_is() -> None:
    with pytest.raises(RefusedError, match="no weight has 1024 values or more"):
        pack_weights(one(np.full((64, 32), 1e6)), 16)


def test_small_weights_are_not_worth_it() -> None:
    with pytest.raises(RefusedError, match="no weight"):
        pack_weights(one(RNG.normal(size=(4, 4))), 8)


def test_four_bits_raise_the_opset() -> None:
    packed = onnx.load_model_from_string(pack_weights(one(RNG.normal(size=(64, 32))), 4))
    assert packed.opset_import[0].version == 21
    assert sum(t.data_type == onnx.TensorProto.INT4 for t in packed.graph.initializer) == 1


def test_zeros_stay_zeros() -> None:
    for bits in (8, 4):
        packed = pack_weights(one(np.zeros((64, 32))), bits)
        assert not open_session(packed).run(None, {"x": np.ones((1, 64), np.float32)})[0].any()
