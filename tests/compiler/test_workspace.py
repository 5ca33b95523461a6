"""A full disk is said, and makes no worse bundle."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.workspace import check_room, workspace
from skerry.errors import SkerryError

SCRIPT = 'mount -t tmpfs -o size="$SIZE" tmpfs "$TMPDIR" && exec "$@"'


def small_disk(size: str, folder: Path, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command whose temporary files are on a disk of a size, seen by it alone."""
    folder.mkdir()
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", *map(str, command)],
        env={**os.environ, "TMPDIR": str(folder), "SIZE": size, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to mount a small disk")
    if small_disk("1m", tmp_path / "try", "true").returncode:
        pytest.skip("nothing can be mounted here")
    return tmp_path


@pytest.mark.parametrize("size", ["16k", "128k", "1m"])
def test_a_build_without_room_fails_and_leaves_nothing(
    disks: Path, recipe_path: Path, size: str
) -> None:
    out = disks / "out.skerry"
    done = small_disk(
        size, disks / "small", sys.executable, "-m", "skerry", "build", recipe_path, "--out", out
    )
    assert done.returncode == 1, done.stderr
    assert "free some disk, or set TMPDIR to a directory with" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_disk_with_room_is_enough(disks: Path, recipe_path: Path) -> None:
    out = disks / "out.skerry"
    done = small_disk(
        "64m", disks / "enough", sys.executable, "-m", "skerry", "build", recipe_path, "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_more_than_the_disk_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SkerryError, match="MB of room in"):
        check_room(tmp_path, 1 << 60)
    with pytest.raises(SkerryError, match="set TMPDIR"), workspace("trial", 1 << 60):
        pytest.fail("there is no room")


def test_a_disk_that_fails_on_the_way_is_named() -> None:
    with (
        pytest.raises(SkerryError, match=r"calibration cannot write its files: .*No space left"),
        workspace("calibration", 10),
    ):
        raise OSError(28, "No space left on device")


def test_other_errors_of_a_step_pass() -> None:
    with pytest.raises(FileNotFoundError), workspace("trial", 10):
        raise FileNotFoundError(2, "No such file", "x")
