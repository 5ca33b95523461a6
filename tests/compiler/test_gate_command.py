"""`skerry gate` tells a pipeline whether a candidate is worse than what is in service."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from compiler.build import Built
from compiler.cli_gate import gate
from tests.fakes.models import Task, linear, write_recipe

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / "docs" / "ci").glob("*.yml"))


def run(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(gate, [str(word) for word in words], env=environment)


@pytest.fixture
def service(built: Built, tmp_path: Path) -> Path:
    path = tmp_path / "shapes-1.0.0.skerry"
    path.write_bytes(built.bundle)
    return path


def candidate(folder: Path, task: Task, spoil: float = 0.0) -> Path:
    """The model in service, or one whose last layer is spoilt."""
    model = onnx.ModelProto()
    model.CopyFrom(task.model)
    last = next(t for t in model.graph.initializer if t.name == "w3")
    weights = numpy_helper.to_array(last)
    noise = np.random.default_rng(1).normal(0, weights.std() * spoil, weights.shape)
    last.CopyFrom(numpy_helper.from_array((weights + noise).astype(np.float32), "w3"))
    return write_recipe(
        folder / "candidate", Task(model, task.input, task.output, task.sets), version="1.1.0"
    )


def test_as_good_passes_with_a_report(service: Path, tmp_path: Path, shapes_task: Task) -> None:
    recipe = candidate(tmp_path, shapes_task)
    summary = tmp_path / "summary.md"
    done = run(
        recipe, "--against", service, "--report", tmp_path / "r", GITHUB_STEP_SUMMARY=str(summary)
    )
    assert done.exit_code == 0, done.output
    text = (tmp_path / "r" / "shapes-1.1.0-against-1.0.0.md").read_text()
    assert text.startswith("# shapes 1.1.0 passes\n")
    assert text == done.stdout == summary.read_text()
    found = json.loads((tmp_path / "r" / "shapes-1.1.0-against-1.0.0.json").read_text())
    assert found["outcome"] == "accepted"
    assert found["n"] == 240


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    service: Path, tmp_path: Path, shapes_task: Task
) -> None:
    recipe = candidate(tmp_path, shapes_task)
    nowhere = str(tmp_path / "nowhere" / "summary.md")
    done = run(recipe, "--against", service, GITHUB_STEP_SUMMARY=nowhere)
    assert done.exit_code == 0, done.output
    assert "skerry gate: cannot write the summary: " in done.stderr


def test_worse_fails_with_exit_code_6_and_its_report_is_there(
    service: Path, tmp_path: Path, shapes_task: Task
) -> None:
    recipe = candidate(tmp_path, shapes_task, spoil=8.0)
    done = run(recipe, "--against", service, "--report", tmp_path / "r", "--json")
    assert done.exit_code == 6
    assert "shapes 1.1.0 is worse than 1.0.0: accuracy" in done.stderr
    found = json.loads(done.stdout)
    assert found["outcome"] == "refused"
    assert found["drop"] > 0.02
    assert len(list((tmp_path / "r").iterdir())) == 2


def test_what_the_samples_do_not_decide_is_said(
    service: Path, tmp_path: Path, shapes_task: Task
) -> None:
    recipe = candidate(tmp_path, shapes_task)
    recipe.write_text(recipe.read_text().replace("max_drop = 0.02", "max_drop = 0.0001"))
    done = run(recipe, "--against", service)
    assert done.exit_code == 0
    assert "undecided" in done.stderr
    assert "samples would decide" in done.stderr
    assert run(recipe, "--against", service, "--strict").exit_code == 6


def test_models_that_cannot_be_compared_are_named(service: Path, tmp_path: Path) -> None:
    model = linear(np.array([[-4.0, 4.0], [0.0, 0.0]]))
    rows = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    labels = (rows[:, 0] > 0).astype(int)
    sets = {n: (rows + i, labels) for i, n in enumerate(("calibration", "evaluation", "baseline"))}
    recipe = write_recipe(tmp_path / "other", Task(model, "x", "y", sets))
    done = run(recipe, "--against", service)
    assert done.exit_code == 2
    assert "expected the inputs of shapes 1.0.0, image FP32 [-1, 1, 16, 16]" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--against", "1.0.0"), 2, "give --fleet, or set SKERRY_FLEET"),
        (("--against", "none.skerry"), 3, "expected a bundle at none.skerry"),
        (("--against", "1.0.0", "--fleet", "http://127.0.0.1:9"), 8, "no answer from the fleet"),
    ],
)
def test_a_version_that_cannot_be_had_is_told(
    tmp_path: Path, shapes_task: Task, words: tuple[str, ...], code: int, message: str
) -> None:
    done = run(candidate(tmp_path, shapes_task), *words, SKERRY_TOKEN="t", SKERRY_FLEET="")
    assert done.exit_code == code
    assert message in done.stderr


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_runs_commands_that_there_are(
    path: Path, service: Path, tmp_path: Path, shapes_task: Task
) -> None:
    commands = re.findall(r"^\s*-?\s*(?:run:)?\s*(skerry .*)$", path.read_text(), re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["gate", "build"]
    words = shlex.split(commands[0])[2:]
    recipe = candidate(tmp_path, shapes_task)
    given = {"model/recipe.toml": str(recipe), "latest": str(service)}
    done = run(*(given.get(word, word) for word in words), "--report", tmp_path / "r")
    assert done.exit_code == 0, done.output
