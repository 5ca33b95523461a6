"""What `skerry build` makes of real models, side by side with what others make of them.

    python benchmarks/compile.py [--zoo /tmp/zoo] [--peers DIR] [--only NAME ...] [--tables]

For every model that `benchmarks/zoo/make.py` made: fp32, onnxruntime's quantizers with their
defaults, what other tools left in DIR/<model>/<tool>.onnx (`benchmarks/peers.py`), and the first
variant of the bundle that `skerry build` makes of the recipe, as a child process. All answer the
same samples, and each is timed against fp32 in turn, on one thread, by CPU time. With
results/frontier.json beside it, the shipped form is timed against the best that was found there.
`--tables` writes the tables of README.md from the results, and measures nothing.
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

import onnx  # noqa: E402 - after the path is set

from benchmarks.compile_tables import write_tables  # noqa: E402
from benchmarks.frontier import frontier, steps_for  # noqa: E402
from benchmarks.others import OTHERS  # noqa: E402
from benchmarks.outcome import RESULTS, write  # noqa: E402
from compiler.candidates import Candidate, Workshop  # noqa: E402
from compiler.data import spread  # noqa: E402
from compiler.emulate import run_emulated  # noqa: E402
from compiler.evaluate import compare  # noqa: E402
from compiler.gate import holds  # noqa: E402
from compiler.host import this_host  # noqa: E402
from compiler.latency import measure  # noqa: E402
from compiler.materials import Materials, gather  # noqa: E402
from compiler.recipe import read_recipe  # noqa: E402
from compiler.runtime import one_call, open_session, run_samples  # noqa: E402
from skerry.bundle import read_bundle  # noqa: E402
from skerry.errors import SkerryError  # noqa: E402

LOADS = 5
EMULATED = ("digits_mbv2", "power_cnn")  # models whose rows are measured on an emulated AVX2 too
EMULATED_SAMPLES = 300

# From a small process: what starts a child counts as the child's until its own program is loaded.
LAUNCH = """
import json, os, subprocess, sys, time
began = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=2)
_, status, used = os.wait4(child.pid, 0)
print(json.dumps({"exit_code": os.waitstatus_to_exitcode(status),
    "seconds": round(time.monotonic() - began, 1),
    "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    "peak_mib": round(used.ru_maxrss / 1024)}))
"""


def build(recipe: Path, out: Path) -> tuple[dict[str, Any], bytes]:
    """Run `skerry build`; what it took and said, and the bytes that it would run first."""
    command = [
        sys.executable, "-c", LAUNCH,
        sys.executable, "-m", "skerry", "build", recipe, "--out", out, "--json",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    if found["exit_code"]:
        return {**found, "error": done.stderr.strip().splitlines()[-1][:300]}, b""
    with next(out.glob("*.skerry")).open("rb") as file:
        bundle = read_bundle(file)
    first = bundle.manifest.variants[0]
    record = json.loads(next(out.glob("*.evaluation.json")).read_text())["record"]
    found["shipped"] = next(
        v["precision"] + (f", {len(v['left_float'])} in float" if v["left_float"] else "")
        for v in record["variants"] if v["chosen"]
    )  # fmt: skip
    found["evaluations"] = record["evaluations"]
    found["tried"] = [
        {key: v[key] for key in ("precision", "bytes", "left_float", "reason", "latency_ratio")}
        for v in record["variants"]
    ]
    return found, bundle.blobs[first.file.digest]


def row(workshop: Workshop, data: bytes, *, emulated: bool) -> dict[str, Any]:
    """Measure one form of a model."""
    materials, reference = workshop.materials, workshop.reference
    metric = materials.recipe.metric
    assert reference.outputs is not None
    assert reference.session is not None
    began = time.process_time()
    session = open_session(data)
    loads = [time.process_time() - began]
    for _ in range(LOADS - 1):
        began = time.process_time()
        open_session(data)
        loads.append(time.process_time() - began)
    outputs = run_samples(session, materials.ports, materials.evaluation, metric.output)
    quality = compare(
        metric, outputs[metric.output], reference.outputs[metric.output], materials.labels,
        function=materials.function, slices=materials.slices,
    )  # fmt: skip
    took = measure(
        session, reference.session, one_call(materials.ports, materials.evaluation), budget_s=2.0
    )
    ruling = holds(metric, quality, materials.recipe.gate)
    found = {
        "bytes": len(data),
        "value": round(quality.value, 5),
        "drop": [round(v, 5) for v in (quality.drop, quality.drop_low, quality.drop_high)],
        "agreement": quality.agreement,
        "sqnr_db": quality.sqnr_db,
        "gate": ruling.outcome,
        "ratio": [round(v, 4) for v in (took.ratio, took.low, took.high)],
        "us": round(took.median_us, 1),
        "fp32_us": round(took.reference_us, 1),
        "load_ms": round(statistics.median(loads) * 1000, 1),
    }
    if emulated:
        found["avx2"] = elsewhere(materials, data, workshop.reference)
    return found


def elsewhere(materials: Materials, data: bytes, reference: Candidate) -> dict[str, Any]:
    """Measure a form on an emulated CPU without VNNI, against fp32 here."""
    metric = materials.recipe.metric
    few = spread(materials.n, EMULATED_SAMPLES)
    samples = {name: values[few] for name, values in materials.evaluation.items()}
    assert reference.outputs is not None
    there = run_emulated("avx2", data, materials.ports, samples, metric.output)
    quality = compare(
        metric, there[metric.output], reference.outputs[metric.output][few],
        None if materials.labels is None else materials.labels[few], function=materials.function,
    )  # fmt: skip
    return {"value": quality.value, "n": quality.n, "agreement": quality.agreement}


def against_best(workshop: Workshop, shipped: bytes, name: str) -> dict[str, Any]:
    """Look for the best form of all, and time the shipped one against it, in turn."""
    materials = workshop.materials
    seen = frontier(workshop, most=steps_for(workshop))
    told = seen.told()
    kept = RESULTS / "frontier" / f"{name}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(told, indent=1) + "\n")
    found: dict[str, Any] = {key: told[key] for key in ("tried", "holding", "regions", "seconds")}
    call = one_call(materials.ports, materials.evaluation)
    for what in ("fastest", "smallest"):
        best = getattr(seen, what)
        data = best[1] if best else workshop.reference.data
        took = measure(open_session(shipped), open_session(data), call, budget_s=2.0)
        found[what] = {
            "way": f"{best[0].way}, {best[0].left} in float" if best else "fp32",
            "bytes": len(data),
            "ratio": best[0].ratio if best else None,
            "shipped_to_it": [round(v, 3) for v in (took.ratio, took.low, took.high)],
            "shipped_bytes_to_it": round(len(shipped) / len(data), 3),
        }
    return found


def model(folder: Path, peers: Path | None) -> dict[str, Any]:
    """Measure one model of the zoo."""
    about = json.loads((folder / "about.json").read_text())
    name = folder.name
    emulated = name in EMULATED
    workshop = Workshop(gather(read_recipe(folder / "recipe.toml")))
    materials = workshop.materials
    found: dict[str, Any] = {
        "kind": about["kind"],
        "metric": materials.recipe.metric.name,
        "max_drop": materials.recipe.gate.max_drop,
        "n": materials.n,
        "measured_by": " ".join(["python", "benchmarks/compile.py", *sys.argv[1:]]),
        "rows": {"fp32": row(workshop, workshop.reference.data, emulated=emulated)},
    }
    rows: dict[str, Any] = found["rows"]
    made: dict[str, bytes] = {}
    for other, make in OTHERS.items():
        try:
            made[other] = make(folder / "model.onnx", materials)
        except Exception as error:  # it raises whatever went wrong inside
            first = (str(error).splitlines() or [""])[0]
            rows[other] = {"error": f"{type(error).__name__}: {first[:200]}"}
    for file in sorted((peers / name).glob("*")) if peers else []:
        if file.suffix == ".onnx":
            made[file.stem] = onnx.load(file).SerializeToString()  # its weights may lie beside it
        elif file.suffix == ".txt":
            rows[file.stem] = {"error": file.read_text().strip()[:300]}
    with tempfile.TemporaryDirectory() as scratch:
        built, data = build(folder / "recipe.toml", Path(scratch))
    found["build"] = built
    if data:
        made["skerry build"] = data
    else:
        rows["skerry build"] = {"error": built["error"]}
    for other, data_of in made.items():
        try:
            rows[other] = row(workshop, data_of, emulated=emulated)
        except SkerryError as error:
            rows[other] = {"bytes": len(data_of), "error": str(error)[:300]}
    if data:
        found["frontier"] = against_best(workshop, data, name)
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("/tmp/zoo"))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", default="compile")
    parser.add_argument("--tables", action="store_true")
    given = parser.parse_args()
    if given.tables:
        write_tables(given.out)
        return
    folders = sorted(path.parent for path in given.zoo.glob("*/about.json"))
    if not folders:
        parser.error(f"expected models in {given.zoo}: python benchmarks/zoo/make.py")
    host = this_host()
    found: dict[str, object] = {"isa": host.isa, "zoo": {}}
    kept = RESULTS / f"{given.out}.json"
    models: dict[str, Any] = {}
    if given.only and kept.exists():  # the other models stay as they were measured
        models = json.loads(kept.read_text())["zoo"]
    for folder in folders:
        if given.only and folder.name not in given.only:
            continue
        print(folder.name, flush=True)
        models[folder.name] = model(folder, given.peers)
        found["zoo"] = dict(sorted(models.items()))
        write(given.out, found)  # after each: an interrupted run loses one model at most
    if given.out == "compile":
        write_tables(given.out)


if __name__ == "__main__":
    main()
