"""A model comes from a real MLflow registry with its lineage, and tags go back."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from compiler.cli import build
from compiler.mlflow import parse_reference
from skerry.bundle import read_bundle
from skerry.errors import UsageError
from tests.fakes.mlflow_server import MlflowServer, mlflow_server
from tests.fakes.models import shapes, write_recipe


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as made:
        made.register("shapes", shapes().model.SerializeToString())
        yield made


def run(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(build, [str(word) for word in words], env=environment)


@pytest.mark.mlflow
def test_a_model_comes_with_its_run_and_the_registry_is_told(
    server: MlflowServer, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, shapes())
    (tmp_path / "model.onnx").unlink()
    done = run(
        recipe, "--from", "mlflow:models:/shapes@champion", "--out", tmp_path / "out", "--json",
        MLFLOW_TRACKING_URI=server.url,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    bundle = read_bundle(io.BytesIO(Path(said["bundle"]).read_bytes()))
    lineage = bundle.manifest.lineage
    assert lineage.run.startswith("mlflow:shapes/1, run ")
    assert lineage.git_commit == "abc123"
    assert lineage.data["mlflow:shapes"] == "d41d8c"
    card = bundle.blobs[bundle.manifest.card.digest].decode()
    assert "- depth: 3" in card
    assert "- accuracy: 0.97" in card
    tags = server.tags("shapes", "1")
    assert tags["skerry.bundle"] == said["digest"]
    assert tags["skerry.first_choice"] == "int8-cpu"


@pytest.mark.mlflow
@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("mlflow:models:/shapes@nobody", 4, "says: "),
        ("mlflow:models:/none/1", 3, "none"),
        ("mlflow:models:/shapes/9", 3, "9"),
    ],
)
def test_what_the_registry_does_not_have_is_told(
    server: MlflowServer, tmp_path: Path, reference: str, code: int, message: str
) -> None:
    recipe = write_recipe(tmp_path, shapes())
    done = run(recipe, "--from", reference, "--out", tmp_path / "o", MLFLOW_TRACKING_URI=server.url)
    assert (done.exit_code, message in done.output) == (code, True), done.output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"MLFLOW_TRACKING_URI": ""}, 2, "the address of an MLflow server in MLFLOW_TRACKING_URI"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, 8, "no answer from the MLflow server"),
    ],
)
def test_a_server_that_is_not_there_is_told(
    tmp_path: Path, environment: dict[str, str], code: int, message: str
) -> None:
    recipe = write_recipe(tmp_path, shapes())
    done = run(
        recipe, "--from", "mlflow:models:/shapes@champion", "--out", tmp_path / "o", **environment
    )
    assert (done.exit_code, message in done.output) == (code, True)


@pytest.mark.parametrize(
    "text",
    ["", "mlflow:", "models:/a@b", "mlflow:models:/a", "mlflow:models:/a/b/1", "mlflow:models:/a@"],
)
def test_other_references_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected mlflow:models:/NAME@ALIAS"):
        parse_reference(text)


def test_both_forms_of_a_reference() -> None:
    assert parse_reference("mlflow:models:/a b@champion") == ("a b", "champion", "")
    assert parse_reference("mlflow:models:/a/12") == ("a", "", "12")
