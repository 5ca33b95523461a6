"""How much one device may say: a bucket of bytes for each, so that none drowns the others.

A device that obeys its credit never comes near; one that floods is heard up to its rate and no
more. What is left unheard was not answered, so an honest device says it again later. Pure.
"""

from collections import OrderedDict
from typing import Final

__all__ = ["Rate"]

BYTES_PER_S: Final = 4 << 20
BURST_BYTES: Final = 64 << 20
LEAST_BYTES: Final = 2048  # what the smallest message costs: a signature to check, a row to write
MAX_DEVICES: Final = 200_000  # remembered; who is forgotten has a full bucket


class Rate:
    """Tells whether a device's message is within its rate.

    Args:
        bytes_per_s: that flow into a bucket.
        burst_bytes: that a bucket holds.
    """

    def __init__(
        self,
        *,
        bytes_per_s: float = BYTES_PER_S,
        burst_bytes: float = BURST_BYTES,
        max_devices: int = MAX_DEVICES,
    ) -> None:
        self._per_s = bytes_per_s
        self._burst = burst_bytes
        self._max_devices = max_devices
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # (bytes, at)

    def allows(self, device: str, size: int, now: float) -> bool:
        """Take the cost of a message from a device's bucket; False if it is not in there.

        Args:
            device: whose topic it came on.
            size: of the message, in bytes.
            now: seconds of any clock; one that goes back fills no bucket.
        """
        left, at = self._buckets.pop(device, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._per_s)
        cost = max(size, LEAST_BYTES)
        allowed = cost <= left
        self._buckets[device] = (left - cost if allowed else left, now)
        if len(self._buckets) > self._max_devices:
            self._buckets.popitem(last=False)
        return allowed
