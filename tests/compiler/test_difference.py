"""Two bundles are compared topic by topic, and one with itself differs in nothing."""

import io
import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from compiler.build import Built, build
from compiler.cli_diff import diff
from compiler.difference import difference
from compiler.recipe import read_recipe
from skerry.bundle import read_bundle
from skerry.manifest import FileRef
from tests.compiler.conftest import NOW
from tests.fakes.models import Task, shapes, write_recipe


def other(folder: Path, task: Task) -> Built:
    """A wider network on darker images."""
    wide = shapes(channels=40)
    rows, labels = task.sets["baseline"]
    sets = {**task.sets, "baseline": ((rows * 0.5).astype(np.float32), labels)}
    return build(
        read_recipe(write_recipe(folder, Task(wide.model, "image", "y", sets), version="1.1.0")),
        now=NOW,
    )


def test_what_differs_is_told_by_topic(built: Built, shapes_task: Task, tmp_path: Path) -> None:
    made = other(tmp_path, shapes_task)
    found = difference(read_bundle(io.BytesIO(built.bundle)), read_bundle(io.BytesIO(made.bundle)))
    assert found.schema == []
    assert [c.what for c in found.graph] == ["parameters"]
    assert {c.what for c in found.size} == {"int8-cpu", "fp32-cpu"}
    level = next(c for c in found.baseline if c.what.startswith("level"))
    assert "moved by" in level.what
    assert any(c.what == "data baseline" for c in found.lineage)


def test_a_bundle_differs_from_itself_in_nothing(built: Built, tmp_path: Path) -> None:
    bundle = read_bundle(io.BytesIO(built.bundle))
    assert difference(bundle, bundle).topics == {}
    path = tmp_path / "a.skerry"
    path.write_bytes(built.bundle)
    done = CliRunner().invoke(diff, [str(path), str(path)])
    assert (done.exit_code, "no difference" in done.output) == (0, True)


def test_the_command_prints_tables_or_json(built: Built, shapes_task: Task, tmp_path: Path) -> None:
    for name, one in (("a", built), ("b", other(tmp_path / "m", shapes_task))):
        (tmp_path / f"{name}.skerry").write_bytes(one.bundle)
    words = [str(tmp_path / "a.skerry"), str(tmp_path / "b.skerry")]
    said = CliRunner().invoke(diff, words).output
    assert "parameters" in said
    assert "shapes 1.1.0" in said
    assert json.loads(CliRunner().invoke(diff, [*words, "--json"]).stdout)["schema"] == []


def test_the_bill_of_materials_names_models_and_data(built: Built) -> None:
    bundle = read_bundle(io.BytesIO(built.bundle))
    reference = built.manifest.bom
    assert isinstance(reference, FileRef)
    bom = json.loads(bundle.blobs[reference.digest])
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    kinds = [component["type"] for component in bom["components"]]
    assert kinds.count("machine-learning-model") == 2
    assert {c["name"] for c in bom["components"] if c["type"] == "data"} >= {
        "calibration", "evaluation", "baseline",
    }  # fmt: skip
    refs = [component["bom-ref"] for component in bom["components"]]
    assert len(set(refs)) == len(refs)
    digest = built.manifest.variants[0].file.digest.removeprefix("sha256:")
    assert any(digest == h["content"] for c in bom["components"] for h in c.get("hashes", []))
