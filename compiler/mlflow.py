"""Models from an MLflow registry, by its plain REST interface: the file, and where it came from.

    mlflow:models:/NAME@ALIAS     the version that an alias names
    mlflow:models:/NAME/VERSION   a version by its number

The server is `MLFLOW_TRACKING_URI`; `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and
`MLFLOW_TRACKING_PASSWORD`, say who asks. What the run knows becomes lineage: its id, the commit, the
digests of its data sets, its parameters and metrics. Tags tell the registry what was built.

Source: MLflow REST API 2.0, "Get Model Version By Alias", "Get Run", "Set Model Version Tag", and
the artifact proxy `mlflow-artifacts`.
"""

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from compiler.recipe import Card, LineageNotes, Source
from skerry.errors import FormatError, NotFoundError, RefusedError, UnreachableError, UsageError

__all__ = ["Fetched", "Registry", "parse_reference", "with_lineage"]

PREFIX: Final = "mlflow:"
API: Final = "/api/2.0/mlflow"
PROXY: Final = "/api/2.0/mlflow-artifacts/artifacts"
MAX_ANSWER_BYTES: Final = 16 << 20
MAX_MODEL_BYTES: Final = 1 << 30
TIMEOUT_S: Final = 60.0
_REFERENCE: Final = re.compile(
    r"mlflow:models:/(?P<name>[^/@:]{1,250})(?:@(?P<alias>[^/@:]{1,250})|/(?P<version>[0-9]{1,9}))"
)
COMMIT_TAG: Final = "mlflow.source.git.commit"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A version of a registry's model.

    Attributes:
        name: of the model there.
        version: its number there.
        run: id of the run that made it, empty where there is none.
        data: the ONNX file.
        commit: of the run's source.
        datasets: name -> digest, of the run's inputs.
        parameters: of the run.
        metrics: of the run.
    """

    name: str
    version: str
    run: str
    data: bytes
    commit: str
    datasets: Mapping[str, str]
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]


def parse_reference(text: str) -> tuple[str, str, str]:
    """Return name, alias and version of a reference; one of the last two is empty.

    Raises:
        UsageError: it is none.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise UsageError(
            f"expected mlflow:models:/NAME@ALIAS or mlflow:models:/NAME/VERSION, got {text[:200]!r}"
        )
    return found["name"], found["alias"] or "", found["version"] or ""


def with_lineage(source: Source, fetched: Fetched) -> Source:
    """Return a recipe whose lineage and card tell where its model came from."""
    recipe = source.recipe
    given = recipe.lineage.data
    said = given if isinstance(given, dict) else {"source": given} if given else {}
    data = said | {f"mlflow:{name}": digest for name, digest in fetched.datasets.items()}
    lineage = LineageNotes(
        data=data,
        run=f"mlflow:{fetched.name}/{fetched.version}, run {fetched.run}",
        git_commit=fetched.commit or recipe.lineage.git_commit,
    )
    rows = [*fetched.parameters.items(), *((k, f"{v:.6g}") for k, v in fetched.metrics.items())]
    told = "".join(f"- {name}: {value}\n" for name, value in rows)
    text = f"{recipe.card.text.rstrip()}\n\nThe training run said:\n\n{told}" if told else ""
    card = Card(text) if told else recipe.card
    changed = msgspec.structs.replace(recipe, lineage=lineage, card=card)
    return Source(changed, source.digest, source.folder)


class Registry:
    """An MLflow server."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Take the server's address and who asks from the environment.

        Raises:
            UsageError: there is no address.
        """
        url = environment.get("MLFLOW_TRACKING_URI", "")
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                "expected the address of an MLflow server in MLFLOW_TRACKING_URI, such as "
                f"http://127.0.0.1:5000; got {url[:120]!r}"
            )
        self._url = url.rstrip("/")
        self._headers: dict[str, str] = {}
        user = environment.get("MLFLOW_TRACKING_USERNAME", "")
        token = environment.get("MLFLOW_TRACKING_TOKEN", "")
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        elif user:
            word = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(word).decode()}"

    def fetch(self, reference: str) -> Fetched:
        """Return the version that a reference names, with its ONNX file.

        Raises:
            UsageError: no reference.
            NotFoundError: no such model, alias, version or ONNX file.
            RefusedError: the server does not let us.
            UnreachableError: no answer.
            FormatError: an answer that is none.
        """
        name, alias, version = parse_reference(reference)
        if alias:
            found = self._get(f"{API}/registered-models/alias", name=name, alias=alias)
        else:
            found = self._get(f"{API}/model-versions/get", name=name, version=version)
        entry = _table(found, "model_version")
        number, run = str(entry.get("version", version)), str(entry.get("run_id", ""))
        place = self._get(f"{API}/model-versions/get-download-uri", name=name, version=number)
        data = self._model(str(place.get("artifact_uri", "")))
        about = _table(self._get(f"{API}/runs/get", run_id=run), "run") if run else {}
        inside = about.get("data", {}) if isinstance(about.get("data"), dict) else {}
        tags = _pairs(inside.get("tags"))
        inputs = about.get("inputs", {}).get("dataset_inputs", []) if about else []
        return Fetched(
            name=name,
            version=number,
            run=run,
            data=data,
            commit=str(tags.get(COMMIT_TAG, "")),
            datasets={
                str(i["dataset"]["name"]): str(i["dataset"]["digest"])
                for i in inputs
                if isinstance(i, dict) and "dataset" in i
            },
            parameters={k: str(v) for k, v in sorted(_pairs(inside.get("params")).items())},
            metrics={k: float(v) for k, v in sorted(_pairs(inside.get("metrics")).items())},
        )

    def tag(self, fetched: Fetched, tags: Mapping[str, str]) -> None:
        """Write tags at the version that was fetched.

        Raises:
            SkerryError: as `fetch` does.
        """
        for key, value in tags.items():
            self._post(
                f"{API}/model-versions/set-tag",
                {"name": fetched.name, "version": fetched.version, "key": key, "value": value},
            )

    def _model(self, uri: str) -> bytes:
        """Return the one ONNX file below an artifact address that the server hands out itself."""
        if not uri.startswith("mlflow-artifacts:"):
            raise RefusedError(
                f"expected artifacts that the MLflow server serves itself (mlflow-artifacts:), they "
                f"are at {uri[:200]!r}; start it with --serve-artifacts, or download the model"
            )
        folder = uri.removeprefix("mlflow-artifacts:").lstrip("/")
        if ".." in folder.split("/"):
            raise FormatError(f"the MLflow server names {uri[:200]!r}, which leads elsewhere")
        listed = self._get(PROXY, path=folder).get("files", [])
        names = [
            str(file.get("path", "")).rsplit("/", 1)[-1]
            for file in listed
            if isinstance(file, dict) and str(file.get("path", "")).endswith(".onnx")
        ]
        if len(names) != 1:
            raise NotFoundError(
                f"expected one .onnx file in {uri}, found {', '.join(names) or 'none'}; log the "
                "model with mlflow.onnx.log_model"
            )
        return self._send(f"{PROXY}/{quote(folder)}/{quote(names[0])}", limit=MAX_MODEL_BYTES)

    def _get(self, place: str, /, **query: str) -> dict[str, Any]:
        return self._json(self._send(f"{place}?{urlencode(query)}"))

    def _post(self, path: str, body: Mapping[str, str]) -> dict[str, Any]:
        return self._json(self._send(path, body=json.dumps(body).encode()))

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise FormatError(f"expected JSON from {self._url}; is this an MLflow server?")
        return value

    def _send(
        self, path: str, *, body: bytes | None = None, limit: int = MAX_ANSWER_BYTES
    ) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            self._url + path,
            data=body,
            headers=self._headers | ({"Content-Type": "application/json"} if body else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                data: bytes = answer.read(limit + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = _message(error.read(MAX_ANSWER_BYTES))
            kind = NotFoundError if error.code == 404 else RefusedError
            raise kind(f"the MLflow server at {self._url} says: {said or error.code}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UnreachableError(
                f"no answer from the MLflow server at {self._url}: {reason}; is it running?"
            ) from None
        if len(data) > limit:
            raise FormatError(f"{self._url} answered with more than {limit} bytes")
        return data


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return ""


def _table(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = found.get(name)
    if not isinstance(value, dict):
        raise FormatError(f"expected {name} in the MLflow server's answer")
    return value


def _pairs(values: Any) -> dict[str, Any]:
    return {
        str(pair["key"]): pair.get("value", "")
        for pair in values or []
        if isinstance(pair, dict) and "key" in pair
    }
