"""Whether the disk has room for a release, beside what the outbox may still take."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from skerry.errors import RefusedError

__all__ = ["NO_ROOM", "check_room", "missing_bytes", "used_bytes"]

NO_ROOM = "no_room"


def check_room(folder: Path, needed: int, kept_free: int) -> None:
    """See that files fit into a folder's disk and leave enough of it free.

    Args:
        folder: where they will lie.
        needed: bytes still to be written.
        kept_free: bytes that must stay free afterwards.

    Raises:
        RefusedError: code ``no_room``.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + kept_free:
        raise RefusedError(
            f"expected {needed + kept_free} free bytes ({needed} for the release, {kept_free} kept "
            f"free), got {free}; make room on the disk",
            NO_ROOM,
        )


def missing_bytes(files: Iterable[tuple[Path, int]]) -> int:
    """Return how many bytes of files of such sizes are not here yet, whole or in part."""
    missing = 0
    for path, size in files:
        if not path.is_file():
            missing += max(0, size - _size(path.with_name(path.name + ".part")))
    return missing


def used_bytes(folder: Path) -> int:
    """Return the size of all files in a folder and below."""
    return sum(_size(path) for path in folder.rglob("*"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
