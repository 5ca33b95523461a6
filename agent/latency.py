"""How long answers took: a histogram on a logarithmic scale, for quantiles at any time.

Eight buckets per doubling: a quantile is right within 4.5 %. One `add` is a logarithm
and a list update.
"""

import math
from itertools import accumulate
from typing import Final

__all__ = ["Latencies"]

PER_DOUBLING: Final = 8
BUCKETS: Final = 32 * PER_DOUBLING  # up to 2^32 microseconds


class Latencies:
    """Counts of latencies in microseconds."""

    def __init__(self) -> None:
        self._buckets = [0] * BUCKETS
        self.n = 0
        self.sum_us = 0.0

    def add(self, us: float) -> None:
        """Count one latency."""
        place = int(math.log2(us) * PER_DOUBLING) if us >= 1.0 else 0
        self._buckets[min(place, BUCKETS - 1)] += 1
        self.n += 1
        self.sum_us += us

    def quantile(self, q: float) -> float | None:
        """Return the latency below which the share `q` lies; None without any."""
        if not self.n:
            return None
        rank = max(1, math.ceil(q * self.n))
        place = next(i for i, seen in enumerate(accumulate(self._buckets)) if seen >= rank)
        return float(2.0 ** ((place + 0.5) / PER_DOUBLING))
