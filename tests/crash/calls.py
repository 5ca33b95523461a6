"""Every file system call of one update and one flush: killed once, failed once with each error.

`strace` is attached to a forked life and lets its n-th call of one kind fail, or die with it.
"""

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.crash.ledger import Ledger
from tests.crash.lives import live, settle

WRITES: Final = (
    "openat", "mkdir", "rename", "write", "pwrite64", "fsync", "fdatasync", "ftruncate",
    "fallocate",
)  # fmt: skip
READS: Final = (
    "read", "pread64", "newfstatat", "fstat", "getdents64", "unlink", "unlinkat", "rmdir",
    "flock", "statfs", "lseek", "truncate",
)  # fmt: skip
FAULTS: Final = {
    "killed": ("signal=KILL", WRITES + READS),
    "ENOSPC": ("error=ENOSPC", WRITES),
    "EIO": ("error=EIO", WRITES + READS),
}
LIFE_S: Final = 20.0


def usable() -> str:
    """Return why calls cannot be failed here, empty if they can."""
    return "" if shutil.which("strace") else "expected strace on PATH"


def every_call(folder: Path, every: int, seed: int) -> dict[str, Any]:
    """Kill and fail each call once.

    Args:
        folder: for the devices.
        every: 1 for all of them, 2 for every second one, and so on.
        seed: of what happens when.
    """
    start, known = folder / "start", Ledger()
    wrong = settle(start, known, last=1, seed=seed)
    kinds = _count(folder, start, seed)
    done: Counter[str] = Counter()
    for name, (what, calls) in FAULTS.items():
        for call, n in list(_each(kinds, calls))[seed % every :: every]:
            root, ledger = folder / "device", Ledger(**_copy(known))
            shutil.copytree(start, root)
            tracer = Tracer(["-e", f"trace={call}", "-e", f"inject={call}:{what}:when={n}"])
            live(root, ledger, seed=seed, last=2, kill_after_s=LIFE_S, before=tracer.attach)
            tracer.end()
            ended = settle(root, ledger, last=3, seed=seed)
            wrong += [f"{call} {n} {name}: {text}" for text in ended]
            done[name] += 1
            shutil.rmtree(root)
    return {"calls": sum(kinds.values()), "kinds": dict(kinds), **done, "wrong": wrong[:20]}


class Tracer:
    """A `strace` that is attached before a life begins."""

    def __init__(self, options: list[str], out: Path = Path("/dev/null")) -> None:
        self._options = [*options, "-o", str(out)]
        self._process: subprocess.Popen[bytes] | None = None

    def attach(self, pid: int) -> None:
        command = ["strace", "-f", *self._options, "-p", str(pid)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        while line := self._process.stderr.readline():
            if b"attached" in line:
                return
        raise RuntimeError(f"{' '.join(command)} ended")

    def end(self) -> None:
        assert self._process is not None
        self._process.communicate()


def _count(folder: Path, start: Path, seed: int) -> Counter[str]:
    """Return how often one update and one flush make each call."""
    root, out = folder / "counted", folder / "calls.txt"
    shutil.copytree(start, root)
    tracer = Tracer(["-e", "trace=" + ",".join(WRITES + READS)], out)
    live(root, Ledger(), seed=seed, last=2, before=tracer.attach)
    tracer.end()
    time.sleep(0.05)
    found = re.findall(r"^\d+\s+(\w+)\(", out.read_text(), re.MULTILINE)
    shutil.rmtree(root)
    return Counter(found)


def _each(kinds: Counter[str], calls: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for call in calls:
        for n in range(1, kinds[call] + 1):
            yield call, n


def _copy(ledger: Ledger) -> dict[str, Any]:
    return {
        "answered": dict(ledger.answered),
        "stored": dict(ledger.stored),
        "contexts": dict(ledger.contexts),
        "upto": Counter(ledger.upto),
    }
