"""The memory that running a model takes, measured in a process of its own.

    python -m compiler.footprint MODEL CALL.npz

What counts is what the process grows by from before the model is loaded to the most that it
has while it loads and answers: the interpreter and onnxruntime are there on any device.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from compiler.runtime import open_session
from compiler.workspace import workspace
from skerry.errors import RefusedError

__all__ = ["measure_mb"]

TIMEOUT_S: Final = 120.0


def measure_mb(model: bytes, call: dict[str, Any]) -> float:
    """Return the most memory that loading and running a model takes, in MB of 2^20 bytes.

    Args:
        model: single-file ONNX.
        call: one call's tensors.

    Raises:
        RefusedError: it failed.
    """
    root = str(Path(__file__).resolve().parents[1])
    data = sum(tensor.nbytes for tensor in call.values())
    with workspace("footprint", len(model) + 4 * data) as folder:
        file, given = folder / "model.onnx", folder / "call.npz"
        file.write_bytes(model)
        plain = {n: v.astype(str) if v.dtype.kind == "O" else v for n, v in call.items()}
        np.savez(given, **plain)  # texts without pickles
        done = subprocess.run(
            [sys.executable, "-P", "-m", "compiler.footprint", file, given],
            env={**os.environ, "PYTHONPATH": root}, cwd=folder, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=TIMEOUT_S, check=False, text=True,
        )  # fmt: skip
    try:
        return float(done.stdout)
    except ValueError:
        last = " ".join(done.stderr.strip().splitlines()[-1:])[:300]
        raise RefusedError(f"its memory could not be measured: {last}") from None


def _kb(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0


def main(argv: list[str]) -> int:
    """Load and run a model, and print the megabytes that it took."""
    file, given = map(Path, argv)
    with np.load(given, allow_pickle=False) as found:
        call = {name: found[name] for name in found.files}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kb("VmRSS")
    session = open_session(file.read_bytes())
    for _ in range(3):
        session.run(None, call)
    sys.stdout.write(f"{(_kb('VmHWM') - before) / 1024}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
