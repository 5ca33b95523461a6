"""What one prediction costs the serve process in CPU, on top of the model itself.

    python benchmarks/serve_cost.py [--requests 3000] [--rounds 5] [--out FILE]

A real serve process with a tiny model (two features, sync on) answers over one kept
connection. Each round measures, right after one another: the process's CPU time per
request, binary and JSON; and the thread's CPU time of a bare `session.run` with the
same model and input in this process. Medians over rounds; the overhead is the difference
within a round. CPU time comes from /proc/<pid>/task/*/schedstat, in nanoseconds.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnxruntime as ort  # noqa: E402 - after the path is set

from skerry.io.client import Client  # noqa: E402
from tests.fakes.serving import Serve, images, linear_release, listen  # noqa: E402


def cpu_us(pid: int) -> float:
    """CPU time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1000


def bare_us(session: ort.InferenceSession, image, runs: int) -> float:
    """CPU time of one run of the model in this thread."""
    started = time.thread_time_ns()
    for _ in range(runs):
        session.run(None, {"image": image})
    return (time.thread_time_ns() - started) / 1000 / runs


def measure(directory: Path, requests: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of every round, by what was measured."""
    release = linear_release(directory / "release")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        Path(release.slot.model_file).read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    image = images(1)
    found: dict[str, list[float]] = {"binary": [], "json": [], "bare": [], "wall": []}
    with listen() as listener, Serve(directory, listener, release, window_s=1.0) as serve:
        serve.start()
        pid = serve.process.pid
        body = json.dumps(
            {
                "inputs": [
                    {
                        "name": "image",
                        "shape": list(image.shape),
                        "datatype": "FP32",
                        "data": image.ravel().tolist(),
                    }
                ]
            }
        ).encode()
        request = urllib.request.Request(f"{serve.url}/v2/models/reader/infer", body)
        with Client(serve.url) as client:
            for number in range(rounds + 1):
                found["bare"].append(bare_us(session, image, requests))
                before, started = cpu_us(pid), time.perf_counter()
                for i in range(requests):
                    client.predict("reader", {"image": image}, id=f"{number}-{i}")
                found["wall"].append((time.perf_counter() - started) / requests * 1e6)
                found["binary"].append((cpu_us(pid) - before) / requests)
                before = cpu_us(pid)
                few = requests // 10  # a connection each: this client keeps none
                for _ in range(few):
                    urllib.request.urlopen(request).read()
                found["json"].append((cpu_us(pid) - before) / few)
        serve.drain()
    return {name: values[1:] for name, values in found.items()}  # the first round warms up


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/serve_cost.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), args.requests, args.rounds)
    overhead = [a - b for a, b in zip(found["binary"], found["bare"], strict=True)]
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    result = {
        "command": f"python benchmarks/serve_cost.py --requests {args.requests} --rounds {args.rounds}",
        "commit": commit,
        "machine": {
            "cpu": cpu,
            "cpus": len(list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*"))),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "onnxruntime": ort.__version__,
        },
        "unit": "microseconds of CPU per request, median of rounds",
        "bare_session_run": round(statistics.median(found["bare"]), 1),
        "serve_binary": round(statistics.median(found["binary"]), 1),
        "serve_binary_overhead": round(statistics.median(overhead), 1),
        "serve_json_new_connection": round(statistics.median(found["json"]), 1),
        "client_round_trip_wall": round(statistics.median(found["wall"]), 1),
        "rounds": {name: [round(value, 1) for value in values] for name, values in found.items()},
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
