"""Where and how a result was measured, written beside it."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"


def write(name: str, found: dict[str, object], *, quiet: bool = False) -> None:
    """Keep a result as results/<name>.json, and print it unless told otherwise."""
    whole = {
        "command": f"python benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "cpus": len(list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*"))),
            "platform": platform.platform(),
            "python": platform.python_version(),
        },
        **found,
    }
    text = json.dumps(whole, indent=2)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    if not quiet:
        print(text)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def _commit() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
