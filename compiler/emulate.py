"""What a model answers on a CPU that this machine is not: run under an emulator, slow and exact.

    python -m compiler.emulate MODEL SAMPLES.npz ANSWERS.npz

Eight-bit results differ by instruction set: kernels for x86 without VNNI add products of 8
bits into 16, and saturate. Accuracy that was measured here therefore says nothing about such a
device. QEMU's user mode (Debian: `qemu-user`) runs this very onnxruntime on an emulated
Haswell, some thirty times slower: enough for a few hundred samples. Times mean nothing there.
Measured: a product of 64 full-range weights is off by 25.9 on the emulated CPU, by 0.14 here.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from compiler.ports import Arrays, Port, Ports, count
from compiler.runtime import Outputs, open_session, run_samples
from compiler.workspace import check_room, workspace
from skerry.errors import RefusedError, UsageError

__all__ = ["CPUS", "emulator", "run_emulated"]

EMULATOR: Final = "qemu-x86_64"
CPUS: Final = {"avx2": "Haswell"}  # class of instructions -> a CPU that has it and nothing newer
TIMEOUT_S: Final = 1800.0


def emulator(isa: str) -> list[str]:
    """Return the command that runs a program on another CPU.

    Raises:
        UsageError: no such class, or there is no emulator here.
    """
    cpu = CPUS.get(isa)
    if cpu is None:
        raise UsageError(f"expected one of {', '.join(CPUS)} to emulate, got {isa!r}")
    found = shutil.which(EMULATOR)
    if found is None:
        raise UsageError(
            f"emulating {isa} needs {EMULATOR}, which is not here; "
            "on Debian: apt-get install qemu-user"
        )
    return [found, "-cpu", cpu]


def run_emulated(
    isa: str, model: bytes, ports: Ports, arrays: Arrays, needed: str, timeout_s: float = TIMEOUT_S
) -> Outputs:
    """Run samples as a CPU of another class does.

    Args:
        isa: of `CPUS`.
        model: single-file ONNX.
        ports: its inputs.
        arrays: as `Ports.fit` returns them.
        needed: the output that must have an entry for each sample.
        timeout_s: the emulator is ended after it.

    Raises:
        RefusedError: it failed, or took too long.
        UsageError: there is no emulator here.
    """
    command = emulator(isa)
    root = str(Path(__file__).resolve().parents[1])
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    data = sum(array.nbytes for array in arrays.values())
    with workspace("emulation", len(model) + 4 * data) as folder:
        file, given, answers = (folder / n for n in ("model.onnx", "given.npz", "answers.npz"))
        file.write_bytes(model)
        calls = [
            ports.call(arrays, start, start + ports.step(arrays))
            for start in range(0, count(arrays), ports.step(arrays))
        ]
        tensors: dict[str, Any] = {
            f"{i}/{name}": tensor.astype(str) if tensor.dtype.kind == "O" else tensor
            for i, (feed, _) in enumerate(calls)
            for name, tensor in feed.items()
        }
        np.savez(given, **tensors)
        try:
            done = subprocess.run(
                [*command, sys.executable, "-P", "-m", "compiler.emulate", file, given, answers],
                env={**os.environ, **one, "PYTHONPATH": root}, cwd=folder,
                stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RefusedError(
                f"emulating {isa} took more than {timeout_s:.0f} s; take fewer samples"
            ) from None
        if done.returncode or not answers.exists():
            check_room(folder)
            last = " ".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])[:300]
            raise RefusedError(f"emulating {isa} failed: {last}")
        with np.load(answers, allow_pickle=False) as found:
            replay = {key: found[key] for key in found.files}
    return run_samples(_Replay(replay), ports, arrays, needed)


class _Replay:
    """Answers that were given elsewhere, in the order of the calls, as a session gives them."""

    def __init__(self, answers: dict[str, np.ndarray]) -> None:
        self._answers = answers
        self._names = sorted({key.partition("/")[2] for key in answers})
        self._call = 0

    def get_outputs(self) -> list[Port]:
        return [Port(name, "", np.dtype(np.float32), ()) for name in self._names]

    def run(self, names: list[str], _: Arrays) -> list[np.ndarray]:
        call, self._call = self._call, self._call + 1
        return [self._answers[f"{call}/{name}"] for name in names]


def main(argv: list[str]) -> int:
    """Run a model on the calls in a file and keep its answers in another."""
    model, given, answers = map(Path, argv)
    session = open_session(model.read_bytes())
    names = [output.name for output in session.get_outputs()]
    kept: dict[str, Any] = {}
    with np.load(given, allow_pickle=False) as found:
        calls: dict[int, dict[str, np.ndarray]] = {}
        for key in found.files:
            number, _, name = key.partition("/")
            calls.setdefault(int(number), {})[name] = found[key]
    for number, feed in sorted(calls.items()):
        for name, values in zip(names, session.run(names, feed), strict=True):
            kept[f"{number}/{name}"] = np.asarray(values)
    np.savez(answers, **kept)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
