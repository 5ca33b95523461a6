"""Makes a file by a patch, in a child process that may crash, hang or grow.

    python -m agent.patch_child OLD PATCH OUT DIGEST SIZE_BYTES CPU_S

A patch comes from elsewhere, and a decompressor reads it: what that does wrong it does here, with
little memory, so much time, and a file that cannot become longer than it should. Leaves with 0
when OUT holds bytes of that digest, synced; whoever starts it looks again, and sets a timeout.
"""

import os
import resource
import sys
from pathlib import Path
from typing import Final

from skerry.delta import apply_patch
from skerry.errors import SkerryError

__all__ = ["MEMORY_BYTES", "main"]

NICE: Final = 10  # what serves goes first
MEMORY_BYTES: Final = 96 << 20  # of address space; with the widest window it takes some 40


def main() -> int:
    """Make the file; return an exit code."""
    old, patch, out = map(Path, sys.argv[1:4])
    digest, size_bytes, cpu_s = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
    os.nice(NICE)
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, size_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        # a file of its own: a child of a control process that was killed may still write to the last
        out.unlink(missing_ok=True)
        with old.open("rb") as base, patch.open("rb") as steps, out.open("xb") as file:
            for piece in apply_patch(base, steps, limit_bytes=size_bytes, wanted=digest):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except (SkerryError, OSError, MemoryError) as error:
        print(str(error) or "out of memory", file=sys.stderr)  # noqa: T201 - to whoever started it
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
