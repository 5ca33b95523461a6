"""Make the environments in which the servers of `agent_cost.py` run, one for each.

    python benchmarks/serving/environments.py [--out /tmp/agent-peers] [NAME ...]

Each has an interpreter and a `libpython` of its own, copied: pages of a file that other programs
map too would be counted as theirs in part, and memory would look smaller than it is.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = ("skerry", "fastapi", "mlserver", "bentoml", "litserve")
MARK = ".made"


def requirements(name: str) -> Path:
    """The pinned packages of an environment; the agent's are those that a device gets."""
    return ROOT / "requirements/base.txt" if name == "skerry" else HERE / f"requirements/{name}.txt"


def make(out: Path, name: str) -> Path:
    """Make one environment where it is missing or of other requirements; return its python."""
    where, wanted = out / name, requirements(name)
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    mark, python = where / MARK, where / "bin/python"
    if mark.exists() and mark.read_text() == digest:
        return python
    print(f"{name}: making {where}", file=sys.stderr, flush=True)
    venv.EnvBuilder(clear=True, with_pip=True, symlinks=False).create(where)
    library = Path(
        sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("LDLIBRARY") or ""
    )
    if library.suffix != ".a" and library.is_file():
        (where / "own").mkdir()
        soname = sysconfig.get_config_var("INSTSONAME") or library.name
        shutil.copy(library, where / "own" / soname)
    install = [python, "-m", "pip", "--quiet", "--quiet", "install", "-r", wanted]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    mark.write_text(digest)
    return python


def environment(out: Path, name: str) -> dict[str, str]:
    """Environment variables for a program of an environment: one thread, its own library."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    own = {
        "LD_LIBRARY_PATH": str(out / name / "own"),
        "PATH": f"{out / name / 'bin'}:/usr/bin:/bin",
    }
    keep = {key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ}
    return {**keep, **one, **own, "PYTHONDONTWRITEBYTECODE": ""}


def main() -> int:
    """Make those that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path("/tmp/agent-peers"))
    given = parser.parse_args()
    for name in given.names or NAMES:
        make(given.out, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
