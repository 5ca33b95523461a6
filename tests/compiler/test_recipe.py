"""A recipe says what it means, or is refused with the key that is wrong."""

from pathlib import Path

import pytest

from compiler.materials import gather
from compiler.recipe import load_profile, parse_recipe, read_recipe
from skerry.canonical import sha256
from skerry.errors import NotFoundError, UsageError
from tests.fakes.models import RECIPE

ROOT = Path(__file__).resolve().parents[2]
TEXT = RECIPE.format(
    name="shapes", version="1.0.0", input="x", output="y", max_drop=0.01, min_value=0.9,
    max_latency_ratio=0.95, features='level = "mean"',
)  # fmt: skip


def parse(old: str = "", new: str = "") -> object:
    assert old in TEXT
    return parse_recipe(TEXT.replace(old, new, 1).encode(), "r.toml")


def test_a_recipe_comes_back_as_it_was_written() -> None:
    recipe = parse_recipe(TEXT.encode())
    assert (recipe.model.name, recipe.model.version) == ("shapes", "1.0.0")
    assert recipe.gate.max_latency_ratio == 0.95
    assert recipe.precisions.try_ == ["int8"]
    assert recipe.features == {"level": "mean"}


def test_what_is_left_out_has_a_value() -> None:
    short = "\n".join(TEXT.split("[gate]")[0].splitlines())
    recipe = parse_recipe(short.encode())
    assert (recipe.gate.max_drop, recipe.gate.min_value) == (0.01, None)
    assert recipe.gate.latency_ratio == 0.95
    assert recipe.precisions.try_ == "auto"
    assert recipe.classes.names == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_drop", "max_dorp", "unknown key 'gate.max_dorp'; did you mean gate.max_drop?"),
        ("[precisions]", "[precision]", "unknown key 'precision'; did you mean precisions?"),
        ("[card]", "[zzz]", "unknown key 'zzz'; known: model, data"),
        ('file = "model.onnx"', "", "missing required field `file`"),
        ("max_drop = 0.01", 'max_drop = "small"', "Expected `float`, got `str`"),
        ("max_drop = 0.01", "max_drop = -1", "a gate whose max_drop is 0 or more"),
        ('"accuracy"', '"beauty"', "metric.name takes accuracy, top_k"),
        ('"int8"', '"int3"', 'precisions.try takes "auto" or a list of int8'),
        ('"mean"', '"image.smell"', "expected a feature kind of"),
        ('name = "shapes"', 'name = "My Model"', "expected a model name"),
        ('"1.0.0"', '"one"', "expected a model version"),
        ("[model]", "[model", "expected TOML"),
        ("[gate]", "[inputs.x]\nbacth = false\n[gate]", "did you mean inputs.x.batch?"),
        ("[gate]", "[gate]\nmax_value = 0.1", "expected gate.min_value, got gate.max_value"),
        (
            "[gate]",
            '[gate.slices.w]\narray = "w"\nmax_dorp = 1.0\n[gate]',
            "gate.slices.w.max_drop",
        ),
        ('name = "accuracy"', 'name = "top_k"\nk = 0', "metric.k of at least 1"),
        ("[card]", "[search]\nmax_seconds = 0\n[card]", "a search of at least one evaluation"),
    ],
)
def test_a_wrong_recipe_names_the_key(old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError) as wrong:
        parse(old, new)
    assert message in str(wrong.value)


def test_a_missing_file_is_named_with_its_key(recipe_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "recipe.toml"
    copy.write_bytes(recipe_path.read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(NotFoundError, match=r"data\.calibration names 'calibration\.npz'"):
        gather(read_recipe(copy))
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(NotFoundError, match=r"model\.file names 'model\.onnx'"):
        read_recipe(copy)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read_recipe(tmp_path / "none.toml")


def test_the_digest_is_of_the_recipes_bytes(recipe_path: Path) -> None:
    assert read_recipe(recipe_path).digest == sha256(recipe_path.read_bytes())


@pytest.mark.parametrize("path", sorted((ROOT / "devices/profiles").glob("*.toml")))
def test_every_device_profile_reads(path: Path) -> None:
    profile = load_profile(path)
    assert profile.platform.startswith("linux-")
    assert "CPUExecutionProvider" in profile.providers


def test_a_misspelt_profile_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('id = "p"\nplattform = "linux-x86_64"\n')
    with pytest.raises(UsageError, match="did you mean platform"):
        load_profile(path)
