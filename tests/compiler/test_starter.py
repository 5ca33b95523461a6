"""A model that nobody prepared goes through `skerry build --init` and `skerry build`."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from compiler.cli import build
from compiler.recipe import parse_recipe
from compiler.starter import starter_recipe
from tests.compiler.test_kinds import listener, pair
from tests.fakes.models import Task, scales, shapes


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
        (("none.onnx", "--init"), 1, "expected a model file"),
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
