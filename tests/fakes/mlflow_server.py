"""A real MLflow server on loopback, with one registered model, made by its REST interface alone."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakes.programs import find_program


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


API = "/api/2.0/mlflow"
START_S = 90.0


class MlflowServer:
    """Talks to the server as a training script would."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, body: object = None, *, raw: bytes | None = None) -> dict[str, Any]:
        """Send JSON, or bytes by PUT; return the answer."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method="PUT" if raw is not None else None,
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
            return found

    def register(self, name: str, model: bytes) -> str:
        """Make a run with an ONNX artifact, register it, alias it `champion`; return the run."""
        now = int(time.time() * 1000)
        made = self.call(
            f"{API}/runs/create",
            {
                "experiment_id": "0",
                "start_time": now,
                "tags": [{"key": "mlflow.source.git.commit", "value": "abc123"}],
            },
        )
        run = made["run"]["info"]["run_id"]
        uri: str = made["run"]["info"]["artifact_uri"]
        self.call(f"{API}/runs/log-parameter", {"run_id": run, "key": "depth", "value": "3"})
        self.call(
            f"{API}/runs/log-metric",
            {"run_id": run, "key": "accuracy", "value": 0.97, "timestamp": now},
        )
        self.call(
            f"{API}/runs/log-inputs",
            {
                "run_id": run,
                "datasets": [
                    {"dataset": {
                        "name": "shapes", "digest": "d41d8c", "source_type": "local", "source": "{}",
                    }}
                ],
            },
        )  # fmt: skip
        place = uri.removeprefix("mlflow-artifacts:").lstrip("/")
        self.call(f"/api/2.0/mlflow-artifacts/artifacts/{place}/model/model.onnx", raw=model)
        self.call(f"{API}/registered-models/create", {"name": name})
        self.call(
            f"{API}/model-versions/create",
            {"name": name, "source": f"{uri}/model", "run_id": run},
        )
        self.call(
            f"{API}/registered-models/alias", {"name": name, "alias": "champion", "version": "1"}
        )
        return str(run)

    def tags(self, name: str, version: str) -> dict[str, str]:
        """Return the tags of a version."""
        found = self.call(f"{API}/model-versions/get?name={name}&version={version}")
        return {tag["key"]: tag["value"] for tag in found["model_version"].get("tags", [])}


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Start a server that keeps everything in a folder."""
    program = find_program("mlflow")
    assert program is not None
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        str(program), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "MLflow did not start"
                time.sleep(0.2)
        yield MlflowServer(url)
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)
