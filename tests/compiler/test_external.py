"""Tensors beside a model are folded in from the one file that the recipe names, or refused."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from compiler.build import build
from compiler.external import fold_external
from compiler.recipe import read_recipe
from skerry.errors import FormatError, NotFoundError, RefusedError
from tests.compiler.conftest import NOW
from tests.fakes.models import Task, write_recipe

NAME = "model.onnx.data"


@pytest.fixture
def folder(shapes_task: Task, tmp_path: Path) -> Path:
    """A recipe whose model keeps its tensors in `model.onnx.data`."""
    write_recipe(tmp_path, shapes_task)
    model = onnx.load_model(tmp_path / "model.onnx")
    external_data_helper.convert_model_to_external_data(
        model, location=NAME, size_threshold=256, convert_attribute=False
    )
    onnx.save_model(model, tmp_path / "model.onnx")
    return tmp_path


def name_it(folder: Path, name: str = NAME) -> Path:
    path = folder / "recipe.toml"
    text = path.read_text()
    path.write_text(
        text.replace('file = "model.onnx"', f'file = "model.onnx"\nexternal_data = "{name}"')
    )
    return path


def test_a_model_of_two_files_ships_as_one(folder: Path, shapes_task: Task) -> None:
    made = build(read_recipe(name_it(folder)), now=NOW)
    assert any("folded in" in note for note in made.record.notes)
    assert made.record.variants[-1].accuracy is not None
    given = len(shapes_task.model.SerializeToString())
    assert made.record.variants[-1].bytes == pytest.approx(given, rel=0.02)


def test_unnamed_it_is_refused_as_before(folder: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        build(read_recipe(folder / "recipe.toml"), now=NOW)
    assert refused.value.code == "external_data"


def test_no_other_file_is_read(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    (folder / "other").write_bytes(b"x" * 100_000)
    with pytest.raises(RefusedError, match="the recipe names 'other' alone"):
        fold_external(data, folder, "other")


@pytest.mark.parametrize("name", ["../model.onnx.data", "/etc/passwd", ".", "", "a/b"])
def test_a_path_is_no_name(folder: Path, name: str) -> None:
    with pytest.raises(RefusedError, match="the name of a file beside the model"):
        fold_external((folder / "model.onnx").read_bytes(), folder, name)


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "pipe", "folder"])
def test_a_link_or_no_file_is_refused(folder: Path, kind: str) -> None:
    real, data = folder / NAME, (folder / "model.onnx").read_bytes()
    kept = folder / "kept"
    real.rename(kept)
    if kind == "symlink":
        real.symlink_to(kept)
    elif kind == "hardlink":
        os.link(kept, real)
    elif kind == "pipe":
        os.mkfifo(real)
    else:
        real.mkdir()
    with pytest.raises(RefusedError, match="plain file") as refused:
        fold_external(data, folder, NAME)
    assert refused.value.code == "external_data"


def test_a_file_that_was_cut_is_named(folder: Path) -> None:
    path = folder / NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"is not in model\.onnx\.data"):
        fold_external((folder / "model.onnx").read_bytes(), folder, NAME)
    path.unlink()
    with pytest.raises(NotFoundError, match="there is no file"):
        fold_external((folder / "model.onnx").read_bytes(), folder, NAME)


def test_the_folded_model_answers_as_the_whole_one(folder: Path, shapes_task: Task) -> None:
    folded = onnx.load_model_from_string(
        fold_external((folder / "model.onnx").read_bytes(), folder, NAME)
    )
    whole = {t.name: onnx.numpy_helper.to_array(t) for t in shapes_task.model.graph.initializer}
    for tensor in folded.graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), whole[tensor.name])
