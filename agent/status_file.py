"""The small file in which control says how it is, for who looks from outside.

``skerry-agent status`` reads it, and serve for ``/metrics``.
"""

from pathlib import Path
from typing import Final

import msgspec

from skerry.canonical import from_json, to_json
from skerry.errors import FormatError

__all__ = ["Status", "read_status", "write_status"]

MAX_STATUS_BYTES: Final = 1 << 20


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file that control writes; losing it loses nothing."""

    control_pid: int
    serve_pid: int | None
    http: str
    connected: bool
    acked: dict[str, int]  # per boot
    waiting: int  # records that the fleet has not acknowledged
    under_way: int  # batches without an answer
    serve_restarts: int = 0
    refused: int = 0  # messages from the broker
    stale: list[str] = []  # repositories without fresh metadata
    trust_code: str = ""  # why metadata is refused
    clock_off_s: int = 0  # the system's clock is so far ahead of the fleet's
    patched: int = 0  # files that were made by a patch, since control began
    patch_failed: int = 0  # and those for which that failed
    patch_saved_bytes: int = 0
    unrecorded: int = 0  # predictions that were answered, and not recorded for lack of room
    certificate_expires: float = 0.0  # Unix seconds; 0: it cannot be read
    doing: dict[str, str] = {}  # by slot


def write_status(file: Path, status: Status) -> None:
    """Write the file beside its place and rename it; not synced, for nothing rests on it."""
    beside = file.with_name(f".{file.name}.new")
    beside.write_bytes(to_json(status))
    beside.replace(file)


def read_status(file: Path) -> Status | None:
    """Return what was last written, None if nothing was, or it cannot be read."""
    try:
        return from_json(file.read_bytes(), Status, limit=MAX_STATUS_BYTES)
    except (OSError, FormatError):
        return None
