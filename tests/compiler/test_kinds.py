"""Models of every kind go through: several inputs, state, branches, trees, already in 8 bits."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from compiler.build import Built, build
from compiler.recipe import read_recipe
from compiler.runtime import open_session
from skerry.bundle import read_bundle
from skerry.canonical import from_json, from_msgpack
from skerry.errors import GateError, UsageError
from skerry.manifest import Baseline, Evaluation, Golden
from tests.compiler.conftest import NOW
from tests.fakes.models import graph, shapes

RNG = np.random.default_rng(31)
SETS = ("calibration", "evaluation", "baseline")


def recipe(
    folder: Path, model: onnx.ModelProto, sets: Mapping[str, Mapping[str, Any]], text: str
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    for name, arrays in sets.items():
        np.savez(folder / f"{name}.npz", **arrays)
    path = folder / "recipe.toml"
    path.write_text(
        '[model]\nname = "thing"\nversion = "1.0.0"\nfile = "model.onnx"\n[data]\n'
        + "".join(f'{name} = "{name}.npz"\n' for name in SETS)
        + text
    )
    return path


def make(path: Path) -> Built:
    return build(read_recipe(path), now=NOW)


def layer(built: Built, digest: str) -> bytes:

    return read_bundle(io.BytesIO(built.bundle)).blobs[digest]


# --- several inputs, one of them whole numbers ----------------------------------------------


def pair() -> onnx.ModelProto:
    """An embedding of ids, and numbers beside it."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("ReduceMean", ["e"], ["m"], name="mean", axes=[1], keepdims=0),
        helper.make_node("Concat", ["m", "x"], ["both"], name="join", axis=1),
        helper.make_node("MatMul", ["both", "w"], ["y"], name="product"),
    ]
    weights = {
        "table": RNG.normal(size=(50, 16)).astype(np.float32),
        "w": RNG.normal(size=(20, 64)).astype(np.float32),
    }
    model = graph(nodes, weights, inputs=[("x", ("n", 4))], outputs=[("y", ("n", 64))])
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "s"]))
    return model


def test_several_inputs_and_a_metric_against_fp32(tmp_path: Path) -> None:
    sets = {
        name: {
            "x": RNG.normal(size=(200, 4)).astype(np.float32),
            "words": RNG.integers(0, 50, (200, 7)),
        }
        for name in SETS
    }
    text = (
        '[inputs.ids]\narray = "words"\n[metric]\nname = "cosine"\noutput = "y"\n'
        "[gate]\nmax_drop = 0.02\nmax_latency_ratio = 100.0\n"
        '[precisions]\ntry = ["int8-dynamic"]\n'
        '[features]\nlevel = { kind = "mean", input = "x" }\n'
    )
    made = make(recipe(tmp_path, pair(), sets, text))
    assert [v.id for v in made.manifest.variants] == ["int8-dynamic-cpu", "fp32-cpu"]
    assert {spec.name for spec in made.manifest.inputs} == {"x", "ids"}
    assert made.manifest.prediction.kind == "mean"
    assert made.manifest.features[0].input == "x"
    assert made.record.variants[0].accuracy == pytest.approx(1.0, abs=0.01)
    assert made.record.variants[0].agreement is None  # nothing is predicted


def test_inputs_that_the_model_does_not_have_are_named(tmp_path: Path) -> None:
    sets = {n: {"x": np.ones((8, 4), np.float32), "ids": np.ones((8, 2), int)} for n in SETS}
    sets["evaluation"]["x"] = np.zeros((8, 4), np.float32)
    metric = '[metric]\nname = "cosine"\noutput = "y"\n'
    with pytest.raises(UsageError, match=r"inputs\.idz: the model has no such input"):
        make(recipe(tmp_path / "a", pair(), sets, '[inputs.idz]\narray = "x"\n' + metric))
    short = {**sets, "evaluation": {**sets["evaluation"], "ids": np.ones((7, 2), int)}}
    with pytest.raises(UsageError, match="expected arrays of one length in evaluation"):
        make(recipe(tmp_path / "b", pair(), short, metric))


# --- state, and sequences without a batch axis ------------------------------------------------


def listener() -> onnx.ModelProto:
    """Frames [time, 8] and a state through an LSTM to one probability a frame."""
    hidden = 16
    nodes = [
        helper.make_node("Unsqueeze", ["frames", "one"], ["f"], name="batch"),
        helper.make_node(
            "LSTM", ["f", "w", "r", "", "", "h", "c"], ["o", "hn", "cn"],
            name="lstm", hidden_size=hidden,
        ),
        helper.make_node("Squeeze", ["o", "axes"], ["s"], name="flat"),
        helper.make_node("MatMul", ["s", "last"], ["z"], name="product"),
        helper.make_node("Sigmoid", ["z"], ["p"], name="sigmoid"),
        helper.make_node("Squeeze", ["p", "axis"], ["speech"], name="out"),
    ]  # fmt: skip
    weights: dict[str, Any] = {
        "w": RNG.normal(0, 0.5, (1, 4 * hidden, 8)).astype(np.float32),
        "r": RNG.normal(0, 0.3, (1, 4 * hidden, hidden)).astype(np.float32),
        "last": RNG.normal(0, 2, (hidden, 1)).astype(np.float32),
        "one": np.array([1]), "axes": np.array([1, 2]), "axis": np.array([1]),
    }  # fmt: skip
    return graph(
        nodes, weights,
        inputs=[("h", (1, 1, hidden)), ("c", (1, 1, hidden)), ("frames", ("time", 8))],
        outputs=[("speech", ("time",)), ("hn", (1, 1, hidden)), ("cn", (1, 1, hidden))],
    )  # fmt: skip


def test_state_and_sequences_go_through(tmp_path: Path) -> None:
    sets = {n: {"frames": RNG.normal(size=(40, 30, 8)).astype(np.float32)} for n in SETS}
    text = (
        "[inputs.frames]\nbatch = false\n[inputs.h]\nfill = 0.0\n[inputs.c]\nfill = 0.0\n"
        '[metric]\nname = "iou"\noutput = "speech"\n'
        "[gate]\nmax_drop = 0.05\nmax_latency_ratio = 100.0\nmax_size_ratio = 0.8\n"
        '[precisions]\ntry = ["int8-weights", "int8"]\n'
        '[features]\nenergy = { kind = "std", input = "frames" }\n'
    )
    made = make(recipe(tmp_path, listener(), sets, text))
    assert made.manifest.variants[0].id == "int8-weights-cpu"
    assert made.manifest.inputs[0].name == "frames"  # a device counts the rows of the first
    assert made.manifest.prediction.kind == "threshold"
    baseline = from_msgpack(layer(made, made.manifest.baseline.digest), Baseline)
    assert baseline.n == 40 * 30
    golden = from_msgpack(layer(made, made.manifest.golden.digest), Golden, limit=1 << 20)
    assert {t.name: t.shape for t in golden.inputs} == {
        "frames": [30, 8], "h": [1, 1, 16], "c": [1, 1, 16],
    }  # fmt: skip
    feed = {t.name: np.frombuffer(t.data, "<f4").reshape(t.shape) for t in golden.inputs}
    wanted = {t.name: np.frombuffer(t.data, "<f4").reshape(t.shape) for t in golden.outputs}
    session = open_session(layer(made, made.manifest.variants[0].file.digest))
    for name, value in zip(wanted, session.run(list(wanted), feed), strict=True):
        assert np.abs(value - wanted[name]).max() <= golden.atol


# --- branches, loops, trees, sequences of maps ------------------------------------------------


def branching() -> onnx.ModelProto:
    """`y` is one product or another, as the sum of the input says."""

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=f"p_{name}")
        out = helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["n", 3])
        return helper.make_graph([node], name, [], [out])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], name="sum", keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["more"], name="more"),
        helper.make_node(
            "If", ["more"], ["y"], name="if",
            then_branch=branch("a"), else_branch=branch("b"),
        ),
    ]  # fmt: skip
    weights = {
        "a": RNG.normal(size=(4, 3)).astype(np.float32),
        "b": RNG.normal(size=(4, 3)).astype(np.float32),
        "zero": np.array(0, np.float32),
    }
    return graph(nodes, weights, inputs=[("x", ("n", 4))], outputs=[("y", ("n", 3))])


def looping() -> onnx.ModelProto:
    """`y` is `x` times a matrix, five times over."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["going"], name="go"),
            helper.make_node("MatMul", ["v", "w"], ["next"], name="product"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 3]),
        ],
    )
    weights = {
        "w": (np.eye(3) + RNG.normal(0, 0.1, (3, 3))).astype(np.float32),
        "times": np.array(5, np.int64),
        "yes": np.array(True),
    }
    node = helper.make_node("Loop", ["times", "yes", "x"], ["y"], name="loop", body=body)
    return graph([node], weights, inputs=[("x", ("n", 3))], outputs=[("y", ("n", 3))])


def forest() -> onnx.ModelProto:
    """One tree of `ai.onnx.ml`, its probabilities in a sequence of maps, as scikit-learn has it."""
    tree = helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["label", "raw"], name="tree", domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_values=[0.0, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        nodes_hitrates=[1.0, 1.0, 1.0], nodes_missing_value_tracks_true=[0, 0, 0],
        class_treeids=[0, 0, 0, 0], class_nodeids=[1, 1, 2, 2], class_ids=[0, 1, 0, 1],
        class_weights=[0.9, 0.1, 0.2, 0.8], classlabels_int64s=[0, 1], post_transform="NONE",
    )  # fmt: skip
    zipmap = helper.make_node(
        "ZipMap", ["raw"], ["probabilities"], name="zip", domain="ai.onnx.ml",
        classlabels_int64s=[0, 1],
    )  # fmt: skip
    model = graph(
        [tree, zipmap], {}, inputs=[("x", ("n", 3))], outputs=[], domains={"ai.onnx.ml": 3}
    )
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            helper.make_value_info(
                "probabilities",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(
                        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
                    )
                ),
            ),
        ]
    )
    return model


ARGMAX = '[metric]\nname = "agreement"\noutput = "y"\n[gate]\nmax_drop = 0.05\n'


@pytest.mark.parametrize(("model", "width"), [(branching(), 4), (looping(), 3)])
def test_branches_and_loops_go_through(tmp_path: Path, model: onnx.ModelProto, width: int) -> None:
    sets = {n: {"x": RNG.normal(size=(150, width)).astype(np.float32)} for n in SETS}
    made = make(recipe(tmp_path, model, sets, ARGMAX))
    assert made.manifest.variants[-1].precision == "fp32"


def test_trees_go_through_and_maps_are_unwrapped(tmp_path: Path) -> None:
    sets = {}
    for name in SETS:
        x = RNG.normal(size=(150, 3)).astype(np.float32)
        sets[name] = {"x": x, "label": (x[:, 0] > 0).astype(int)}
    text = '[metric]\nname = "accuracy"\noutput = "probabilities"\n'
    made = make(recipe(tmp_path, forest(), sets, text))
    assert "probabilities unwrapped" in " ".join(made.record.notes)
    assert made.record.variants[-1].accuracy == 1.0
    assert [v.precision for v in made.manifest.variants] == ["fp32"]
    spec = next(s for s in made.manifest.outputs if s.name == "probabilities")
    assert (spec.datatype, spec.shape) == ("FP32", [-1, 2])


def test_a_map_that_nobody_needs_is_dropped(tmp_path: Path) -> None:
    sets = {n: {"x": RNG.normal(size=(150, 3)).astype(np.float32)} for n in SETS}
    text = '[metric]\nname = "mae"\noutput = "label"\npostprocess = "none"\n'
    labels = {n: {**a, "label": (a["x"][:, 0] > 0).astype(float)} for n, a in sets.items()}
    made = make(recipe(tmp_path, forest(), labels, text))
    assert [spec.name for spec in made.manifest.outputs] == ["label"]


def test_a_model_that_is_in_eight_bits_already_goes_through(tmp_path: Path) -> None:
    task = shapes()
    quantize_dynamic(task.model, tmp_path / "q.onnx", weight_type=QuantType.QUInt8)
    model = onnx.load_model(tmp_path / "q.onnx")
    sets = {n: {"image": x, "label": y} for n, (x, y) in task.sets.items()}
    text = '[metric]\noutput = "y"\n[gate]\nmax_drop = 0.05\n'
    made = make(recipe(tmp_path / "r", model, sets, text))
    assert made.record.variants[-1].accuracy is not None
    assert made.record.variants[-1].accuracy > 0.95


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_model_that_onnxruntime_prepared_and_quantized_goes_through(
    tmp_path: Path, form: QuantFormat
) -> None:
    task = shapes()
    rows = task.sets["calibration"][0]

    class Reader(CalibrationDataReader):  # type: ignore[misc] # it has no types
        feeds = iter([{"image": rows}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    onnx.save(task.model, tmp_path / "m.onnx")
    quant_pre_process(tmp_path / "m.onnx", tmp_path / "p.onnx")  # as its documentation says
    quantize_static(tmp_path / "p.onnx", tmp_path / "q.onnx", Reader(), quant_format=form)
    model = onnx.load_model(tmp_path / "q.onnx")
    assert len(model.opset_import) > 3  # every domain that onnxruntime knows
    sets = {n: {"image": x, "label": y} for n, (x, y) in task.sets.items()}
    text = '[metric]\noutput = "y"\n[gate]\nmax_drop = 0.05\n'
    made = make(recipe(tmp_path / "r", model, sets, text))
    assert made.record.variants[-1].accuracy is not None
    assert made.record.variants[-1].accuracy > 0.9


# --- values instead of classes, gates on groups, limits ---------------------------------------


def regression(tmp_path: Path, more: str = "", gate: str = "") -> Path:
    weights = RNG.normal(size=(6, 1)).astype(np.float32)
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weights},
        inputs=[("x", ("n", 6))], outputs=[("y", ("n", 1))],
    )  # fmt: skip
    sets = {}
    for name in SETS:
        x = RNG.normal(size=(400, 6)).astype(np.float32)
        sets[name] = {
            "x": x,
            "label": (x @ weights)[:, 0] + RNG.normal(0, 0.1, 400),
            "site": np.where(np.arange(400) % 4 == 0, "north", "south"),
        }
    text = (
        '[metric]\nname = "mae"\noutput = "y"\n'
        f"[gate]\nmax_drop = 0.05\nmax_latency_ratio = 100.0\n{gate}"
        f'[precisions]\ntry = ["int8"]\n{more}'
    )
    return recipe(tmp_path, model, sets, text)


def test_a_regression_ships_and_is_watched_as_a_value(tmp_path: Path) -> None:
    made = make(regression(tmp_path))
    assert made.manifest.prediction.kind == "value"
    assert made.manifest.variants[0].precision == "int8"
    baseline = from_msgpack(layer(made, made.manifest.baseline.digest), Baseline)
    assert set(baseline.columns) == {"confidence", "latency_us"}


def test_groups_are_in_the_report(tmp_path: Path) -> None:
    made = make(regression(tmp_path, gate='[gate.slices.by_site]\narray = "site"\n'))

    report = from_json(layer(made, made.manifest.evaluation.digest), Evaluation)
    assert [(s.slice, s.group, s.n) for s in report.slices] == [
        ("by_site", "north", 100), ("by_site", "south", 300),
    ]  # fmt: skip


def test_a_gate_that_nothing_can_meet_fails_the_build_and_tells_of_each_form(
    tmp_path: Path,
) -> None:
    with pytest.raises(GateError, match=r"no form of it passes .* int8: .* fp32: .* more than 10"):
        make(regression(tmp_path, gate="max_bytes = 10\n"))


def test_labels_of_the_wrong_shape_are_named(tmp_path: Path) -> None:
    path = regression(tmp_path)
    path.write_text(path.read_text().replace('name = "mae"', 'name = "accuracy"'))
    with pytest.raises(UsageError, match="expected whole-number labels of 0 to 1"):
        make(path)


def test_nan_in_the_calibration_data_is_named_with_its_sample(tmp_path: Path) -> None:
    path = regression(tmp_path)
    with np.load(tmp_path / "calibration.npz", allow_pickle=False) as found:
        arrays: dict[str, Any] = dict(found)
    arrays["x"][7, 2] = np.nan
    np.savez(tmp_path / "calibration.npz", **arrays)
    with pytest.raises(UsageError, match="NaN or infinity in 1 of 400 samples, first in sample 7"):
        make(path)


def test_a_metric_of_ones_own_gates_a_build(tmp_path: Path) -> None:
    path = regression(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def near(output, labels):\n"
        "    return (np.abs(output[:, 0] - labels) < 0.3).astype(float)\n"
        "def broken(output, labels):\n"
        "    raise ValueError('no labels today')\n"
    )
    text = path.read_text()
    path.write_text(text.replace('name = "mae"', 'name = "mine:near"'))
    value = make(path).record.variants[-1].accuracy
    assert value is not None
    assert value > 0.9
    path.write_text(text.replace('name = "mae"', 'name = "mine:broken"'))
    with pytest.raises(UsageError, match="the metric broken raised ValueError: no labels today"):
        make(path)


def test_columns_of_a_table_go_in_side_by_side(tmp_path: Path) -> None:
    path = regression(tmp_path)
    for name in SETS:
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as found:
            x, label = found["x"], found["label"]
        rows = [
            ",".join(map(str, [*r, v])) for r, v in zip(x.tolist(), label.tolist(), strict=True)
        ]
        (tmp_path / f"{name}.csv").write_text("a,b,c,d,e,f,label\n" + "\n".join(rows))
    text = path.read_text().replace(".npz", ".csv")
    path.write_text(text)
    with pytest.raises(UsageError, match=r"expected an array 'x' in calibration, found a, b"):
        make(path)
    path.write_text(text + '[inputs.x]\ncolumns = ["a", "b", "c", "d", "e", "f"]\n')
    made = make(path)
    assert made.record.variants[-1].accuracy == pytest.approx(0.08, abs=0.02)


def test_memory_is_measured_where_the_gate_asks(tmp_path: Path) -> None:
    path = regression(tmp_path, gate="max_memory_mb = 0.01\n")
    both = r"int8: .* it takes more memory than 0\.01 MB; fp32: it takes more memory than 0\.01 MB"
    with pytest.raises(GateError, match=both):
        make(path)
    path.write_text(path.read_text().replace("max_memory_mb = 0.01", "max_memory_mb = 500"))
    made = make(path)
    assert made.manifest.variants[0].precision == "int8"
    assert any("int8 took" in note for note in made.record.notes)
    assert any("fp32 took" in note for note in made.record.notes)
    again = build(read_recipe(path), now=NOW, lock=made.lock)
    assert again.digest == made.digest


def test_fp32_is_left_out_where_it_takes_more_time_than_the_gate_lets(tmp_path: Path) -> None:
    path = regression(tmp_path, gate="max_latency_us = 0.001\n")
    with pytest.raises(GateError, match=r"fp32: it takes more than 0\.001 us"):
        make(path)


# --- outputs beside the one that is measured ----------------------------------------------------


def test_outputs_of_text_and_masks_of_infinity_do_not_stand_in_the_way(tmp_path: Path) -> None:
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
         helper.make_node("Log", ["nothing"], ["void"], name="log"),
         helper.make_node("Add", ["y", "void"], ["mask"], name="mask"),
         helper.make_node("ArgMax", ["y"], ["place"], name="best", axis=1, keepdims=0),
         helper.make_node("LabelEncoder", ["place"], ["word"], name="word", domain="ai.onnx.ml",
                          keys_int64s=[0, 1, 2], values_strings=["a", "b", "c"])],
        {"w": RNG.normal(size=(6, 3)).astype(np.float32), "nothing": np.zeros(3, np.float32)},
        inputs=[("x", ("n", 6))], outputs=[("y", ("n", 3)), ("mask", ("n", 3))],
        domains={"ai.onnx.ml": 2},
    )  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info("word", TensorProto.STRING, ["n"]))
    model.graph.output.append(helper.make_tensor_value_info("place", TensorProto.INT64, ["n"]))
    sets = {n: {"x": RNG.normal(size=(150, 6)).astype(np.float32)} for n in SETS}
    made = make(recipe(tmp_path / "a", model, sets, ARGMAX))
    golden = from_msgpack(layer(made, made.manifest.golden.digest), Golden, limit=1 << 20)
    assert {tensor.name for tensor in golden.outputs} == {"y", "place"}
    assert np.isfinite(golden.atol)
    text = '[metric]\nname = "agreement"\noutput = "word"\n'
    with pytest.raises(UsageError, match=r"metric.output to name numbers, 'word' is text"):
        make(recipe(tmp_path / "b", model, sets, text))
    made = make(recipe(tmp_path / "c", model, sets, text.replace("word", "place")))
    assert made.manifest.prediction.kind == "value"
