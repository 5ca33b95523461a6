"""What a device tried of a release before it served it: the golden set, and beside what serves.

Parts of the assignments and reports of `skerry.wire`.
"""

import msgspec

from skerry.sketch import NumericCounts

__all__ = ["SHADOW_EDGES", "Shadow", "ShadowReport", "Trial"]

EDGES_PER_DECADE = 8
SHADOW_EDGES = [
    float(f"{10 ** (step / EDGES_PER_DECADE):.6g}") for step in range(7 * EDGES_PER_DECADE + 1)
]  # microseconds, 1 us to 10 s


class Trial(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the golden set showed of one variant on a device."""

    variant: str
    code: str = "ok"  # or why it is not fit, as a smoke run says it
    rows: int = 0
    disagree: float = 0.0  # share of golden rows whose prediction differs
    max_diff: float = 0.0  # largest difference of an output value
    run_us: float = 0.0  # median of one row


class Shadow(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a new model runs beside the one that serves, before it may serve itself.

    It answers nobody. It sees a share of the live rows, at most as many as its own CPU time
    allows; what it cannot take is skipped, and counted.
    """

    share: float = 0.1  # of the requests
    min_rows: int = 200  # enough to tell
    max_seconds: float = 600.0  # with fewer by then it is `undecided`
    min_agreement: float = 0.95  # share of rows with the same prediction
    max_cpu: float = 0.2  # of one core
    required: bool = False  # undecided counts as failed


class ShadowReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a new model did beside the one that serves."""

    rows: int
    agree: int
    errors: int = 0
    skipped: int = 0  # requests that there was no time for
    verdict: str = "undecided"  # agrees, disagrees, failed, undecided
    latency_us: NumericCounts | None = None  # of one request, on `SHADOW_EDGES`, scale 1
    seconds: float = 0.0
