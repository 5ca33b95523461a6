"""A disk in memory that can crash its owner at a write, or be full.

`Crash` is no error of the program: it is the moment at which its process dies. Whoever
drives the program catches it, forgets everything but the disk, and starts it anew.
"""

from collections.abc import Callable


class Crash(BaseException):
    """The process is gone."""


class DiskFullError(OSError):
    """No space is left."""


class Disk:
    """Named values that survive a crash.

    Args:
        writes_left: writes that still succeed before every one raises `DiskFullError`;
            None for no limit.
    """

    def __init__(self, writes_left: int | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.writes = 0
        self.writes_left = writes_left
        self.before_write: Callable[[], None] = lambda: None  # may raise Crash
        self.after_write: Callable[[], None] = lambda: None  # may raise Crash

    def write(self, name: str, data: bytes) -> None:
        """Replace a value as a whole: it is either the old or the new one."""
        self.before_write()
        if self.writes_left is not None:
            if self.writes_left <= 0:
                raise DiskFullError(28, "No space left on device", name)
            self.writes_left -= 1
        self.files[name] = data
        self.writes += 1
        self.after_write()

    def read(self, name: str) -> bytes | None:
        """Return a value, None if there is none."""
        return self.files.get(name)
