"""Memory by import: what the serving process loads beyond bare onnxruntime with the model."""

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.serving.environments import environment
from benchmarks.serving.figures import middle
from benchmarks.serving.models import Case

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "msgspec",
    "httptools",
    "asyncio",
    "logging, argparse, secrets, zlib, mmap, urllib.parse, importlib.metadata",
    "skerry.errors, skerry.canonical, skerry.manifest, skerry.tensors, skerry.onnx_outline",
    "skerry.features, skerry.counting, skerry.reading",
    "agent.segments, agent.spool, agent.observe, agent.recover",
    "agent.http, agent.oip, agent.runtime, agent.endpoint, agent.serve",
)
CODE = """
import gc, json, sys, os
def mib():
    gc.collect()
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
seen = [("python", mib())]
import numpy
seen.append(("numpy", mib()))
import onnxruntime
seen.append(("onnxruntime", mib()))
sys.path.insert(0, os.environ["APPS"])
import common
session = common.open_model("table")
about = common.MODELS["table"]
session.run([about["output"]], {about["input"]: numpy.zeros(about["shape"], "f4")})
seen.append(("the model", mib()))
sys.path.insert(0, os.environ["ROOT"])
for step in json.loads(os.environ["STEPS"]):
    for name in step.split(", "):
        __import__(name)
    seen.append((step, mib()))
print(json.dumps(seen))
"""

__all__ = ["measure"]


def measure(envs: Path, folder: Path, cases: dict[str, Case], *, repeat: int) -> dict[str, Any]:
    """Return what each step adds, MiB, in fresh processes."""
    env = environment(envs, "skerry") | {
        "MODELS_JSON": str(folder / "models.json"), "STEPS": json.dumps(STEPS), "ROOT": str(ROOT),
        "APPS": str(ROOT / "benchmarks/serving/apps"), "MODELS": "table",
    }  # fmt: skip
    added: dict[str, list[float]] = {}
    for _ in range(repeat):
        done = subprocess.run(
            [str(envs / "skerry/bin/python"), "-c", CODE],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"expected imports to work: {done.stderr[-1500:]}")
        before = 0.0
        for step, mib in json.loads(done.stdout):
            added.setdefault(step, []).append(mib - before)
            before = mib
    return {"added_mib": {step: middle(values, 2) for step, values in added.items()}}
