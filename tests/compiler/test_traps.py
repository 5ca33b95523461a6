"""The traps that quantization is known for, each sprung by a small model.

Every test first shows that the trap is there (a tool's plain way falls into it), then
that a build does not.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from compiler.build import Built, build
from compiler.calibrate import calibrate
from compiler.candidates import Workshop
from compiler.emulate import run_emulated
from compiler.latency import measure
from compiler.materials import gather
from compiler.passes import load_graph, parse, prepare
from compiler.ports import Ports
from compiler.quantize import quantize_dynamic as quantize_dynamic_of_ours
from compiler.quantize import quantize_static
from compiler.recipe import read_recipe
from compiler.runtime import open_session, run_samples
from compiler.search import quietly, search, suggested
from skerry.errors import RefusedError
from skerry.manifest import TensorSpec
from tests.compiler.conftest import NOW
from tests.fakes.models import Task, graph, shapes, write_recipe

RNG = np.random.default_rng(21)


def built(folder: Path, task: Task, **options: Any) -> Built:
    return build(read_recipe(write_recipe(folder, task, **options)), now=NOW)


def static(model: onnx.ModelProto, samples: NDArray[Any], **options: Any) -> tuple[bytes, Ports]:
    """The calibrated int8 form, by hand."""
    inferred = onnx.shape_inference.infer_shapes(model)
    spec = model.graph.input[0]
    ports = Ports.of([TensorSpec(spec.name, "FP32", [-1, *samples.shape[1:]])])
    ranges = calibrate(inferred, ports, {spec.name: samples})
    return quantize_static(inferred, ranges, **options), ports


# --- U8S8 saturates on x86 without VNNI -----------------------------------------------------


def heavy() -> Task:
    """A layer whose products add up: many inputs near the top, weights of one sign."""
    n, inputs = 300, 64
    sets = {}
    weights = np.full((inputs, 4), 0.2, np.float32)
    for name, size in (("calibration", n), ("evaluation", n), ("baseline", n)):
        labels = RNG.integers(0, 4, size)
        rows = RNG.uniform(0.48, 0.52, (size, inputs)).astype(np.float32)
        for row, label in zip(rows, labels, strict=True):
            row[label * 16 : label * 16 + 16] = 1.0  # two such products are more than 16 bits hold
        sets[name] = (rows, labels)
    for label in range(4):
        weights[label * 16 : label * 16 + 16, label] = 1.0
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"], name="product"),
         helper.make_node("Softmax", ["z"], ["y"], name="s", axis=1)],
        {"w": weights}, inputs=[("x", ("n", inputs))], outputs=[("y", ("n", 4))],
    )  # fmt: skip
    return Task(model, "x", "y", sets)


@pytest.mark.qemu
def test_full_range_weights_saturate_on_an_older_cpu_and_ours_do_not() -> None:
    task = heavy()
    rows, labels = task.sets["evaluation"]
    accuracy = {}
    for full_range in (True, False):
        data, ports = static(task.model, task.sets["calibration"][0], full_range=full_range)
        there = run_emulated("avx2", data, ports, {"x": rows}, "y")["y"]
        accuracy[full_range] = float((there.argmax(axis=1) == labels).mean())
    assert accuracy[True] < 0.6
    assert accuracy[False] > 0.95


@pytest.mark.qemu
def test_an_emulated_cpu_answers_floats_as_this_one_does(shapes_task: Task) -> None:
    rows = shapes_task.sets["evaluation"][0][:20]
    data = shapes_task.model.SerializeToString()
    ports = Ports.of([TensorSpec("image", "FP32", [-1, 1, 16, 16])])
    here = run_samples(open_session(data), ports, {"image": rows})["y"]
    there = run_emulated("avx2", data, ports, {"image": rows}, "y")["y"]
    assert np.allclose(here, there, atol=1e-5)


# --- per-channel weights below opset 13 make an invalid model -------------------------------


def test_an_old_opset_is_raised_before_anything_else(tmp_path: Path) -> None:
    task = shapes()
    task.model.opset_import[0].version = 12
    data, _ = static(task.model, task.sets["calibration"][0])
    broken = onnx.load_model_from_string(data)
    with pytest.raises(onnx.checker.ValidationError):  # the trap: no error when it was written
        onnx.checker.check_model(broken)
    made = built(tmp_path, task)
    assert made.manifest.variants[0].precision == "int8"
    assert all(v.opset >= 17 for v in made.manifest.variants)


# --- one tensor of large values beside one of small -------------------------------------------


def detector() -> Task:
    """A tail that puts coordinates of hundreds beside scores of less than one."""
    task = shapes()
    model = onnx.ModelProto()
    model.CopyFrom(task.model)
    nodes = list(model.graph.node)[:-1]  # without the softmax
    scale = np.float32(1 / 400)
    nodes += [
        helper.make_node("Mul", ["g", "small"], ["scores"], name="shrink"),
        helper.make_node("MatMul", ["f", "wb"], ["boxes"], name="boxes"),
        helper.make_node("Concat", ["scores", "boxes"], ["both"], name="tail", axis=1),
        helper.make_node("MatMul", ["both", "pick"], ["z"], name="pick"),
        helper.make_node("Softmax", ["z"], ["y"], name="s", axis=1),
    ]
    flat = 32 * 16
    pick = np.zeros((8, 4), np.float32)
    pick[:4] = np.eye(4, dtype=np.float32) / scale
    weights = {
        "small": scale.reshape(1),
        "wb": RNG.uniform(0.5, 1.5, (flat, 4)).astype(np.float32),
        "pick": pick,
    }
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return Task(model, "image", "y", task.sets)


def test_a_tail_of_mixed_scales_is_found_and_left_in_float(tmp_path: Path) -> None:
    task = detector()
    data, ports = static(task.model, task.sets["calibration"][0])
    rows, labels = task.sets["evaluation"]
    whole = run_samples(open_session(data), ports, {"image": rows})["y"]
    assert (
        whole.argmax(axis=1) == labels
    ).mean() < 0.6  # the trap: scores are nothing beside boxes
    made = built(tmp_path, task)
    chosen = next(v for v in made.record.variants if v.chosen)
    assert chosen.precision == "int8"
    assert 1 <= len(chosen.left_float) <= 3
    assert chosen.accuracy is not None
    assert chosen.accuracy > 0.95
    assert made.record.evaluations <= 6


def test_a_search_that_may_spend_little_ships_fp32_and_says_so(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, detector())
    path.write_text(path.read_text() + "\n[search]\nmax_evaluations = 1\n")
    made = build(read_recipe(path), now=NOW)
    assert made.record.variants[-1].chosen
    assert any("no set of layers in float was found" in note for note in made.record.notes)


def test_what_was_left_in_float_is_in_the_lock_and_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, detector())
    first = build(read_recipe(path), now=NOW)
    again = build(read_recipe(path), now=NOW, lock=first.lock)
    assert any(choice.left and choice.shipped for choice in first.lock.choices)
    assert again.digest == first.digest


# --- tools that raise on ordinary graphs ------------------------------------------------------


def scaled() -> Task:
    """What scikit-learn's exporter writes: an operator of ai.onnx.ml before the products."""
    sets = {}
    truth = RNG.normal(size=(8, 3))
    for name in ("calibration", "evaluation", "baseline"):
        rows = RNG.normal(5, 3, (300, 8)).astype(np.float32)
        sets[name] = (rows, ((rows - 5) / 3 @ truth).argmax(axis=1))
    hidden = np.concatenate([np.eye(8), -np.eye(8)], axis=1).astype(np.float32)
    last = np.concatenate([truth, -truth]).astype(np.float32)
    model = graph(
        [
            helper.make_node(
                "Scaler", ["x"], ["s"], name="scale", domain="ai.onnx.ml",
                offset=[5.0] * 8, scale=[1 / 3] * 8,
            ),
            helper.make_node("MatMul", ["s", "w1"], ["a"], name="one"),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("MatMul", ["b", "w2"], ["z"], name="two"),
            helper.make_node("Softmax", ["z"], ["y"], name="soft", axis=1),
        ],
        {"w1": hidden, "w2": last}, inputs=[("x", ("n", 8))], outputs=[("y", ("n", 3))],
        domains={"ai.onnx.ml": 3},
    )  # fmt: skip
    return Task(model, "x", "y", sets)


def test_shape_inference_that_stops_short_has_a_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(scaled().model, path)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")  # where the tool leaves a file behind
    with pytest.raises(Exception):  # noqa: B017 - the trap: whatever it raises
        quant_pre_process(parse(path.read_bytes()), tmp_path / "out.onnx")
    monkeypatch.chdir(tmp_path)
    model, how = prepare(load_graph(path))
    assert not (tmp_path / "sym_shape_infer_temp.onnx").exists()  # what the tool leaves behind
    assert "plain, since symbolic failed" in how
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_a_tool_that_raises_is_told_of_and_the_build_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = scaled()
    onnx.save(task.model, tmp_path / "m.onnx")
    with caplog.at_level(logging.ERROR), pytest.raises((RuntimeError, ValueError, KeyError)):
        quantize_dynamic(tmp_path / "m.onnx", tmp_path / "out.onnx", weight_type=QuantType.QInt8)
    path = write_recipe(tmp_path, task)
    path.write_text(
        path.read_text().replace('try = ["int8"]', 'try = ["int8-dynamic", "int8", "fp16"]')
    )
    made = build(read_recipe(path), now=NOW)
    assert made.manifest.variants[-1].precision == "fp32"
    assert all(v.reason for v in made.record.variants)


def test_a_product_with_a_vector_is_no_obstacle(tmp_path: Path) -> None:
    task = shapes()
    model = onnx.ModelProto()
    model.CopyFrom(task.model)
    model.graph.node.extend([helper.make_node("MatMul", ["g", "v"], ["sum"], name="vector")])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "v"))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n"]))
    made = built(tmp_path, Task(model, "image", "y", task.sets))
    assert [v.precision for v in made.manifest.variants] == ["int8", "fp32"]


# --- int8 that is slower ------------------------------------------------------------------------


def test_a_tiny_model_is_slower_in_eight_bits_and_ships_as_it_is(tmp_path: Path) -> None:
    made = built(tmp_path, scaled(), max_latency_ratio=0.95)
    int8, fp32 = made.record.variants
    assert int8.latency_ratio is not None
    assert int8.latency_ratio > 1  # the trap
    assert fp32.chosen


def test_a_convolution_in_integers_is_many_times_slower_and_never_made(tmp_path: Path) -> None:
    channels, side = 32, 32
    weight = RNG.normal(size=(channels, channels, 3, 3)).astype(np.float32) / 17
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    model = graph([node], {"w": weight}, inputs=[("x", ("n", channels, side, side))],
                  outputs=[("y", ("n", channels, side, side))])  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    plain = onnx.load(tmp_path / "q.onnx")
    assert "ConvInteger" in {node.op_type for node in plain.graph.node}  # the trap
    rows = RNG.normal(size=(1, channels, side, side)).astype(np.float32)
    latency = measure(
        open_session(plain.SerializeToString()),
        open_session(model.SerializeToString()),
        {"x": rows},
    )
    assert latency.ratio > 2
    with pytest.raises(RefusedError, match="nothing in the model"):
        quantize_dynamic_of_ours(model)


def wide() -> Task:
    """A layer with weights enough to be packed."""
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": weight},
                  inputs=[("x", ("n", 64))], outputs=[("y", ("n", 64))])  # fmt: skip
    sets = {
        name: (
            rows := RNG.normal(size=(200, 64)).astype(np.float32),
            (rows @ weight).argmax(axis=1),
        )
        for name in ("calibration", "evaluation", "baseline")
    }
    return Task(model, "x", "y", sets)


def test_sixteen_bits_are_for_bytes_and_are_floats_as_they_run(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, wide())
    materials = gather(read_recipe(path))
    workshop = Workshop(materials)
    gate = materials.recipe.gate
    assert "fp16" not in suggested(workshop, gate)
    assert "fp16" in suggested(workshop, msgspec.structs.replace(gate, max_size_ratio=0.6))
    half = onnx.load_from_string(workshop.make("fp16"))
    kinds = {t.data_type for t in half.graph.initializer if t.dims}
    assert TensorProto.FLOAT16 in kinds
    # the sums are made in floats: casts in the middle of a graph are what costs
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    stored = {t.name for t in half.graph.initializer}
    assert all(cast.input[0] in stored for cast in casts)


def test_what_is_near_int8_is_tried_where_int8_holds_and_with_its_regions(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, shapes())
    materials = gather(read_recipe(path))
    workshop = Workshop(materials)
    limits = materials.recipe.search
    tried = search(workshop, suggested(workshop, materials.recipe.gate), limits, quietly)
    forms = {candidate.form: candidate for candidate in tried}
    assert {"int8", "int8-tensor", "int8-heavy"} <= set(forms)
    assert len({candidate.left for candidate in tried if candidate.blames != "quality"}) == 1
    # where int8 does not hold, nothing is spent on coarser forms
    strict = msgspec.structs.replace(materials.recipe.gate, max_latency_ratio=0.01)
    recipe = msgspec.structs.replace(materials.recipe, gate=strict)
    again = Workshop(dataclasses.replace(materials, recipe=recipe))
    assert {
        c.form for c in search(again, ["int8", "int8-tensor", "int8-heavy"], limits, quietly)
    } == {"int8"}
