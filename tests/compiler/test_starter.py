"""A model that nobody prepared goes through `skerry build --init` and `skerry build`."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from compiler.cli import build
from compiler.recipe import parse_recipe
from compiler.starter import starter_recipe
from tests.compiler.test_kinds import forest, listener, pair
from tests.fakes.models import Task, graph, scales, shapes


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def skerry(*words: object) -> Result:
    return CliRunner().invoke(build, [str(word) for word in words])


@pytest.mark.parametrize("task", [shapes(), scales()], ids=["images", "table"])
def test_a_model_and_its_data_are_enough(tmp_path: Path, task: Task) -> None:
    model = save(tmp_path / "My Model_v2.onnx", task.model)
    rows = np.concatenate([x for x, _ in task.sets.values()])
    labels = np.concatenate([y for _, y in task.sets.values()])
    np.savez(tmp_path / "data.npz", **{task.input: rows, "label": labels})
    made = skerry(model, "--init", "--data", "data.npz")
    assert made.exit_code == 0, made.output
    recipe = tmp_path / "My Model_v2.toml"
    assert made.stdout.strip() == str(recipe)
    assert parse_recipe(recipe.read_bytes()).model.name == "my-model-v2"
    built = skerry(recipe, "--out", tmp_path / "out", "--json")
    assert built.exit_code == 0, built.output
    assert (tmp_path / "out" / "my-model-v2-1.0.0.skerry").is_file()
    assert list((tmp_path / "out").glob("*.report.html"))


@pytest.mark.parametrize("model", [shapes().model, scales().model, pair(), listener()])
def test_what_it_writes_is_a_recipe(tmp_path: Path, model: onnx.ModelProto) -> None:
    text = starter_recipe(save(tmp_path / "m.onnx", model))
    recipe = parse_recipe(text.encode())
    assert recipe.metric.output in {value.name for value in model.graph.output}
    for value in model.graph.input:
        assert f'"{value.name}"' in text


def test_state_gets_a_constant(tmp_path: Path) -> None:
    recipe = parse_recipe(starter_recipe(save(tmp_path / "m.onnx", listener())).encode())
    assert recipe.inputs["h"].fill == 0.0
    assert recipe.inputs["h"].shape == [1, 1, 16]
    assert "frames" not in recipe.inputs


def test_a_recipe_that_is_there_is_not_written_over(tmp_path: Path, shapes_task: Task) -> None:
    model = save(tmp_path / "m.onnx", shapes_task.model)
    (tmp_path / "m.toml").write_text("mine")
    made = skerry(model, "--init")
    assert made.exit_code == 5
    assert "is there already" in made.output
    assert (tmp_path / "m.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("m.onnx",), 2, "expected a directory for the bundle"),
        (("m.onnx", "--out", "o", "--data", "d"), 2, "--data goes with --init"),
        (("none.onnx", "--init"), 3, "expected a model at"),
        (("m.onnx", "--init"), 1, "ONNX model"),
        (("m.onnx", "--init", "--data", "none.npz"), 3, "--data names 'none.npz'"),
    ],
)
def test_what_cannot_be_is_told(
    tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    done = skerry(tmp_path / words[0], *words[1:])
    assert done.exit_code == code
    assert message in done.output


@pytest.mark.qemu
def test_what_ships_may_be_measured_on_another_cpu(tmp_path: Path) -> None:
    task = scales()
    model = save(tmp_path / "m.onnx", task.model)
    rows, labels = task.sets["evaluation"]
    np.savez(tmp_path / "d.npz", x=rows, label=labels)
    skerry(model, "--init", "--data", "d.npz[0:80]")
    done = skerry(tmp_path / "m.toml", "--out", tmp_path / "o", "--emulate", "avx2")
    assert done.exit_code == 0, done.output
    text = next((tmp_path / "o").glob("*.md")).read_text()
    assert "fp32 on avx2: accuracy" in text
    refused = skerry(tmp_path / "m.toml", "--out", tmp_path / "o", "--emulate", "sparc")
    assert refused.exit_code == 2
    assert "expected one of avx2 to emulate" in refused.output


def test_maps_are_unwrapped_and_classes_of_text_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    model = save(tmp_path / "models" / "m.onnx", forest())
    x = np.random.default_rng(1).normal(size=(300, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, label=np.where(x[:, 0] > 0, "yes", "no"))
    monkeypatch.chdir(tmp_path)
    done = skerry(model, "--init", "--data", "d.npz")  # a path as seen from here
    assert done.exit_code == 0, done.output
    recipe = parse_recipe((tmp_path / "models" / "m.toml").read_bytes())
    assert (recipe.metric.output, recipe.metric.name) == ("probabilities", "accuracy")
    assert recipe.classes.names == ["no", "yes"]
    done = skerry(tmp_path / "models" / "m.toml", "--out", tmp_path / "o", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["variants"][-1]["accuracy"] == 1.0


def test_names_with_quotes_and_line_ends_are_written_as_toml(tmp_path: Path) -> None:
    task = scales()
    for values in (task.model.graph.output, task.model.graph.node[-1].output):
        if values is task.model.graph.output:
            values[0].name = 'a "b"\\\n'
        else:
            values[0] = 'a "b"\\\n'
    text = starter_recipe(save(tmp_path / "m.onnx", task.model))
    assert parse_recipe(text.encode()).metric.output == 'a "b"\\\n'


def test_an_output_of_classes_is_measured_by_its_labels_and_a_value_by_its_error(
    tmp_path: Path,
) -> None:
    task = scales()
    node = helper.make_node("ArgMax", ["y"], ["class"], axis=1, keepdims=0)
    task.model.graph.node.append(node)
    del task.model.graph.output[:]
    task.model.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["n"]))
    recipe = parse_recipe(starter_recipe(save(tmp_path / "m.onnx", task.model)).encode())
    assert (recipe.metric.output, recipe.metric.name) == ("class", "accuracy")
    value = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        {"w": np.ones((6, 1), np.float32)},
        inputs=[("x", ("n", 6))], outputs=[("y", ("n", 1))],
    )  # fmt: skip
    recipe = parse_recipe(starter_recipe(save(tmp_path / "v.onnx", value), label="").encode())
    assert recipe.metric.name == "mae"
