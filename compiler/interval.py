"""Intervals of a drop: between which values it lies, as far as the samples tell (95 %).

Where each sample is right or wrong, only those on which exactly one of the two is right say
anything (McNemar). Agresti and Min (2005) add half a sample to each of the four cells: closed
form, no chance in it. Any other metric gets a paired percentile bootstrap (Efron and
Tibshirani 1993, chapter 13) from fixed seeds, widened as Student's t is where samples are few.

Where samples differ one way alone they are rare events: the score interval of Wilson (1927)
bounds their share. Where the two never differ there is nothing to resample, and n samples without
a difference still let a share of 3/n be missed one time in twenty (Hanley and Lippman-Hand 1983):
no interval is narrower than that. Simulated in `tests/compiler/test_evaluate.py`, with the true
drop at the limit: at most 6 % are let through, where by the first formula alone 13 % were
(n = 100, limit 0.02).
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["drop_interval", "mean_interval", "never_differ", "samples_for", "whole_interval"]

Floats = NDArray[np.float64]

Z: Final = 1.959964  # 95 %
ONE_SIDE: Final = 1.644854  # 95 % below it
MISSED: Final = 0.05  # how often a difference may have been missed
RESAMPLES_OF_MEANS: Final = 2000
RESAMPLES: Final = 400
AT_A_TIME: Final = 4_000_000  # entries of resampled means in memory
MAX_SAMPLES: Final = 1 << 40


def drop_interval(lost: float, gained: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a drop in shares.

    Args:
        lost: samples that only fp32 has right.
        gained: samples that only the variant has right.
        n: all samples.
    """
    m = n + 2.0
    difference = (lost - gained) / m
    spread = ((lost + gained + 1.0) / m - difference * difference) / m
    half = Z * max(spread, 0.0) ** 0.5
    low, high = difference - half, difference + half
    # samples that differ one way alone are rare events, on which that is too narrow
    if gained == 0:
        high = max(high, _at_most(lost, n))
    if lost == 0:
        low = min(low, -_at_most(gained, n))
    return max(-1.0, low), min(1.0, high)


def _at_most(seen: float, n: float) -> float:
    """Return the largest share of which so few may be seen (Wilson 1927, one side of 95 %)."""
    share, z2 = seen / n, ONE_SIDE * ONE_SIDE
    half = ONE_SIDE * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    bound: float = (share + z2 / (2 * n) + half) / (1 + z2 / n)
    return max(never_differ(n), bound)


def never_differ(n: float) -> float:
    """Return the largest share of differing samples of which n samples may well show none."""
    return float(1.0 - MISSED ** (1.0 / n))


def samples_for(lost: float, gained: float, n: int, limit: float) -> int | None:
    """Return how many samples would decide whether a drop is within a limit, at these shares.

    None where no number would: the drop is the limit.
    """
    a, b = lost / n, gained / n

    def decides(many: int) -> bool:
        low, high = drop_interval(a * many, b * many, many)
        return high <= limit or low > limit

    top = n
    while not decides(top):
        top *= 2
        if top > MAX_SAMPLES:
            return None
    bottom = top // 2
    while top - bottom > 1:
        middle = (top + bottom) // 2
        top, bottom = (middle, bottom) if decides(middle) else (top, middle)
    return top


def mean_interval(differences: Floats) -> tuple[float, float]:
    """Return the 95 % interval of a mean, float64 [n], n at least 2."""
    rng = np.random.default_rng(0)  # the same samples have the same interval
    n, means = len(differences), []
    rounds = max(1, AT_A_TIME // n)
    for start in range(0, RESAMPLES_OF_MEANS, rounds):
        many = min(rounds, RESAMPLES_OF_MEANS - start)
        means.append(differences[rng.integers(0, n, (many, n))].mean(axis=1))
    return _widened(np.concatenate(means), float(differences.mean()), n)


def whole_interval(drop: Callable[[Floats], float], found: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a drop that is no mean over samples.

    Args:
        drop: of samples that count as often as these weights say, float64 [n].
        found: where each counts once.
        n: samples, at least 2.
    """
    rng = np.random.default_rng(0)
    drops = [
        drop(np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64))
        for _ in range(RESAMPLES)
    ]
    return _widened(np.asarray(drops), found, n)


def _widened(resampled: Floats, found: float, n: int) -> tuple[float, float]:
    """Return the percentiles, as much further from what was found as few samples ask for."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    factor = student(n - 1) / Z * (n / (n - 1)) ** 0.5
    return found - factor * (found - float(low)), found + factor * (float(high) - found)


def student(freedom: int) -> float:
    """Return Student's t of 95 %: exact for 1 and 2, else within 1 % (Fisher's expansion)."""
    if freedom < 3:
        return (12.706, 4.303)[freedom - 1]
    z, d = Z, float(freedom)
    terms = (
        (z**3 + z) / (4 * d),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3),
    )
    return z + sum(terms)
