"""Make the zoo: real models of many kinds with real data, each ready for `skerry build`.

    python benchmarks/zoo/make.py --venv /tmp/zoo-env [--out /tmp/zoo] [--missing] [NAME ...]

Makes the environment where it is missing, then each model in a process of its own, in the order
of `MODELS`. A folder appears under its name only when it is whole: model.onnx, calibration.npz,
evaluation.npz, baseline.npz, recipe.toml and about.json. Nothing is downloaded but the packages;
speech needs `espeak-ng` on PATH, text the fonts of Debian's `fonts-dejavu-core`.
"""

import argparse
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = {
    "digits_cnn": "digits",
    "digits_mbv2": "digits",
    "ocr_cls": "text_direction",
    "ocr_rec": "text_lines",
    "silero_vad": "speech",
    "minilm": "sentences",
    "tab_mlp": "tables",
    "tab_gbt": "tables",
    "power_cnn": "series",
}


def main() -> int:
    """Make the models that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--venv", type=Path, default=Path("/tmp/zoo-env"))
    parser.add_argument("--out", type=Path, default=Path("/tmp/zoo"))
    parser.add_argument("--missing", action="store_true", help="only those that are not there")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in MODELS]
    if unknown:
        parser.error(f"expected some of {', '.join(MODELS)}, got {unknown[0]}")
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = given.names or list(MODELS)
    if given.missing:
        wanted = [name for name in wanted if not (given.out / name / "about.json").exists()]
    if not wanted:
        return 0
    python = environment(given.venv)
    failed = []
    for name in wanted:
        began = time.monotonic()
        code = (
            f"import {MODELS[name]} as module; from common import save; from pathlib import Path; "
            f"save(Path({str(given.out)!r}), {name!r}, module.{name}())"
        )
        done = subprocess.run([python, "-c", code], cwd=HERE, env=one_thread(), check=False)
        took = time.monotonic() - began
        print(f"{name}: {'made' if not done.returncode else 'FAILED'} in {took:.0f} s", flush=True)
        if done.returncode:
            failed.append(name)
    return 1 if failed else 0


def environment(place: Path) -> Path:
    """Return the interpreter of the environment, made where it is missing."""
    python, stamp = place / "bin" / "python", place / "zoo-requirements.txt"
    wanted = (HERE / "requirements.txt").read_text()
    if not python.exists():
        venv.create(place, with_pip=True)
    if not stamp.exists() or stamp.read_text() != wanted:
        pip = [python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted)
    return python


def one_thread() -> dict[str, str]:
    """Return an environment in which nothing looks for a network, and every library has a thread."""
    os.nice(max(0, 10 - os.nice(0)))
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    return {**os.environ, **one, **offline, "CUDA_VISIBLE_DEVICES": ""}


if __name__ == "__main__":
    sys.exit(main())
