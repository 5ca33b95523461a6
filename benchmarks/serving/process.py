"""What a process and all its children take: CPU time, memory, and how they are ended."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "end", "memory_kib", "tree", "usage"]

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """CPU time of a tree so far, microseconds.

    `stat` is utime and stime of /proc/PID/stat, in ticks of 10 ms, with what ended children took;
    `threads` is the run time of every living thread in nanoseconds, from its schedstat.
    """

    stat: float
    threads: dict[tuple[int, int], float]

    def since(self, before: "Usage") -> float:
        """Return the microseconds between two looks.

        By threads, which is exact, unless one of them ended meanwhile.
        """
        if before.threads.keys() - self.threads.keys():
            return self.stat - before.stat
        return sum(self.threads.values()) - sum(before.threads.values())


def tree(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, at = [root], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def usage(pids: list[int]) -> Usage:
    """Return the CPU time of these processes so far."""
    ticks, threads = 0, {}
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
            for task in Path(f"/proc/{pid}/task").iterdir():
                spent = int((task / "schedstat").read_text().split()[0])
                threads[pid, int(task.name)] = spent / 1000
    return Usage(ticks * TICK_US, threads)


def memory_kib(pid: int) -> int:
    """Return the proportional set size of one process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"expected Pss of process {pid}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server with its children: they are asked first."""
    whole = tree(process.pid)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(8)
    for pid in whole:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(5)
    time.sleep(0.1)
