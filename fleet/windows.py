"""Windows of devices, as the analyses take them: counts of one device, bundle and time.

A window has enough data with `min_n` predictions; others are set aside, never
guessed at. `split` makes of a rollout's windows what a canary analysis compares:
each device's own past, and what came after the first canary began to serve.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from skerry.sketch import Column

__all__ = ["DeviceSeries", "DeviceWindow", "by_device", "current_run", "split"]

MAX_BEFORE: Final = 60  # windows of the past that a comparison looks at


@dataclass(frozen=True, slots=True)
class DeviceWindow:
    """Counts of the predictions of one device, bundle and span of time."""

    device: str
    bundle: str
    start: float  # Unix seconds
    length_s: float
    n: int
    errors: int
    columns: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class DeviceSeries:
    """The windows of one device before and after a change, in order of time."""

    before: tuple[DeviceWindow, ...]
    after: tuple[DeviceWindow, ...]


def by_device(windows: Iterable[DeviceWindow]) -> dict[str, list[DeviceWindow]]:
    """Return each device's windows in order of time."""
    grouped: dict[str, list[DeviceWindow]] = defaultdict(list)
    for window in windows:
        grouped[window.device].append(window)
    return {d: sorted(ws, key=lambda w: w.start) for d, ws in sorted(grouped.items())}


def current_run(windows: Sequence[DeviceWindow]) -> list[DeviceWindow]:
    """Return a device's windows of the bundle that its latest window has.

    Counts of two bundles stand on different edges, and are never compared.
    """
    if not windows:
        return []
    bundle = max(windows, key=lambda w: w.start).bundle
    return sorted((w for w in windows if w.bundle == bundle), key=lambda w: w.start)


def split(
    windows: Iterable[DeviceWindow],
    *,
    canary: Iterable[str],
    control: Iterable[str],
    bundle: str,
    min_n: int,
) -> tuple[dict[str, DeviceSeries], dict[str, DeviceSeries]]:
    """Return what a canary analysis compares: the canary's series and the control's.

    Args:
        windows: of all devices, any order, any bundle.
        canary: devices that were given the new bundle.
        control: devices that were not.
        bundle: the new bundle's digest.
        min_n: predictions that a window needs.

    Returns:
        Series by device. The canary's `after` are windows of the new bundle, the
        control's those of the same time; every `before` is of the one bundle that
        the device served last before that time.
    """
    full = by_device(w for w in windows if w.n >= min_n)
    canary = tuple(canary)
    starts = [w.start for d in canary for w in full.get(d, ()) if w.bundle == bundle]
    begin, end = (min(starts), max(starts)) if starts else (float("inf"), float("-inf"))
    first = {
        d: min((w.start for w in full.get(d, ()) if w.bundle == bundle), default=begin)
        for d in canary
    }
    chosen = {
        d: DeviceSeries(
            before=_past(full.get(d, ()), first[d], bundle),
            after=tuple(w for w in full.get(d, ()) if w.bundle == bundle),
        )
        for d in canary
    }
    others = {
        d: DeviceSeries(
            before=_past(full.get(d, ()), begin, bundle),
            after=tuple(
                w for w in full.get(d, ()) if begin <= w.start <= end and w.bundle != bundle
            ),
        )
        for d in control
    }
    return chosen, others


def _past(
    windows: Sequence[DeviceWindow], until: float, new_bundle: str
) -> tuple[DeviceWindow, ...]:
    past = [w for w in windows if w.start < until and w.bundle != new_bundle]
    return tuple(current_run(past)[-MAX_BEFORE:])
