"""A first parse, load and run of a foreign model, in a child process that may come to harm.

    python -m compiler.trial FILE --memory-mb N --cpu-s N

A model is a program: a loop of 2^62 rounds hangs, a tensor of 2^40 elements takes all
memory, damage in a graph may crash the library that reads it. All of that happens to the
child, whose address space and CPU time the kernel limits and which is ended after
`WALL_S`. It prints one JSON line; exit code 0 if the model may be read here too.
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
import onnx.checker
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # no stubs

from compiler.workspace import workspace
from skerry.errors import RefusedError

__all__ = ["try_model"]

WALL_S: Final = 120.0
CPU_S: Final = 60
MEMORY_MB: Final = 4096  # besides what the model itself takes
OUT_OF_MEMORY: Final = ("bad_alloc", "bad allocation", "Failed to allocate", "out of memory")


class Trial(msgspec.Struct, frozen=True):
    """What came of it; `code` is ``ok``, or names what went wrong."""

    code: str
    message: str = ""


def try_model(
    data: bytes, *, wall_s: float = WALL_S, cpu_s: int = CPU_S, memory_mb: int = MEMORY_MB
) -> None:
    """Read, load and run a model in a child process.

    Raises:
        RefusedError: code ``trial_timeout``, ``trial_memory`` or ``trial_crashed``.
    """
    with workspace("trial", len(data)) as folder:
        # a copy of its own, alone in a folder: no path in the model leads anywhere
        file = folder / "model.onnx"
        file.write_bytes(data)
        memory_mb += 4 * (len(data) >> 20)
        command = [
            sys.executable, "-P", "-m", "compiler.trial", str(file), "--memory-mb",
            str(memory_mb), "--cpu-s", str(cpu_s),
        ]  # fmt: skip
        root = str(Path(__file__).resolve().parents[1])
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, **one, "PYTHONPATH": root},
                stdin=subprocess.DEVNULL, capture_output=True, timeout=wall_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RefusedError(
                f"expected the model to answer one input within {wall_s:.0f} s; it was ended. "
                "Look for a loop without end",
                "trial_timeout",
            ) from None
    _judge(done.returncode, done.stdout, done.stderr, cpu_s, memory_mb)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="compiler.trial", description="Try a model.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--memory-mb", type=int, required=True)
    parser.add_argument("--cpu-s", type=int, required=True)
    args = parser.parse_args(argv)
    limit = args.memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (args.cpu_s, args.cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(msgspec.json.encode(_try(args.file.read_bytes())).decode() + "\n")
    return 0


def _judge(returncode: int, out: bytes, err: bytes, cpu_s: int, memory_mb: int) -> None:
    try:
        trial = msgspec.json.decode(out, type=Trial)
    except (msgspec.DecodeError, ValueError):
        last = " ".join(err.decode(errors="replace").strip().splitlines()[-1:])[:200]
        if returncode in (-24, -9):  # SIGXCPU, then SIGKILL
            trial = Trial("trial_timeout", f"it took more than {cpu_s} s of CPU time")
        elif "MemoryError" in last or any(word in last for word in OUT_OF_MEMORY):
            trial = Trial("trial_memory", last)
        else:
            trial = Trial("trial_crashed", f"its process ended with {returncode}: {last}")
    if trial.code == "trial_memory":
        raise RefusedError(
            f"expected a model that runs within {memory_mb} MB: {trial.message}", trial.code
        )
    if trial.code != "ok":
        raise RefusedError(f"the model failed its trial: {trial.message}", trial.code)


def _try(data: bytes) -> Trial:
    """Parse, check, load and run; an ordinary refusal is left to the passes that come after."""
    try:
        model = onnx.load_model_from_string(data)
        with contextlib.suppress(onnx.checker.ValidationError, ValueError):
            onnx.checker.check_model(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        session.run(None, {port.name: _zeros(port) for port in session.get_inputs()})
    except DecodeError:
        return Trial("ok")
    except MemoryError:
        return Trial("trial_memory", "it took more")
    except Exception as error:  # onnxruntime's errors share no other base
        if any(word in str(error) for word in OUT_OF_MEMORY):
            return Trial("trial_memory", str(error).splitlines()[0][:200])
    return Trial("ok")


def _zeros(port: ort.NodeArg) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    kinds = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2",
             "tensor(bool)": "?", "tensor(string)": "O"}  # fmt: skip
    name = port.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype(kinds.get(port.type, name))
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in port.shape]
    return np.full(shape, "", dtype=dtype) if dtype.kind == "O" else np.zeros(shape, dtype)


if __name__ == "__main__":
    sys.exit(main())
