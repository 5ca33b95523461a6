"""No weight of a form that ships can saturate, whatever holds it; what came so is told."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from compiler.build import build
from compiler.calibrate import calibrate
from compiler.passes import load_graph, parse, prepare
from compiler.ports import Ports
from compiler.quantize import quantize_dynamic, quantize_static
from compiler.recipe import read_recipe
from compiler.saturation import LARGEST, full_range_weights
from skerry.errors import RefusedError
from tests.compiler.conftest import NOW
from tests.fakes.models import Task, graph, write_recipe

RNG = np.random.default_rng(71)
node = onnx.helper.make_node


def w(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(size=shape).astype(np.float32)


def one(
    made: onnx.NodeProto, weights: dict[str, Any], *, taken: Any, given: Any
) -> onnx.ModelProto:
    return graph([made], weights, inputs=[("x", ("n", *taken))], outputs=[("y", ("n", *given))])


MODELS: dict[str, onnx.ModelProto] = {
    "gemm": one(node("Gemm", ["x", "w", "b"], ["y"], name="n"), {"w": w(16, 32), "b": w(1, 32)},
                taken=(16,), given=(32,)),
    "gemm, transposed": one(node("Gemm", ["x", "w"], ["y"], name="n", transB=1, alpha=2.0),
                            {"w": w(32, 16)}, taken=(16,), given=(32,)),
    "matmul": one(node("MatMul", ["x", "w"], ["y"], name="n"), {"w": w(16, 32)},
                  taken=(16,), given=(32,)),
    "matmul of stacks": one(node("MatMul", ["x", "w"], ["y"], name="n"), {"w": w(4, 16, 32)},
                            taken=(4, 8, 16), given=(4, 8, 32)),
    "matmul from the left": graph(
        [node("Transpose", ["x"], ["t"], name="t", perm=[1, 0]),
         node("MatMul", ["w", "t"], ["z"], name="n"),
         node("Transpose", ["z"], ["y"], name="u", perm=[1, 0])],
        {"w": w(32, 16)}, inputs=[("x", ("n", 16))], outputs=[("y", ("n", 32))]),
    "conv": one(node("Conv", ["x", "w"], ["y"], name="n", pads=[1] * 4), {"w": w(16, 8, 3, 3)},
                taken=(8, 8, 8), given=(16, 8, 8)),
    "conv, grouped": one(node("Conv", ["x", "w"], ["y"], name="n", group=4),
                         {"w": w(16, 4, 3, 3)}, taken=(16, 8, 8), given=(16, 6, 6)),
    "conv, depthwise": one(node("Conv", ["x", "w"], ["y"], name="n", group=16),
                           {"w": w(16, 1, 3, 3)}, taken=(16, 8, 8), given=(16, 6, 6)),
    "conv of time": one(node("Conv", ["x", "w"], ["y"], name="n"), {"w": w(16, 4, 3)},
                        taken=(4, 32), given=(16, 30)),
    "conv, transposed": one(node("ConvTranspose", ["x", "w"], ["y"], name="n", strides=[2, 2]),
                            {"w": w(8, 16, 2, 2)}, taken=(8, 8, 8), given=(16, 16, 16)),
    "after an lstm": graph(
        [node("Transpose", ["x"], ["t"], name="t", perm=[1, 0, 2]),
         node("LSTM", ["t", "w", "r"], ["", "h"], name="l", hidden_size=16),
         node("Squeeze", ["h", "z"], ["s"], name="s"),
         node("MatMul", ["s", "v"], ["y"], name="n")],
        {"w": w(1, 64, 8), "r": w(1, 64, 16), "v": w(16, 32), "z": np.array([0])},
        inputs=[("x", ("n", 5, 8))], outputs=[("y", ("n", 32))]),
    "one weight of two products": graph(
        [node("MatMul", ["x", "w"], ["a"], name="n"), node("Gemm", ["x", "w"], ["b"], name="m"),
         node("Add", ["a", "b"], ["y"], name="k")],
        {"w": w(16, 32)}, inputs=[("x", ("n", 16))], outputs=[("y", ("n", 32))]),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_every_signed_weight_keeps_to_seven_bits(tmp_path: Path, kind: str, form: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(MODELS[kind], path)
    loaded = load_graph(path)
    model, _ = prepare(loaded)
    ports = Ports.of(loaded.inputs)
    samples = {"x": RNG.normal(size=(32, *loaded.inputs[0].shape[1:])).astype(np.float32)}
    if form == "static":
        ranges = calibrate(model, ports, samples)
        full = quantize_static(model, ranges, full_range=True)
        assert full_range_weights(parse(full))  # the trap: onnxruntime's own default
        made = quantize_static(model, ranges)
    else:
        try:
            made = quantize_dynamic(model)
        except RefusedError:
            pytest.skip("no product of this kind has a dynamic form")
    assert full_range_weights(parse(made)) == []
    weights = [t for t in parse(made).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    largest = max(int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in weights)
    assert 2 * 255 * largest <= 32_767
    assert largest == LARGEST  # and no bit is given away


def test_a_model_that_came_with_full_weights_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(MODELS["matmul"], path)
    loaded = load_graph(path)
    model, _ = prepare(loaded)
    rows = RNG.normal(size=(400, 16)).astype(np.float32)
    ranges = calibrate(model, Ports.of(loaded.inputs), {"x": rows[:64]})
    given = parse(quantize_static(model, ranges, full_range=True))
    sets = {
        n: (rows + i, np.zeros(400, int))
        for i, n in enumerate(("calibration", "evaluation", "baseline"))
    }
    recipe = write_recipe(tmp_path / "r", Task(given, "x", "y", sets), min_value=0.0)
    recipe.write_text(recipe.read_text().replace('"accuracy"', '"agreement"'))
    made = build(read_recipe(recipe), now=NOW)
    assert any("may saturate" in note and "--emulate avx2" in note for note in made.record.notes)
