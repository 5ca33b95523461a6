"""Traps that lie in a model's build: no one layer is to blame, and a tool's plain way loses or slows."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat
from onnxruntime.quantization import quantize_static as plain_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compiler.build import build
from compiler.calibrate import calibrate
from compiler.latency import measure
from compiler.ports import Ports
from compiler.quantize import quantize_static
from compiler.recipe import read_recipe
from compiler.runtime import open_session
from skerry.manifest import TensorSpec
from tests.compiler.conftest import NOW
from tests.fakes.models import Task, graph, write_recipe

SETS = ("calibration", "evaluation", "baseline")


class Rows(CalibrationDataReader):  # type: ignore[misc]
    """Samples one by one, as onnxruntime's tool takes them."""

    def __init__(self, name: str, rows: NDArray[Any]) -> None:
        self._rows = iter([{name: rows[i : i + 1]} for i in range(len(rows))])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._rows, None)


def plain(folder: Path, model: onnx.ModelProto, name: str, rows: NDArray[Any]) -> onnx.ModelProto:
    """What onnxruntime's static quantization makes of a model, left to its defaults."""
    folder.mkdir()
    given, prepared, out = (folder / f"{n}.onnx" for n in ("given", "prepared", "out"))
    onnx.save(model, given)
    quant_pre_process(given, prepared, skip_symbolic_shape=True)
    plain_static(prepared, out, Rows(name, rows), quant_format=QuantFormat.QDQ)
    return onnx.load(out)


def answers(model: onnx.ModelProto, name: str, rows: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = open_session(model.SerializeToString()).run(None, {name: rows})[0]
    return found


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    both = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / both).mean())


# --- no layer is guilty alone ---------------------------------------------------------------


def chain(layers: int = 24, width: int = 48) -> Task:
    """Turns, one after another: each adds a little noise in 8 bits, and none takes it away."""
    rng = np.random.default_rng(5)
    nodes, weights, last = [], {}, "x"
    for i in range(layers):
        turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
        weights[f"w{i}"] = turn.astype(np.float32)
        out = "y" if i == layers - 1 else f"t{i}"
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [out], name=f"turn{i}"))
        last = out
    model = graph(nodes, weights, inputs=[("x", ("n", width))], outputs=[("y", ("n", width))])
    session = open_session(model.SerializeToString())
    sets = {}
    for name in SETS:
        rows = rng.laplace(size=(1200, width)).astype(np.float32)
        sets[name] = (rows, session.run(None, {"x": rows})[0].argmax(axis=1))
    return Task(model, "x", "y", sets)


def test_where_no_layer_is_guilty_alone_several_stay_in_float(tmp_path: Path) -> None:
    task, limit = chain(), 0.06
    rows, labels = task.sets["evaluation"]
    model = onnx.shape_inference.infer_shapes(task.model)
    ports = Ports.of([TensorSpec("x", "FP32", [-1, rows.shape[1]])])
    ranges = calibrate(model, ports, {"x": task.sets["calibration"][0]})

    def wrong(**options: Any) -> float:
        found = open_session(quantize_static(model, ranges, **options)).run(None, {"x": rows})[0]
        return float((found.argmax(axis=1) != labels).mean())

    names = [node.name for node in model.graph.node]
    assert wrong() > 1.5 * limit  # the trap: each of them holds, and all together do not
    assert max(wrong(only=[name]) for name in names) < limit
    made = build(read_recipe(write_recipe(tmp_path, task, max_drop=limit)), now=NOW)
    chosen = next(v for v in made.record.variants if v.chosen)
    assert chosen.accuracy is not None
    assert 1.0 - chosen.accuracy < limit
    assert chosen.precision == "fp32" or len(chosen.left_float) > 3


# --- activations that no calibration bounds --------------------------------------------------


def encoder(layers: int = 2, width: int = 32, words: int = 16) -> Task:
    """A transformer whose normalisation lets few channels stand far out, as trained ones do."""
    rng = np.random.default_rng(8)
    nodes, weights, last = [], {}, "x"

    def weight(name: str, *shape: int, scale: float = 1.0) -> str:
        weights[name] = (rng.normal(size=shape) * scale / np.sqrt(shape[0])).astype(np.float32)
        return name

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        out = f"t{len(nodes)}"
        nodes.append(
            helper.make_node(kind, list(inputs), [out], name=f"{kind}{len(nodes)}", **attributes)
        )
        return out

    for i in range(layers):
        weights[f"g{i}"] = np.ones(width, np.float32)
        weights[f"b{i}"] = np.zeros(width, np.float32)
        normal = op("LayerNormalization", last, f"g{i}", f"b{i}", axis=-1)
        q, k, v = (op("MatMul", normal, weight(f"{n}{i}", width, width, scale=0.9)) for n in "qkv")
        scores = op("MatMul", q, op("Transpose", k, perm=[0, 2, 1]))
        mixed = op("MatMul", op("Softmax", scores, axis=-1), v)
        last = op("Add", last, op("MatMul", mixed, weight(f"o{i}", width, width, scale=1.0)))
        normal = op("LayerNormalization", last, f"g{i}", f"b{i}", axis=-1)
        up = op("MatMul", normal, weight(f"u{i}", width, 4 * width))
        gelu = op("Mul", up, op("Sigmoid", up))
        last = op("Add", last, op("MatMul", gelu, weight(f"d{i}", 4 * width, width)))
    weights["one"] = np.array([1], np.int64)  # type: ignore[assignment]
    weights["first"] = np.eye(1, words, 1, dtype=np.float32)  # the first word's vector
    nodes.append(helper.make_node("MatMul", ["first", last], ["z"], name="first"))
    nodes.append(helper.make_node("Squeeze", ["z", "one"], ["y"], name="flat"))
    model = graph(
        nodes, weights, inputs=[("x", ("n", words, width))], outputs=[("y", ("n", width))]
    )
    sets = {}
    for name in SETS:
        rows = rng.normal(size=(60, words, width)).astype(np.float32)
        rows[:, 0, 3] = 400.0  # one word, one channel
        sets[name] = (rows, np.zeros(60, int))
    return Task(model, "x", "y", sets)


def test_a_transformer_calibrated_whole_falls_and_its_products_alone_hold(tmp_path: Path) -> None:
    task = encoder()
    rows = task.sets["evaluation"][0]
    whole = plain(tmp_path / "p", task.model, "x", task.sets["calibration"][0][:30])
    assert cosine(answers(whole, "x", rows), answers(task.model, "x", rows)) < 0.8  # the trap
    path = write_recipe(tmp_path / "r", task, max_drop=0.01, min_value=0.99)
    text = path.read_text().replace('name = "accuracy"', 'name = "cosine"')
    text = text.replace('label = "label"\n', "").replace('try = ["int8"]', 'try = "auto"')
    path.write_text(text)
    made = build(read_recipe(path), now=NOW)
    chosen = next(v for v in made.record.variants if v.chosen)
    assert chosen.precision == "int8-dynamic"
    assert chosen.accuracy is not None
    assert chosen.accuracy > 0.99


# --- glue that stays in float ------------------------------------------------------------------


def swish(layers: int = 10, channels: int = 8, side: int = 12) -> Task:
    """Thin convolutions with hard swish between them, as in the small models for phones."""
    rng = np.random.default_rng(4)
    nodes, weights, last = [], {}, "x"
    for i in range(layers):
        weights[f"w{i}"] = (rng.normal(size=(channels, channels, 1, 1)) / np.sqrt(channels)).astype(
            np.float32
        )
        nodes += [
            helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], name=f"conv{i}"),
            helper.make_node(
                "HardSigmoid", [f"c{i}"], [f"h{i}"], name=f"hard{i}", alpha=1 / 6, beta=0.5
            ),
            helper.make_node("Mul", [f"c{i}", f"h{i}"], [f"m{i}"], name=f"mul{i}"),
            helper.make_node("Add", [last, f"m{i}"], [f"a{i}"], name=f"add{i}"),
        ]
        last = f"a{i}"
    nodes.append(
        helper.make_node("ReduceMean", [last], ["y"], name="pool", axes=[2, 3], keepdims=0)
    )
    shape = (channels, side, side)
    model = graph(nodes, weights, inputs=[("x", ("n", *shape))], outputs=[("y", ("n", channels))])
    session = open_session(model.SerializeToString())
    sets = {}
    for name in SETS:
        rows = rng.normal(size=(300, *shape)).astype(np.float32)
        sets[name] = (rows, session.run(None, {"x": rows})[0].argmax(axis=1))
    return Task(model, "x", "y", sets)


def test_glue_that_stays_in_float_makes_int8_slower_and_it_does_not_ship(tmp_path: Path) -> None:
    task = swish()
    whole = plain(tmp_path / "p", task.model, "x", task.sets["calibration"][0][:40])
    assert [node.op_type for node in whole.graph.node].count("QuantizeLinear") > 30
    one = {"x": task.sets["evaluation"][0][:1]}
    latency = measure(
        open_session(whole.SerializeToString()), open_session(task.model.SerializeToString()), one
    )
    assert latency.ratio > 1.0  # the trap
    path = write_recipe(tmp_path / "r", task, max_latency_ratio=0.95, max_drop=0.3)
    made = build(read_recipe(path), now=NOW)
    chosen = next(v for v in made.record.variants if v.chosen)
    assert chosen.latency_ratio is not None
    assert chosen.precision == "fp32" or chosen.latency_ratio < 0.95
