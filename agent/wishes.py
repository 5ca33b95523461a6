"""What people at the device wish while control works: a small file that it reads and removes.

Also one that was written while no agent ran. A crash between reading and doing loses the wish, and
it is asked again; one that is read twice does nothing the second time (`agent.taking_back`).
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from agent.facts import TakenBack
from agent.slots import write_whole
from skerry.canonical import from_json, to_json
from skerry.errors import FormatError

__all__ = ["ask", "take_wishes"]

MAX_BYTES: Final = 1 << 16


def ask(file: Path, wish: TakenBack) -> None:
    """Keep a wish until control has read it; a second one for the same slot replaces it."""
    wishes = [one for one in _read(file) if one.slot != wish.slot]
    write_whole(file, to_json([*wishes, wish]))
    if os.geteuid() == 0:  # the agent's user shall read it, whatever root's mask is
        owner = file.parent.stat()
        os.chown(file, owner.st_uid, owner.st_gid)


def take_wishes(file: Path) -> list[TakenBack]:
    """Return the wishes that were left, and remove the file."""
    if not file.exists():
        return []
    wishes = _read(file)
    file.unlink(missing_ok=True)
    return wishes


def _read(file: Path) -> list[TakenBack]:
    with contextlib.suppress(OSError, FormatError):
        return from_json(file.read_bytes(), list[TakenBack], limit=MAX_BYTES)
    return []
