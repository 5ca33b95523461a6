"""On its parent's scales a model's integers change less, within the same bits, and it answers alike."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from compiler.calibrate import calibrate
from compiler.keep_scales import keep_scales
from compiler.patch import make_patch
from compiler.ports import Port, Ports
from compiler.quantize import quantize_static
from tests.fakes.models import Task, shapes

PORTS = Ports((Port("image", "image", np.dtype(np.float32), (-1, 1, 16, 16)),))


def trained_on(model: onnx.ModelProto, step: float) -> onnx.ModelProto:
    """Every weight moved a little, as a share of how far weights spread; the largest moved most."""
    rng, new = np.random.default_rng(1), onnx.ModelProto()
    new.CopyFrom(model)
    for tensor in new.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            moved = array + step * array.std() * rng.normal(size=array.shape)
            largest = np.abs(moved) > 2.5 * array.std()
            moved = np.where(largest, moved * 1.05, moved)
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return new


def initializers(data: bytes) -> dict[str, np.ndarray]:
    model = onnx.load_model_from_string(data)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def answers(data: bytes, rows: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": rows})[0])


@pytest.fixture(scope="module")
def wide() -> Task:
    """With enough weights for the rest not to count."""
    return shapes(96)


@pytest.fixture(scope="module")
def forms(wide: Task) -> tuple[onnx.ModelProto, bytes, bytes, bytes]:
    """The new floats; the parent's int8, the new one's, and the new one's on the parent's scales."""
    base = onnx.shape_inference.infer_shapes(wide.model)
    new = trained_on(base, 0.005)
    rows = {"image": wide.sets["calibration"][0]}
    parent = quantize_static(base, calibrate(base, PORTS, rows))
    plain = quantize_static(new, calibrate(new, PORTS, rows))
    kept = keep_scales(plain, parent, new)
    assert kept is not None
    return new, parent, plain, kept


def test_every_scale_and_zero_point_is_the_parents(
    forms: tuple[onnx.ModelProto, bytes, bytes, bytes],
) -> None:
    _, parent, plain, kept = forms
    before, now, after = (initializers(data) for data in (parent, plain, kept))
    scales = [name for name in after if "scale" in name]
    assert len(scales) == 7
    for name in scales:
        assert np.array_equal(after[name], before[name]), name
    assert any(not np.array_equal(now[name], before[name]) for name in scales)
    assert (
        onnx.load_model_from_string(kept).graph.node
        == onnx.load_model_from_string(plain).graph.node
    )


def test_weights_keep_to_seven_bits(forms: tuple[onnx.ModelProto, bytes, bytes, bytes]) -> None:
    weights = [a for a in initializers(forms[3]).values() if a.dtype == np.int8 and a.ndim > 1]
    assert len(weights) == 3
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= 64


def test_it_answers_alike_and_its_patch_is_smaller(
    forms: tuple[onnx.ModelProto, bytes, bytes, bytes], wide: Task
) -> None:
    new, parent, plain, kept = forms
    rows, labels = wide.sets["evaluation"]
    right = [
        float((answers(data, rows).argmax(1) == labels).mean())
        for data in (new.SerializeToString(), plain, kept)
    ]
    assert min(right[1:]) >= right[0] - 0.02
    patches = [make_patch(parent, data) for data in (plain, kept)]
    assert patches[0] is not None
    assert patches[1] is not None
    assert len(patches[1]) < 0.8 * len(patches[0])


def test_without_a_scale_to_keep_there_is_no_such_form(
    forms: tuple[onnx.ModelProto, bytes, bytes, bytes], wide: Task
) -> None:
    new, parent, plain, _ = forms
    assert keep_scales(plain, plain, new) is None  # the same scales
    assert keep_scales(plain, wide.model.SerializeToString(), new) is None
    assert keep_scales(plain, b"no model", new) is None
    assert keep_scales(plain, parent, onnx.ModelProto()) is None
