"""Files that are either the old ones or the new ones, whatever happens in between.

A file is written beside its place, synced, renamed, and its folder is synced: after a power cut
there is one of the two, whole.
"""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

__all__ = ["make_folder", "sync_folder", "write_atomic"]


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, mode: int = 0o644) -> None:
    """Write a file durably, all of it or nothing.

    Args:
        path: the file; its folder exists.
        data: bytes, or chunks of bytes; an error raised by the chunks leaves the old file.
        mode: permissions; the file never exists with wider ones.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for chunk in (data,) if isinstance(data, bytes) else data:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(path: Path, *, mode: int = 0o755) -> Path:
    """Make a folder with its parents, durably, and return it."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        sync_folder(path.parent)
    return path


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
