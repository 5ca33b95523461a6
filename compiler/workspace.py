"""Folders for the files of one step, which fail as themselves where a disk is full.

Whoever quantizes has to take any exception for "this form cannot be made". A full disk is none of
that: it would make a worse bundle and say nothing.
"""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from skerry.errors import SkerryError

__all__ = ["check_room", "workspace"]

SPARE_BYTES: Final = 1 << 20  # besides what a step is known to write
DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG})


@contextlib.contextmanager
def workspace(step: str, needed: int) -> Iterator[Path]:
    """Make a folder of its own for a step, and remove it afterwards.

    Args:
        step: what it is for, in its name and in messages.
        needed: bytes that it will hold at most, about.

    Raises:
        SkerryError: there is no room for it, or the disk failed on the way.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f"skerry-{step}-") as name:
            check_room(Path(name), needed)
            yield Path(name)
    except OSError as error:
        if error.errno not in DISK and not isinstance(error, PermissionError):
            raise
        raise SkerryError(
            f"{step} cannot write its files: {error}; free some disk, or set TMPDIR to a "
            f"directory with {_megabytes(needed)} MB of room"
        ) from None


def check_room(folder: Path, needed: int = 0) -> None:
    """Check that a folder has room for so many bytes, after a failure too.

    Raises:
        SkerryError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise SkerryError(
            f"expected {_megabytes(needed)} MB of room in {folder.parent}, there are "
            f"{free / (1 << 20):.1f}; free some disk, or set TMPDIR to a directory with more"
        )


def _megabytes(needed: int) -> int:
    return -(-(needed + SPARE_BYTES) // (1 << 20))
