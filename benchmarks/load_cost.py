"""What it costs to load a model: its own file, and prepacked for this CPU.

    python benchmarks/load_cost.py MODEL.onnx ... [--rounds 7]

Each load is the first of a fresh process that has onnxruntime and has opened another, tiny
session: what the serve process does, verification of the bytes included. Own file and prepacked
take turns; CPU time of the process over the load, and its resident and proportional memory after
one run. Warming and measuring the model's pace are left out: they are the same for both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.outcome import write  # noqa: E402 - after the path is set

CHILD = "--child"


def child(file: str, cache: str, way: str) -> None:
    """Load once and print what it took."""
    from agent import prepacked, runtime
    from skerry.canonical import sha256
    from skerry.manifest import Accuracy, FileRef, Variant
    from tests.fakes.serving import linear_model

    data = Path(file).read_bytes()
    variant = Variant(
        "v", FileRef(sha256(data), len(data)), "fp32", runtime.CPU, ["any"], 17, "0.1.0",
        Accuracy("accuracy", 1.0, 1, "any"),
    )  # fmt: skip
    del data
    runtime._open(linear_model(), runtime._options(1), variant)
    if way == "make":
        folder = runtime._place(Path(cache), variant, 1)
        options = runtime._options(1)
        for key, value in runtime.PACKING.items():
            options.add_session_config_entry(key, value)

        def into(part: Path) -> None:
            options.optimized_model_filepath = str(part / prepacked.GRAPH)
            runtime._open(Path(file).read_bytes(), options, variant)

        assert prepacked.make(folder, into)
        print(sum(f.stat().st_size for f in folder.iterdir()))
        return
    began = time.process_time()
    if way == "own":
        session = runtime._open(
            runtime._verified(Path(file), variant.file), runtime._options(1), variant
        )
    else:
        found = runtime._open_packed(variant, Path(cache), 1)
        assert found is not None
        session = found
    took = (time.process_time() - began) * 1000
    rollup = Path("/proc/self/smaps_rollup").read_text().split()
    pss = int(rollup[rollup.index("Pss:") + 1]) / 1024
    print(json.dumps({"cpu_ms": took, "pss_mib": pss, "inputs": len(session.get_inputs())}))


def measure(file: Path, rounds: int) -> dict[str, Any]:
    """Both ways in turn, each in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(cache: str, way: str) -> str:
        command = [sys.executable, __file__, CHILD, str(file), cache, way]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout

    with tempfile.TemporaryDirectory() as cache:
        packed_bytes = int(run(cache, "make"))
        pairs = [
            {way: json.loads(run(cache, way)) for way in ("own", "prepacked")}
            for _ in range(rounds)
        ]
    ratios = [pair["prepacked"]["cpu_ms"] / pair["own"]["cpu_ms"] for pair in pairs]
    middle = {
        way: {
            key: round(statistics.median(pair[way][key] for pair in pairs), 1)
            for key in ("cpu_ms", "pss_mib")
        }
        for way in ("own", "prepacked")
    }
    return {
        "bytes": file.stat().st_size,
        "bytes_prepacked": packed_bytes,
        **middle,
        "cpu_ratio": round(statistics.median(ratios), 3),
        "cpu_ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def main() -> None:
    """Measure, print, and write the results."""
    if sys.argv[1:2] == [CHILD]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    found = {file.parent.name or file.stem: measure(file, args.rounds) for file in args.models}
    write("load_cost", {"models": found})


if __name__ == "__main__":
    main()
