"""The device's time: the system's clock, but never below what the fleet has signed."""

import time
from datetime import UTC, datetime

__all__ = ["at_utc", "device_time"]


def device_time(floor: float) -> float:
    """Return Unix seconds by the system's clock, or the floor where that has gone back."""
    return max(time.time(), floor)


def at_utc(seconds: float) -> datetime:
    """Return Unix seconds as an aware time, without fractions (as TUF writes expiry)."""
    return datetime.fromtimestamp(int(seconds), UTC)
