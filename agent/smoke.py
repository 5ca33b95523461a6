"""A first run of a release, in a child process that may crash, hang or grow.

    python -m agent.smoke --model FILE --manifest FILE --golden FILE --variant ID [--memory-mb N]
                          [--cpu-s N] [--cache DIR] [--threads N]

Loads the variant, runs the golden set and compares: predictions may differ in a share
of rows, output values by `atol`, both measured when the release was built. Prints one
JSON line, a `SmokeResult`; exit code 0 if it passed, 1 if not. Whoever starts it sets
a timeout; it limits its own memory and CPU time.
"""

import argparse
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.runtime import Model, prepack, read_manifest
from agent.serve_protocol import SmokeResult
from skerry.canonical import from_msgpack
from skerry.errors import RefusedError, SkerryError
from skerry.manifest import Golden, GoldenTensor
from skerry.reading import read_predictions
from skerry.tensors import DTYPES, as_text, from_raw

__all__ = ["main", "smoke"]

MAX_GOLDEN_BYTES: Final = 64 << 20
NICE: Final = 10  # what serves goes first
TIMED_RUNS: Final = 20
BEFORE_LOADING: Final = frozenset(
    {"external_data", "foreign_domain", "local_functions", "too_deep"}
)
Tensors = dict[str, NDArray[Any]]


def smoke(
    model_file: Path,
    manifest_file: Path,
    golden_file: Path,
    variant: str,
    *,
    cache_dir: Path | None = None,
    threads: int = 1,
) -> SmokeResult:
    """Load a variant, run the golden set, and say what came of it.

    Args:
        model_file: verified.
        manifest_file: of the bundle.
        golden_file: of the bundle.
        variant: of the manifest.
        cache_dir: where the model is kept prepacked, which is then what is run.
        threads: of one operator.
    """
    try:
        manifest = read_manifest(manifest_file)
        golden = from_msgpack(golden_file.read_bytes(), Golden, limit=MAX_GOLDEN_BYTES)
        inputs, wanted = _tensors(golden.inputs), _tensors(golden.outputs)
    except (SkerryError, OSError) as error:
        return SmokeResult(ok=False, code="bad_files", message=str(error))
    try:
        if cache_dir is not None:
            prepack(model_file, manifest, variant, cache_dir, threads)
        model = Model(model_file, manifest, variant, threads=threads, cache_dir=cache_dir)
    except SkerryError as error:
        return SmokeResult(ok=False, code=_code(error), message=str(error))
    try:
        outputs = _run_rows(model, inputs)
        run_us = _time_one_row(model, inputs)
    except Exception as error:  # onnxruntime's errors share no other base
        return SmokeResult(ok=False, code="run_failed", message=str(error)[:500])
    disagree, max_diff = _compare(model, outputs, wanted)
    ok = disagree <= golden.max_disagree and max_diff <= golden.atol
    return SmokeResult(
        ok=ok,
        code="ok" if ok else "golden_mismatch",
        message=(
            f"{disagree:.1%} of the golden rows are predicted otherwise (at most "
            f"{golden.max_disagree:.1%}), outputs differ by {max_diff:.3g} (at most {golden.atol:.3g})"
        ),
        load_ms=model.load_ms,
        run_us=run_us,
        rows=len(next(iter(inputs.values()))),
        disagree=disagree,
        max_diff=min(max_diff, sys.float_info.max),  # JSON has no infinity
    )


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="agent.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--memory-mb", type=int, default=0, help="of private memory; 0 is no limit")
    parser.add_argument("--cpu-s", type=int, default=0, help="seconds of CPU; 0 is no limit")
    parser.add_argument("--cache", type=Path, help="where the model is kept prepacked")
    parser.add_argument("--threads", type=int, default=1, help="of one operator")
    args = parser.parse_args(argv)
    os.nice(NICE)
    if args.memory_mb:
        limit = args.memory_mb << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if args.cpu_s:  # holds even when whoever started it is gone
        resource.setrlimit(resource.RLIMIT_CPU, (args.cpu_s, args.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    np.seterr(all="ignore")
    result = smoke(
        args.model, args.manifest, args.golden, args.variant,
        cache_dir=args.cache, threads=args.threads,
    )  # fmt: skip
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return 0 if result.ok else 1


def _code(error: SkerryError) -> str:
    """Return ``load_failed``, or what the model was refused for before it was loaded."""
    code = error.code if isinstance(error, RefusedError) else ""
    return code if code in BEFORE_LOADING else "load_failed"


def _tensors(given: list[GoldenTensor]) -> Tensors:
    unknown = [tensor.name for tensor in given if tensor.datatype not in DTYPES]
    if unknown or not given:
        raise SkerryError(f"expected golden tensors of known types, got {unknown}")
    return {t.name: as_text(from_raw(t.data, t.datatype, t.shape)) for t in given}


def _run_rows(model: Model, inputs: Tensors) -> Tensors:
    """Run all rows, in one call or in as many as a fixed batch size needs."""
    sizes = [spec.shape[0] for spec in model.inputs.values()]
    rows = len(next(iter(inputs.values())))
    step = rows if sizes[0] == -1 else sizes[0]
    parts: list[Tensors] = []
    for start in range(0, rows, step):
        part = {name: values[start : start + step] for name, values in inputs.items()}
        short = step - len(next(iter(part.values())))
        if short:  # the last rows stand in for what is missing, and are cut off again
            part = {
                name: np.concatenate([values, np.repeat(values[-1:], short, axis=0)])
                for name, values in part.items()
            }
        outputs = model.run(part)
        parts.append({name: values[: step - short] for name, values in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _time_one_row(model: Model, inputs: Tensors) -> float:
    """Return the median microseconds of one call with the smallest batch it takes."""
    sizes = {name: max(1, spec.shape[0]) for name, spec in model.inputs.items()}
    part = {name: np.resize(x, (sizes[name], *x.shape[1:])) for name, x in inputs.items()}
    times = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        model.run(part)
        times.append((time.perf_counter() - started) * 1e6)
    return statistics.median(times)


def _compare(model: Model, outputs: Tensors, wanted: Tensors) -> tuple[float, float]:
    reading = model.manifest.prediction
    disagree, max_diff = 0.0, 0.0
    for name, values in wanted.items():
        mine = outputs.get(name)
        if mine is None or mine.shape != values.shape:
            return 1.0, float("inf")
        if name == reading.output:
            classes, _ = read_predictions(mine, reading.kind, reading.threshold)
            theirs, _ = read_predictions(values, reading.kind, reading.threshold)
            disagree = float((classes != theirs).mean())
        difference = np.abs(mine.astype(np.float64) - values.astype(np.float64))
        # a NaN on one side only is as far away as can be
        worst = float(np.nan_to_num(difference, nan=np.inf).max()) if difference.size else 0.0
        max_diff = max(max_diff, worst)
    return disagree, max_diff


if __name__ == "__main__":
    sys.exit(main())
