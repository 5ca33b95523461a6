"""Starts the servers, each in its environment, and knows how each is asked for a prediction."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.serving.environments import environment
from benchmarks.serving.models import Case
from benchmarks.serving.process import end, memory_kib, tree

APPS = Path(__file__).resolve().parent / "apps"
ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0

__all__ = ["FORMS", "PEERS", "Agent", "Bare", "Peer", "message"]

PEERS = ("floor", "fastapi", "mlserver", "bentoml", "litserve")
FORMS = {  # the forms in which each takes a tensor over HTTP
    "skerry": ("binary", "json"),
    "floor": ("binary",),
    "fastapi": ("binary", "json"),
    "mlserver": ("json",),
    "bentoml": ("json",),
    "litserve": ("json",),
}
READY = {
    "skerry": "/v2/health/ready",
    "fastapi": "/v2/health/ready",
    "mlserver": "/v2/health/ready",
    "bentoml": "/readyz",
    "litserve": "/health",
}


def message(server: str, case: Case, form: str) -> bytes:
    """Return the bytes of one request."""
    rows = case.row.tolist()
    headers = "Content-Type: application/json\r\n"
    raw = b""
    if server == "bentoml":
        target, body = f"/infer/{case.name}", json.dumps({"row": rows}).encode()
    elif server == "litserve":
        target, body = "/predict", json.dumps({"model": case.name, "row": rows}).encode()
    else:
        target = f"/v2/models/{case.name}/infer"
        tensor: dict = {"name": case.input, "shape": list(case.row.shape), "datatype": "FP32"}
        asked: dict = {"inputs": [tensor]}
        if form == "binary":
            raw = case.row.tobytes()
            tensor["parameters"] = {"binary_data_size": len(raw)}
            asked["outputs"] = [{"name": case.output, "parameters": {"binary_data": True}}]
        else:
            tensor["data"] = case.row.ravel().tolist()
            asked["outputs"] = [{"name": case.output}]
        body = json.dumps(asked).encode()
        if raw:
            headers = (
                "Content-Type: application/octet-stream\r\n"
                f"Inference-Header-Content-Length: {len(body)}\r\n"
            )
    head = (
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}"
        f"Content-Length: {len(body) + len(raw)}\r\n\r\n"
    )
    return head.encode() + body + raw


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(address: tuple[str, int] | str, path: str) -> bool:
    """Ask whether a server is ready."""
    with contextlib.suppress(OSError):
        kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(kind) as one:
            one.settimeout(2.0)
            one.connect(address)
            if not path:
                return True
            one.sendall(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            )
            return one.recv(64)[9:12] == b"200"
    return False


class Peer:
    """A server that is no agent.

    Args:
        name: which.
        out: where the environments are.
        folder: of the models; its scratch files lie in `folder/<name>`.
        models: names of those to serve.
    """

    def __init__(self, name: str, out: Path, folder: Path, models: list[str]) -> None:
        self.name = name
        home = "skerry" if name == "floor" else name
        scratch = folder / name
        scratch.mkdir(exist_ok=True)
        self.port = free_port()
        python = str(out / home / "bin/python")
        env = environment(out, home) | {
            "MODELS": ",".join(models),
            "MODELS_JSON": str(folder / "models.json"),
            "PORT": str(self.port),
            "PYTHONPATH": str(APPS),
            "BENTOML_HOME": str(scratch),
            "BENTOML_DO_NOT_TRACK": "1",
            "HOME": str(scratch),
        }
        if name == "mlserver":
            _mlserver_files(scratch, self.port, models)
        port = str(self.port)
        command = {
            "floor": [str(APPS / "floor.py")],
            "fastapi": [
                "-m", "uvicorn", "fastapi_app:app", "--port", port, "--log-level", "warning",
                "--no-access-log", "--loop", "uvloop", "--http", "httptools",
            ],
            "mlserver": ["-c", "from mlserver.cli import main; main()", "start", str(scratch)],
            "bentoml": [
                "-m", "bentoml", "serve", "bento_service:Measured", "--port", port,
                "--host", "127.0.0.1", "--working-dir", str(APPS),
            ],
            "litserve": [str(APPS / "lit_app.py")],
        }[name]  # fmt: skip
        began = time.perf_counter()
        with (scratch / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [python, *command], cwd=scratch, env=env, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.address: tuple[str, int] | str = ("127.0.0.1", self.port)
        self.start_s = _wait(self, READY.get(name, ""), began)

    def pids(self) -> list[int]:
        """Every process of it."""
        return tree(self.process.pid)

    def memory_mib(self) -> float:
        """Proportional set size of all of them."""
        return sum(memory_kib(pid) for pid in self.pids()) / 1024

    def stop(self) -> None:
        """End it."""
        end(self.process)


class Bare:
    """`session.run` in a process that does nothing else."""

    def __init__(self, out: Path, folder: Path, models: list[str]) -> None:
        env = environment(out, "skerry") | {
            "MODELS": ",".join(models), "MODELS_JSON": str(folder / "models.json"),
            "PYTHONPATH": str(APPS),
        }  # fmt: skip
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [str(out / "skerry/bin/python"), str(APPS / "bare.py")],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.start_s = time.perf_counter() - began

    def run(self, model: str, runs: int) -> float:
        """Return the CPU time of one run, microseconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{model} {runs}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def memory_mib(self) -> float:
        """Proportional set size."""
        return memory_kib(self.process.pid) / 1024

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(5)


class Agent:
    """The agent's own serving process, started as control starts it."""

    def __init__(self, out: Path, folder: Path, cases: list[Case], **settings) -> None:
        self.name = "skerry"
        self.where = folder / f"skerry-{os.urandom(3).hex()}"
        self.where.mkdir()
        began = time.perf_counter()
        with _as_device(out):
            from agent.listen import listen_unix
            from tests.fakes.serving import Serve, listen

            self._listener = listen()
            self.url = f"unix:{self.where / 's'}"
            self._unix = listen_unix(self.where / "s")
            self._unix.listen(64)
            releases = [case.release for case in cases]
            self._serve = Serve(
                self.where, self._listener, *releases, also=[self._unix], **settings
            )
        self.process = self._serve.process
        self.address: tuple[str, int] | str = self._listener.getsockname()[:2]
        self._serve.start()
        self.start_s = _wait(self, READY["skerry"], began)
        self._reader = _drain(self._serve.control)

    pids = Peer.pids
    memory_mib = Peer.memory_mib

    def stop(self) -> None:
        """End it."""
        self._serve.kill()
        self._reader.join(5)
        self._listener.close()
        self._unix.close()


def _drain(control: socket.socket):
    """Read what serve says, as control does; it would stop at a full socket."""
    import threading

    def read() -> None:
        control.settimeout(None)
        with contextlib.suppress(OSError):
            while control.recv(1 << 16):
                pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def _as_device(out: Path) -> Iterator[None]:
    """Let what is started be a device's: its interpreter, its packages, no others."""
    ours, before = sys.executable, dict(os.environ)
    sys.executable = str(out / "skerry/bin/python")
    os.environ.clear()
    os.environ.update(environment(out, "skerry") | {"PYTHONPATH": str(ROOT)})
    try:
        yield
    finally:
        sys.executable = ours
        os.environ.clear()
        os.environ.update(before)


def _wait(server, path: str, began: float) -> float:
    while not is_ready(server.address, path):
        if server.process.poll() is not None or time.perf_counter() - began > READY_S:
            raise SystemExit(f"{server.name} did not become ready; see its log")
        time.sleep(0.01)
    return time.perf_counter() - began


def _mlserver_files(folder: Path, port: int, models: list[str]) -> None:
    settings = {
        "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
        "host": "127.0.0.1", "parallel_workers": 0, "debug": False, "use_structured_logging": False,
        "metrics_dir": str(folder),
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    for name in models:
        (folder / name).mkdir(exist_ok=True)
        about = {"name": name, "implementation": "mlserver_runtime.Onnx"}
        (folder / name / "model-settings.json").write_text(json.dumps(about))
