"""Kill, fail, fill and cut a device's parts, count, and say what is wrong.

    python -m tests.crash [--seed N] [--share S] [--json FILE] [SECTION ...]

The exit code is 1 if anything is wrong. `--share 0.1` does a tenth of it.
"""

import argparse
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# threads of math libraries are off before they are imported
from tests.crash import calls, clocks, forks, labels, power, real, swaps

Section = tuple[str, Callable[[Path, float, int], dict[str, Any]], Callable[[], str]]
ROOT: Final = Path(__file__).parents[2]
SHM: Final = Path("/dev/shm")


def _always() -> str:
    return ""


SECTIONS: Final[dict[str, Section]] = {
    "forks": (
        "SIGKILL at random instants, by fork",
        lambda folder, share, seed: forks.by_fork(folder, round(10_000 * share), seed),
        _always,
    ),
    "calls": (
        "each file system call killed, and failed with ENOSPC and EIO",
        lambda folder, share, seed: calls.every_call(folder, max(1, round(1 / share)), seed),
        calls.usable,
    ),
    "power": (
        "power cuts on ext4 with noauto_da_alloc",
        lambda folder, share, seed: power.power_cuts(folder, round(1_000 * share), seed),
        power.usable,
    ),
    "full": (
        "disk full, 0 to 64 kB free",
        lambda folder, share, seed: power.disk_full(folder, max(1, round(1 / share)), seed),
        power.usable,
    ),
    "clocks": (
        "clock at 1970, 2038, 2099 and jumping, with SIGKILLs by fork",
        lambda folder, share, seed: clocks.clocks(folder, round(1_000 * share), seed),
        _always,
    ),
    "network": (
        "broker and fleet stalled, reset, throttled, refused and killed, behind a proxy",
        lambda folder, share, seed: real.network_faults(folder, max(1, round(5 * share)), seed),
        _always,
    ),
    "real": (
        "SIGKILL of whole real processes at random instants",
        lambda folder, share, seed: real.real_kills(folder, round(300 * share), seed),
        _always,
    ),
    "swaps": (
        "hot swaps of real serving processes under load",
        lambda folder, share, seed: swaps.hot_swaps(folder, round(100 * share), seed),
        _always,
    ),
    "labels": (
        "SIGKILL of serving processes, also during swaps, while labels come",
        lambda folder, share, seed: labels.labels_killed(folder, round(100 * share), seed),
        _always,
    ),
}


def main() -> int:
    """Run from the command line; the exit code is 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="make crash", description="Try to break a device.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 30))
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers")
    parser.add_argument("--json", type=Path, help="file for the results; kept sections stay")
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="all if none is named")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name in args.sections or SECTIONS:
        what, run, usable = SECTIONS[name]
        print(f"{name}: {what}; seed {args.seed}", file=sys.stderr, flush=True)
        reason = usable()
        if reason:
            found[name] = {"skipped": reason}
            print(f"{name}: left out: {reason}", flush=True)
            continue
        begin = time.monotonic()
        # what is only killed needs no disk; a mounted disk has one of its own
        place = SHM if SHM.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="skerry-crash-", dir=place) as folder:
            result = run(Path(folder), args.share, args.seed)
        found[name] = {
            "seed": args.seed, "share": args.share, "seconds": round(time.monotonic() - begin, 1),
            **result,
        }  # fmt: skip
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        if args.json is not None:
            _write(args.json, {name: found[name]})
    return int(any(result.get("wrong") for result in found.values()))


def _write(file: Path, found: dict[str, Any]) -> None:
    kept = json.loads(file.read_text())["sections"] if file.exists() else {}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    for result in found.values():
        result["commit"] = commit
    machine = {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
    }
    whole = {"command": "make crash", "machine": machine, "sections": kept | found}
    file.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
