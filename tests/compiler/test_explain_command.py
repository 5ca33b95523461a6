"""`skerry explain` says what spoke for an answer, of a picture or of a row."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import helper

from compiler.build import Built, build
from compiler.cli_explain import explain
from compiler.recipe import read_recipe
from tests.compiler.conftest import NOW
from tests.fakes.models import Task, graph, write_recipe


def run(*words: object) -> Result:
    return CliRunner().invoke(explain, [str(word) for word in words])


@pytest.fixture
def pictures(built: Built, shapes_task: Task, tmp_path: Path) -> tuple[Path, Path]:
    bundle, data = tmp_path / "a.skerry", tmp_path / "some.npz"
    bundle.write_bytes(built.bundle)
    np.savez(data, image=shapes_task.sets["evaluation"][0][:5])
    return bundle, data


def test_a_picture_gets_a_map(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    done = run(*pictures, "--sample", 2, "--patch", 4, "--out", page)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(page)
    assert page.read_text().count("<rect") == 16 * 16 + 4 * 4
    assert "y of class" in done.stderr
    found = json.loads(run(*pictures, "--patch", 4, "--json").stdout)
    assert found["shape"] == [4, 4]
    assert len(found["values"]) == 16


def test_another_class_may_be_asked_for(pictures: tuple[Path, Path]) -> None:
    found = json.loads(run(*pictures, "--class", "2", "--json").stdout)
    assert found["class"] == 2
    refused = run(*pictures, "--class", "9")
    assert refused.exit_code == 2
    assert "expected a class of 0, 1, 2, 3, got '9'" in refused.output


def test_one_of_several_inputs_is_explained_at_the_others_values(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m"),
        helper.make_node("MatMul", ["z", "v"], ["b"], name="k"),
        helper.make_node("Mul", ["a", "b"], ["y"], name="times"),
    ]
    weights = {
        "w": np.array([[1.0], [2.0], [0.0]], np.float32), "v": np.array([[1.0], [-1.0]], np.float32),
    }  # fmt: skip
    model = graph(
        nodes, weights, inputs=[("x", ("n", 3)), ("z", ("n", 2))], outputs=[("y", ("n", 1))]
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    rng = np.random.default_rng(2)
    sets = {
        "x": rng.normal(size=(200, 3)).astype(np.float32),
        "z": rng.normal(size=(200, 2)).astype(np.float32),
    }
    sets["x"][0], sets["z"][0] = (1.0, 1.0, 1.0), (3.0, 1.0)
    np.savez(tmp_path / "data.npz", **sets)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[model]\nname = "two"\nversion = "1.0.0"\nfile = "model.onnx"\n[data]\n'
        'calibration = "data.npz[:50]"\nevaluation = "data.npz"\nbaseline = "data.npz"\n'
        '[metric]\nname = "mae"\noutput = "y"\n[precisions]\ntry = ["fp32"]\n'
    )
    bundle = tmp_path / "two.skerry"
    bundle.write_bytes(build(read_recipe(recipe), now=NOW).bundle)
    np.savez(tmp_path / "rest.npz", x=np.zeros((4, 3), np.float32))
    given = (bundle, tmp_path / "data.npz", "--background", tmp_path / "rest.npz")
    asked = run(*given, "--json")
    assert asked.exit_code == 2
    assert "the model has the inputs x, z; say which to explain with --input" in asked.output
    assert run(*given, "--input", "q").exit_code == 2
    found = json.loads(run(*given, "--input", "x", "--json").stdout)
    # (1 x0 + 2 x1 + 0 x2) times 3 - 1, from x of zeros
    assert found["values"] == pytest.approx([2.0, 4.0, 0.0], abs=1e-5)
    assert (found["answer"], found["usual"]) == pytest.approx((6.0, 0.0), abs=1e-5)


def test_a_row_gets_a_share_for_each_feature(scales_task: Task, tmp_path: Path) -> None:
    made = build(read_recipe(write_recipe(tmp_path / "r", scales_task, min_value=0.0)), now=NOW)
    bundle, data = tmp_path / "a.skerry", tmp_path / "rows.npz"
    bundle.write_bytes(made.bundle)
    np.savez(data, x=scales_task.sets["evaluation"][0][:30])
    found = json.loads(run(bundle, data, "--json").stdout)
    assert found["values"][1] == pytest.approx(0.0, abs=1e-6)  # the large number decides nothing
    assert sum(found["values"]) == pytest.approx(found["answer"] - found["usual"], abs=1e-6)
    page = tmp_path / "w.html"
    assert run(bundle, data, "--out", page).exit_code == 0
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--sample", "7"), 2, "expected a sample of 0 to 4, got 7"),
        (("--patch", "0"), 2, "x>=1"),
        (("--background", "none.npz"), 0, ""),  # a picture needs none
    ],
)
def test_what_cannot_be_explained_is_told(
    pictures: tuple[Path, Path], words: tuple[str, ...], code: int, message: str
) -> None:
    done = run(*pictures, *words)
    assert (done.exit_code, message in done.output) == (code, True)


def test_data_of_another_shape_is_named(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", image=np.ones((3, 1, 8, 8), np.float32))
    done = run(pictures[0], tmp_path / "odd.npz")
    assert done.exit_code == 2
    assert "expected samples of float32 [1, 16, 16]" in done.output
