"""What Olive and onnx-neural-compressor make of the zoo's models, with their defaults.

    python -m venv /tmp/peers-env
    /tmp/peers-env/bin/pip install olive-ai==0.13.0 onnx-neural-compressor==1.0 requests prettytable
    /tmp/peers-env/bin/python benchmarks/peers.py [--zoo /tmp/zoo] [--out /tmp/peers] [NAME ...]

Runs in an environment of its own: they need torch and an older numpy. (`requests` and `prettytable`
are named because these packages import them and do not declare them.) Writes
<out>/<model>/<tool>.onnx, or <tool>.txt with the reason where there is none. Each tool runs in a
child process of at most `LIMIT_S` seconds, since some of them do not come back.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 240
SAMPLES = 128
# Olive reports to its makers unless it is told not to
QUIET = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def feeds(folder: Path) -> list[dict[str, np.ndarray]]:
    """Return calibration samples one by one, as the model takes them."""
    recipe = tomllib.loads((folder / "recipe.toml").read_text())
    notes = recipe.get("inputs", {})
    import onnxruntime as ort

    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    found: list[dict[str, np.ndarray]] = []
    with np.load(folder / "calibration.npz") as data:
        n = min(SAMPLES, len(next(iter(data.values()))))
        arrays = {name: data[name][:n] for name in names if name in data}
    for at in range(n):
        feed = {}
        for name in names:
            note = notes.get(name, {})
            if "fill" in note:
                feed[name] = np.full(note["shape"], note["fill"], np.float32)
            elif note.get("batch", True):
                feed[name] = arrays[name][at : at + 1]
            else:
                feed[name] = arrays[name][at]
        found.append(feed)
    return found


def neural_compressor(folder: Path, out: Path, *, dynamic: bool) -> None:
    """Quantize with onnx-neural-compressor's defaults."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize

    class Reader(data_reader.CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> Any:
            return next(self._feeds, None)

        def rewind(self) -> None:
            self._feeds: Iterator[dict[str, np.ndarray]] = iter(feeds(folder))

    chosen = (
        config.DynamicQuantConfig()
        if dynamic
        else config.StaticQuantConfig(calibration_data_reader=Reader())
    )
    quantize(str(folder / "model.onnx"), str(out), chosen)


def olive(folder: Path, out: Path, *, dynamic: bool) -> None:
    """Run Olive's quantization pass with its defaults, on our calibration samples."""
    from olive.workflows import run

    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch, "samples.py")
        script.write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path\n"
            "from olive.data.registry import Registry\n"
            "from peers import feeds\n"
            "class Samples:\n"
            f"    def __init__(self): self.all = feeds(Path({str(folder)!r}))\n"
            "    def __len__(self): return len(self.all)\n"
            "    def __getitem__(self, at): return self.all[at], 0\n"
            "@Registry.register_dataset()\n"
            "def zoo_samples(**_): return Samples()\n"
            "@Registry.register_dataloader()\n"
            "def one_by_one(dataset, **_): return [dataset[i] for i in range(len(dataset))]\n"
        )
        kind = "OnnxDynamicQuantization" if dynamic else "OnnxStaticQuantization"
        passes: dict[str, Any] = {"quantize": {"type": kind}}
        told: dict[str, Any] = {
            "input_model": {"type": "ONNXModel", "model_path": str(folder / "model.onnx")},
            "passes": passes,
            "output_dir": str(Path(scratch, "out")),
            "cache_dir": str(Path(scratch, "cache")),
            "evaluate_input_model": False,
            "log_severity_level": 3,
        }
        if not dynamic:
            passes["quantize"]["data_config"] = "samples"
            told["data_configs"] = [
                {
                    "name": "samples",
                    "user_script": str(script),
                    "load_dataset_config": {"type": "zoo_samples"},
                    "pre_process_data_config": {"type": "skip_pre_process"},
                    "post_process_data_config": {"type": "skip_post_process"},
                    "dataloader_config": {"type": "one_by_one"},
                }
            ]
        config = Path(scratch, "config.json")
        config.write_text(json.dumps(told))
        run(str(config))
        made = sorted(Path(scratch, "out").rglob("*.onnx"), key=lambda path: len(path.parts))
        if not made:
            raise FileNotFoundError("it ended without an error and without a model")
        out.write_bytes(made[0].read_bytes())


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "Olive dynamic": lambda folder, out: olive(folder, out, dynamic=True),
    "Olive static": lambda folder, out: olive(folder, out, dynamic=False),
    "neural-compressor dynamic": lambda folder, out: neural_compressor(folder, out, dynamic=True),
    "neural-compressor static": lambda folder, out: neural_compressor(folder, out, dynamic=False),
}


def main() -> None:
    """Run every tool on every model, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--zoo", type=Path, default=Path("/tmp/zoo"))
    parser.add_argument("--out", type=Path, default=Path("/tmp/peers"))
    parser.add_argument("--one", choices=TOOLS, help="run this tool here, on the one model named")
    given = parser.parse_args()
    if given.one:
        name = given.names[0]
        TOOLS[given.one](given.zoo / name, given.out / name / f"{given.one}.onnx")
        return
    names = given.names or sorted(path.parent.name for path in given.zoo.glob("*/about.json"))
    for name in names:
        place = given.out / name
        place.mkdir(parents=True, exist_ok=True)
        for tool in TOOLS:
            file, why = place / f"{tool}.onnx", place / f"{tool}.txt"
            for old in (file, why):
                old.unlink(missing_ok=True)
            command = [sys.executable, __file__, name, "--one", tool]
            command += ["--zoo", str(given.zoo), "--out", str(given.out)]
            began, reason = time.monotonic(), ""
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=LIMIT_S, check=False,
                    env={**os.environ, **QUIET},
                )  # fmt: skip
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                if done.returncode or not file.exists():
                    errors = [line for line in lines if "Error" in line or "error:" in line]
                    reason = (errors or lines or ["no word"])[-1].strip()
            except subprocess.TimeoutExpired:
                reason = f"not done after {LIMIT_S} s"
            if reason:
                file.unlink(missing_ok=True)
                why.write_text(reason + "\n")
            took = time.monotonic() - began
            print(f"{name}: {tool}: {reason or 'made'} ({took:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
