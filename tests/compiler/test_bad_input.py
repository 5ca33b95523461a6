"""What people really hand in by mistake: one clear error, the right exit code, nothing written."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler import cli, command
from compiler.command import check_place, write_file
from compiler.data import entry_point, read_data
from compiler.metrics import check_labels, predictions
from compiler.recipe import Metric
from skerry.errors import FormatError, NotFoundError, SkerryError, UsageError
from tests.fakes.models import graph

RNG = np.random.default_rng(61)
WEIGHTS = RNG.normal(size=(6, 3)).astype(np.float32)


def model(**options: Any) -> onnx.ModelProto:
    return graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": WEIGHTS},
        inputs=[("x", ("n", 6))], outputs=[("y", ("n", 3))], **options,
    )  # fmt: skip


def samples(n: int = 120) -> dict[str, NDArray[Any]]:
    x = RNG.normal(size=(n, 6)).astype(np.float32)
    return {"x": x, "label": (x @ WEIGHTS).argmax(axis=1)}


def recipe(
    folder: Path, *, evaluation: Mapping[str, Any] | None = None, metric: str = "accuracy",
    more: str = "", code: str = "",
) -> Path:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model(), folder / "m.onnx")
    np.savez(folder / "c.npz", **samples())
    np.savez(folder / "e.npz", **samples() | dict(evaluation or {}))
    (folder / "mine.py").write_text(code)
    path = folder / "m.toml"
    path.write_text(
        '[model]\nname = "thing"\nversion = "1.0.0"\nfile = "m.onnx"\n'
        '[data]\ncalibration = "c.npz"\nevaluation = "e.npz"\nbaseline = "c.npz"\n'
        f'[metric]\nname = "{metric}"\noutput = "y"\n[precisions]\ntry = []\n{more}'
    )
    return path


def build(path: Path, *words: Any) -> Result:
    given = [str(path), "--out", str(path.parent / "out"), *map(str, words)]
    return CliRunner().invoke(cli.build, given)


def told(path: Path, code: int, message: str) -> None:
    """The build ends with one line, that exit code, and nothing written."""
    done = build(path)
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit)
    assert message in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not list(path.parent.glob("out/*"))


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": np.array(3)}, "expected one entry of 'label' per sample, it is a single one"),
        ({"label": np.array(["a"] * 120)}, "text is looked up in classes.names"),
        ({"x": np.full((120, 6), 1e300)}, "expected numbers that float32 can hold"),
    ],
)
def test_arrays_that_cannot_be_are_named(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    told(recipe(tmp_path, evaluation=arrays), 2, message)


def test_nan_in_the_evaluation_is_told_with_its_sample(tmp_path: Path) -> None:
    x = samples()["x"]
    x[5, 2] = np.nan
    message = "input 'x' has NaN or infinity in 1 of them, first in sample 5"
    told(recipe(tmp_path, evaluation={"x": x}), 2, message)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.zeros((120, 2)), "expected one group per sample, 'site' is [120, 2]"),
        (np.where(np.arange(120) % 3, 1.0, np.nan), "'site' has NaN or infinity"),
        (np.array(2), "it is a single one"),
    ],
)
def test_groups_that_are_none_are_named(tmp_path: Path, groups: NDArray[Any], message: str) -> None:
    more = '[gate.slices.by]\narray = "site"\n'
    told(recipe(tmp_path, evaluation={"site": groups}, more=more), 2, message)


def test_a_measurement_is_no_group(tmp_path: Path) -> None:
    arrays = samples(600) | {"site": np.arange(600) / 7}
    more = '[gate.slices.by]\narray = "site"\n'
    told(recipe(tmp_path, evaluation=arrays, more=more), 2, "at most 500 groups, 'site' has 600")


def test_a_metric_that_a_group_does_not_have_is_told_unless_the_group_is_small(
    tmp_path: Path,
) -> None:
    arrays = samples()
    arrays["site"] = np.where(arrays["label"] == 0, "a", "b")  # one class in each of them
    arrays["label"] = (arrays["label"] == 0).astype(int)
    more = '[gate.slices.by]\narray = "site"\n'
    path = recipe(tmp_path / "a", metric="auc", evaluation=arrays, more=more)
    told(path, 4, "gate.slices.by, group 'a' (n=")
    path = recipe(
        tmp_path / "b", metric="auc", evaluation=arrays, more=more + "min_samples = 200\n"
    )
    assert build(path).exit_code == 0


def test_an_archive_with_another_file_in_it_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(FormatError, match=r"'notes\.txt' is no array"):
        read_data("a.npz", tmp_path)


def test_a_damaged_array_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "x.npy", np.arange(100))
    file = tmp_path / "d" / "x.npy"
    file.write_bytes(file.read_bytes().replace(b"(100,)", b"(9**9,"))
    with pytest.raises(FormatError, match=r"x\.npy is none"):
        read_data("d", tmp_path)


def test_times_have_a_digest(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3), at=np.array(["2026-11-23"] * 3, "datetime64[s]"))
    assert read_data("a.npz", tmp_path).digest.startswith("sha256:")


def test_whole_numbers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    given = model()
    given.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    cast = helper.make_node("Cast", ["x"], ["f"], name="cast", to=TensorProto.FLOAT)
    given.graph.node[0].input[0] = "f"
    given.graph.node.insert(0, cast)
    path = recipe(tmp_path, evaluation={"x": np.full((120, 6), 1 << 40)})
    np.savez(tmp_path / "c.npz", **samples() | {"x": np.ones((120, 6), int)})
    onnx.save(given, tmp_path / "m.onnx")
    told(path, 2, f"expected numbers that int32 can hold for input 'x', got {1 << 40}")


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "output", "labels", "message"),
    [
        (Metric("y", name="mae"), np.ones((3, 1)), np.array([1.0, np.nan, 2.0]), "of sample 1"),
        (Metric("y", name="auc"), np.ones((3, 1)), np.array([1, 2, 1]), "labels of 0 to 1"),
        (Metric("y", name="auc"), np.ones((3, 1)), np.array([-1, 1, 1]), "labels of 0 to 1"),
        (Metric("y", name="auc"), np.ones((3, 4)), np.eye(3, 4), "whole-number labels"),
        (Metric("y", name="f1", postprocess="threshold"), np.ones((3, 1)), np.array([0, 2, 1]),
         "labels of 0 and 1"),
        (Metric("y", name="cosine"), np.ones((3, 1)), None, "has one value per sample"),
        (Metric("y", name="top_k"), np.ones((3, 1), int), np.ones(3, int), "gives classes"),
        (Metric("y", postprocess="none"), np.ones((3, 2)), np.ones(3, int),
         "is for outputs that are classes"),
    ],
)  # fmt: skip
def test_labels_that_would_mislead_a_metric_are_refused(
    metric: Metric, output: NDArray[Any], labels: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_labels(metric, output, labels)


def test_an_output_of_classes_is_read_as_it_is() -> None:
    classes = np.array([0, 2, 1])
    for given in (Metric("y"), Metric("y", name="agreement"), Metric("y", postprocess="none")):
        assert predictions(classes, given).tolist() == [0, 2, 1]
    check_labels(Metric("y"), classes, classes)


def test_labels_of_text_are_places_among_the_names(tmp_path: Path) -> None:
    arrays = samples()
    arrays["label"] = np.array(["cat", "dog", "eel"])[arrays["label"]]
    path = recipe(tmp_path, evaluation=arrays, more='[classes]\nnames = ["cat", "dog", "eel"]\n')
    done = build(path, "--json")
    assert json.loads(done.stdout)["variants"][0]["accuracy"] == 1.0
    path.write_text(path.read_text().replace("eel", "elk"))
    done = build(path)
    assert done.exit_code == 2
    assert "expected labels of classes.names (cat, dog, elk); 'label' has 'eel' too" in done.stderr


# --- functions of the recipe's own --------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("def f(o, l):\n    raise ValueError('boom')\n", 2, "the metric f raised ValueError: boom"),
        ("def f(o, l):\n    return float('nan')\n", 2, "one finite number, or one per sample (120); got nan"),
        ("def f(o, l):\n    return 'good'\n", 2, "got 'good'"),
        ("def f(o, l):\n    return None\n", 2, "got None"),
        ("def f(o, l):\n    return [[1], [1, 2]]\n", 2, "the metric f raised ValueError"),
        ("def f(o):\n    return 1.0\n", 2, "it is called with the output and the labels"),
        ("import sys\ndef f(o, l):\n    sys.exit(3)\n", 2, "it ends the program: sys.exit(3)"),
        ("import sys\nsys.exit('usage: mine')\n", 2, "mine cannot be imported: RuntimeError"),
        ("import pandaz\n", 2, "mine cannot be imported: ModuleNotFoundError: No module named 'pandaz'"),
        ("def f(o, l) return 1\n", 2, "mine cannot be imported: SyntaxError"),
        ("x = 1\n", 3, "expected a function 'f' in mine, there is none"),
    ],
)  # fmt: skip
def test_a_metric_of_ones_own_that_fails_is_told(
    tmp_path: Path, code: str, status: int, message: str
) -> None:
    told(recipe(tmp_path, metric="mine:f", code=code), status, message)


def test_what_a_function_prints_is_not_among_the_data(tmp_path: Path) -> None:
    code = "def f(o, l):\n    print('hello')\n    return float((o.argmax(1) == l).mean())\n"
    done = build(recipe(tmp_path, metric="mine:f", code=code), "--json")
    assert json.loads(done.stdout)["metric"] == "mine:f"


def test_a_module_with_data_classes_is_imported(tmp_path: Path) -> None:
    (tmp_path / "kinds_of_mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int = 3\ndef f():\n    return A().x\n"
    )
    assert entry_point("kinds_of_mine:f", tmp_path)() == 3


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (":f", UsageError, "expected module:function"),
        ("mine:", UsageError, "expected module:function"),
        ("nobody:f", NotFoundError, "there is no file"),
        ("mine:empty", UsageError, "it yields none"),
    ],
)
def test_a_data_function_that_is_none_is_told(
    tmp_path: Path, given: str, error: type[SkerryError], message: str
) -> None:
    (tmp_path / "mine.py").write_text("def empty():\n    return iter([])\n")
    with pytest.raises(error, match=message):
        read_data(given, tmp_path)


# --- models -------------------------------------------------------------------------------------


def test_a_model_that_the_converter_cannot_raise_is_told(tmp_path: Path) -> None:
    given = model(opset=7)
    given.ir_version = 3  # of which every weight must be an input too
    path = recipe(tmp_path)
    onnx.save(given, tmp_path / "m.onnx")
    told(path, 4, "opset 7 cannot be raised to 17")


@pytest.mark.parametrize("field", ["input", "output"])
def test_a_model_that_takes_or_gives_nothing_is_told(tmp_path: Path, field: str) -> None:
    given = model()
    if field == "input":
        given.graph.node[0].input[0] = "w2"
        given.graph.initializer.append(
            onnx.numpy_helper.from_array(np.ones((2, 6), np.float32), "w2")
        )
    given.graph.ClearField(field)
    onnx.save(given, tmp_path / "m.onnx")
    done = CliRunner().invoke(cli.build, [str(tmp_path / "m.onnx"), "--init"])
    assert done.exit_code == 4
    assert "expected a model with inputs and outputs" in done.stderr


# --- places -------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path)
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr(cli, "run_build", lambda *_a, **_k: pytest.fail("it was built first"))
    done = build(path)
    assert done.exit_code == 2
    assert "expected a directory that you may write to" in done.stderr
    with pytest.raises(UsageError):
        check_place(tmp_path / "out" / "deeper")
    check_place(tmp_path / "new" / "deeper")
    assert not (tmp_path / "new").exists()


def test_an_emulator_that_there_is_not_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "run_build", lambda *_a, **_k: pytest.fail("it was built first"))
    done = build(recipe(tmp_path), "--emulate", "sparc")
    assert done.exit_code == 2


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path)

    def full(*_a: object, **_k: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(cli, "run_build", full)
    told(path, 1, "the system refused: /tmp/x: No space left on device")


def test_an_interruption_leaves_no_part_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.skerry", b"x" * 100)
    assert list(tmp_path.iterdir()) == []
