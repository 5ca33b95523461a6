"""Maintenance windows: when a device may change what it runs, by the clock on its wall.

    Mon-Fri 22:00-05:00; Sat,Sun 00:00-24:00        daily 02:00-04:00

A window that ends before it begins goes on into the next day, and belongs to the day on which it
begins. What counts is what a clock on the wall shows in the device's time zone, whatever it does:
in the night in which clocks go forward, a window that lies in the hour that is left out does not
come; in the night in which they go back, one in the hour that comes twice is open twice.
"""

import re
from datetime import UTC, datetime, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from skerry.errors import UsageError

__all__ = ["Window", "is_open", "next_open", "parse_windows", "parse_zone", "wall"]

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MIN: Final = 24 * 60
MAX_WINDOWS: Final = 32
LOOK_AHEAD_MIN: Final = 9 * DAY_MIN  # a week, and a day on which a window did not come
_TIMES: Final = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)")
EXAMPLE: Final = "'Mon-Fri 22:00-05:00; Sat,Sun 00:00-24:00'"


class Window(msgspec.Struct, frozen=True):
    """A time of some days of the week; minutes since midnight, `days` from Monday as 0."""

    days: frozenset[int]
    begins: int
    ends: int  # of the next day where it is not after `begins`

    def shows(self, weekday: int, minute: int) -> bool:
        """Tell whether a clock on the wall shows a time in it."""
        if self.begins < self.ends:
            return weekday in self.days and self.begins <= minute < self.ends
        return (weekday in self.days and minute >= self.begins) or (
            (weekday - 1) % 7 in self.days and minute < self.ends
        )


def parse_windows(text: str) -> tuple[Window, ...]:
    """Read windows, separated by semicolons; none at all means that any time will do.

    Raises:
        UsageError: not of this form.
    """
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if len(parts) > MAX_WINDOWS:
        raise UsageError(f"expected at most {MAX_WINDOWS} windows, got {len(parts)}")
    return tuple(_window(part) for part in parts)


def parse_zone(name: str) -> tzinfo | None:
    """Return a time zone by its name, None for the system's own.

    Raises:
        UsageError: it is not known here.
    """
    if not name:
        return None
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(
            f"expected a time zone such as Europe/Berlin, got {name!r}; if it is right, install "
            "the time zones of the system (package tzdata)"
        ) from None


def wall(at: float, zone: tzinfo | None) -> datetime:
    """Return what a clock on the wall shows.

    Args:
        at: Unix seconds.
        zone: None for the system's own.
    """
    return datetime.fromtimestamp(at, zone)


def is_open(windows: tuple[Window, ...], at: float, zone: tzinfo | None) -> bool:
    """Tell whether a window is open; without any, it always is.

    Args:
        windows: of this device.
        at: Unix seconds.
        zone: None for the system's own.
    """
    if not windows:
        return True
    shown = wall(at, zone)
    return any(window.shows(shown.weekday(), 60 * shown.hour + shown.minute) for window in windows)


def next_open(windows: tuple[Window, ...], at: float, zone: tzinfo | None) -> float | None:
    """Return the Unix time of the minute in which a window opens next, None if none ever does."""
    minute = at - at % 60
    for step in range(LOOK_AHEAD_MIN):
        if is_open(windows, minute + 60 * step, zone):
            return max(at, minute + 60 * step)
    return None


def _window(text: str) -> Window:
    days, _, times = text.rpartition(" ")
    found = _TIMES.fullmatch(times.strip())
    if found is None:
        raise UsageError(f"expected a window such as {EXAMPLE}, got {text!r}")
    from_h, from_m, to_h, to_m = (int(part) for part in found.groups())
    begins, ends = 60 * from_h + from_m, 60 * to_h + to_m
    if from_m > 59 or to_m > 59 or begins >= DAY_MIN or ends > DAY_MIN or begins == ends:
        raise UsageError(
            f"expected times from 00:00 to 24:00 that differ, got {times.strip()!r} in {text!r}"
        )
    return Window(_days(days.strip().lower(), text), begins, ends)


def _days(text: str, whole: str) -> frozenset[int]:
    if text in {"", "daily"}:
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise UsageError(f"expected days such as Mon-Fri or Sat,Sun, got {part!r} in {whole!r}")
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        days |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    return frozenset(days)
