"""Fuzz the parsers and print a table.

    python -m tests.fuzz [--inputs N] [--seed N] [TARGET ...]

Each target runs in a process of its own, one after another. An input that breaks a
parser is written to `tests/fuzz/found/`; mend the parser, then move it to `seeds/`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.harness import GROWTH_BYTES, HANG_S, run, shown
from tests.fuzz.targets import all_targets

FOUND = Path(__file__).parent / "found"
HEAD = "| parser | inputs | seconds | accepted | crashes | worst ms | RSS growth MiB |"


def main() -> int:
    """Run from the command line; the exit code is 1 if something was found."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzz the parsers.")
    default = int(os.environ.get("FUZZ_INPUTS", "1000000"))
    parser.add_argument("--inputs", type=int, default=default, help="of each parser")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help="all of them if none is named")
    args = parser.parse_args()
    if args.child is not None:
        return _child(args.targets[0], args.inputs, args.seed, args.child)
    names = args.targets or list(all_targets())
    print(f"{HEAD}\n|---|---|---|---|---|---|---|", flush=True)
    results = [_row(name, args.inputs, args.seed) for name in names]
    return 0 if all(results) else 1


def _row(name: str, inputs: int, seed: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        under_way = Path(folder, "input")
        command = [
            sys.executable, "-m", "tests.fuzz", "--child", str(under_way), "--inputs", str(inputs),
            "--seed", str(seed), name,
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            kept = _keep(name, shown(under_way))
            print(
                f"| {name} | - | - | - | died ({done.returncode}) on {kept} | - | - |", flush=True
            )
            return False
    said: dict[str, Any] = json.loads(done.stdout)
    for kind, data in said["failures"]:
        print(f"{name}: {kind}: {_keep(name, bytes.fromhex(data))}", file=sys.stderr, flush=True)
    growth = said["growth_bytes"] / (1 << 20)
    print(
        f"| {name} | {said['inputs']:,} | {said['seconds']:.0f} | {said['accepted'] / max(1, said['inputs']):.0%} "
        f"| {len(said['failures'])} | {said['worst_ms']:.1f} | {growth:.1f} |",
        flush=True,
    )
    slow = said["worst_ms"] > HANG_S * 1000
    return not said["failures"] and not slow and said["growth_bytes"] <= GROWTH_BYTES


def _child(name: str, inputs: int, seed: int, under_way: Path) -> int:
    outcome = run(all_targets()[name], inputs, seed=seed, under_way=under_way)
    said = {
        "inputs": outcome.inputs, "seconds": outcome.seconds, "accepted": outcome.accepted,
        "worst_ms": outcome.worst_ms, "growth_bytes": outcome.growth_bytes,
        "failures": [(kind, data.hex()) for kind, data in outcome.failures],
    }  # fmt: skip
    json.dump(said, sys.stdout)
    return 0


def _keep(name: str, data: bytes) -> Path:
    FOUND.mkdir(exist_ok=True)
    path = FOUND / f"{name}-{len(list(FOUND.glob(f'{name}-*'))) + 1}"
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
