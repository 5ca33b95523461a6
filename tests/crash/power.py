"""A small ext4 disk of its own, whose power can be cut.

A file is mounted through a loop device with `noauto_da_alloc`, so that a rename does not sync
what it renames. A cut is the file system's own shutdown without a flush of its journal, as
file system developers test with: what was not synced is gone, unless the journal took it.
"""

import fcntl
import os
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any, Final, Self

from tests.crash.forks import by_fork
from tests.crash.ledger import Ledger
from tests.crash.lives import live, settle

SHUTDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH: Final = struct.pack("I", 2)
DISK_KB: Final = 64 << 10
FULL_S: Final = 0.7
ROOM_KB: Final = 65


class Disk:
    """The disk, mounted in a folder.

    Args:
        folder: where its file and its mount point are made.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self.root = folder / "disk.img", folder / "disk"

    def __enter__(self) -> Self:
        self.root.mkdir()
        _run("truncate", "-s", f"{DISK_KB}k", str(self._file))
        _run("mkfs.ext4", "-q", "-b", "1024", "-m", "0", str(self._file))
        self._mount()
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop,noauto_da_alloc", str(self._file), str(self.root))

    def _unmount(self) -> None:
        _run("umount", str(self.root))

    def cut(self, pid: int) -> None:
        """Cut the power of a process and of this disk at one instant; the disk comes back."""
        os.kill(pid, signal.SIGSTOP)
        folder = os.open(self.root, os.O_RDONLY)
        fcntl.ioctl(folder, SHUTDOWN, NO_LOG_FLUSH)
        os.close(folder)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its files are closed by then
        self._unmount()
        self._mount()

    def leave_free(self, free: int) -> Path:
        """Fill the disk but for so many bytes; return the file that fills it."""
        ballast = self.root / "ballast"
        with ballast.open("wb") as file:
            missing = shutil.disk_usage(self.root).free - free
            while missing > 0:  # its own index takes blocks too
                size = os.fstat(file.fileno()).st_size
                try:
                    os.posix_fallocate(file.fileno(), size, missing)
                except OSError:
                    missing -= 1024
                    continue
                missing = shutil.disk_usage(self.root).free - free
        return ballast


def usable() -> str:
    """Return why no disk can be mounted here, empty if one can."""
    if os.geteuid() != 0:
        return "only root may mount a disk"
    return "" if shutil.which("mkfs.ext4") else "expected mkfs.ext4 on PATH"


def power_cuts(folder: Path, cuts: int, seed: int) -> dict[str, Any]:
    """Cut the power at random instants."""
    with Disk(folder) as disk:
        return by_fork(disk.root / "devices", cuts, seed, kill=disk.cut, cuts_power=True)


def disk_full(folder: Path, step: int, seed: int) -> dict[str, Any]:
    """Let one update and one flush meet a disk with 0 to 64 kB free, then make room.

    Args:
        folder: for the disk.
        step: kB from one size to the next.
        seed: of what happens when.
    """
    wrong: list[str] = []
    sizes = answered = unrecorded = faults = begun = 0
    with Disk(folder) as disk:
        for kb in range(0, ROOM_KB, step):
            root, ledger = disk.root / f"free-{kb}", Ledger()
            wrong += settle(root, ledger, last=1, seed=seed)
            before = len(ledger.answered)
            ballast = disk.leave_free(kb << 10)
            death = live(root, ledger, seed=seed + kb, last=2, kill_after_s=FULL_S)
            during = len(ledger.answered) - before
            begun += death.done
            signaled = os.WTERMSIG(death.status) if os.WIFSIGNALED(death.status) else signal.SIGKILL
            if signaled != signal.SIGKILL:
                wrong.append(f"{kb} kB free: ended by signal {signaled}")
            if during == 0:
                wrong.append(f"{kb} kB free: nothing was answered: {ledger.faults[-1:]}")
            ballast.unlink()
            end = settle(root, ledger, last=3, seed=seed + kb)
            wrong += [f"{kb} kB free: {text}" for text in end]
            sizes += 1
            answered += during
            unrecorded += sum(not kept for _, _, kept in ledger.answered.values())
            faults += len(ledger.faults)
            shutil.rmtree(root)
    return {
        "sizes": sizes, "answered_while_full": answered, "of_them_without_a_record": unrecorded,
        "calls_refused": faults, "done_while_full": begun, "wrong": wrong[:20],
    }  # fmt: skip


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
