"""The few statistics that canary analysis and drift share, in numpy and plain Python.

A mean over windows is as uncertain as its windows are few and alike: neighbouring
windows of a device see the same hour, so ten of them say less than ten (Bartlett 1946;
the bias of short series after Marriott and Pope 1954). Student's t by the incomplete beta function (Press et al., Numerical Recipes, 6.4);
moderated variance after Smyth (2004), Statistical Applications in Genetics and
Molecular Biology 3(1): few devices borrow the spread of their siblings; the
procedure of Benjamini and Hochberg (1995) for many looks at once.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "benjamini_hochberg",
    "memory",
    "moderate",
    "spread_of_mean",
    "student_quantile",
    "student_two_sided",
]

Floats = NDArray[np.float64]
MAX_TERMS: Final = 300  # of the continued fraction
MAX_MEMORY: Final = 0.95  # beyond that, a series says nothing of its own spread
PRIOR_WEIGHT: Final = 10.0  # degrees of freedom that the pooled prior counts for


def student_two_sided(t: float, dof: float) -> float:
    """Return P(|T| >= |t|) of Student's t with `dof` degrees of freedom."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(dof / 2.0, 0.5, dof / (dof + t * t))


def student_quantile(two_sided: float, dof: float) -> float:
    """Return t such that P(|T| >= t) is `two_sided`, to 1e-9."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if student_two_sided(middle, dof) > two_sided else (low, middle)
        if high - low < 1e-9:
            break
    return (low + high) / 2.0


def moderate(
    variance: Floats, prior: Floats, dof: float, weight: float = PRIOR_WEIGHT
) -> tuple[Floats, float]:
    """Return variances drawn towards a prior, and their degrees of freedom.

    Args:
        variance: float [k], measured with `dof` degrees of freedom each.
        prior: float [k], what the pooled data say of the same variances.
        dof: degrees of freedom of `variance`; may be 0.
        weight: degrees of freedom that the prior counts for.
    """
    moderated = (weight * prior + dof * variance) / (weight + dof)
    return moderated, weight + dof


def memory(series: Sequence[Floats]) -> Floats:
    """Return how much neighbouring windows resemble each other, 0 to `MAX_MEMORY`.

    Args:
        series: of each device, float [windows, k]; at least two windows each.

    Returns:
        float [k], the first autocorrelation of all devices together, its small-sample
        bias taken off.
    """
    joint = np.sum([((x - x.mean(0))[:-1] * (x - x.mean(0))[1:]).sum(0) for x in series], axis=0)
    whole = np.sum([((x - x.mean(0)) ** 2).sum(0) for x in series], axis=0)
    raw = np.divide(joint, whole, out=np.zeros_like(whole), where=whole > 0)
    length = float(np.mean([len(x) for x in series]))
    return np.asarray(np.clip(raw + (1.0 + 3.0 * raw) / length, 0.0, MAX_MEMORY))


def spread_of_mean(windows: int, alike: Floats) -> Floats:
    """Return the variance of a mean over windows, in units of one window's variance.

    Args:
        windows: how many follow each other.
        alike: float [k], from `memory`; 0 gives ``1 / windows``.
    """
    lags = np.arange(1, windows)[:, np.newaxis]
    excess = ((1.0 - lags / windows) * alike**lags).sum(0)
    return np.asarray((1.0 + 2.0 * excess) / windows)


def benjamini_hochberg(p_values: Sequence[float], rate: float) -> list[bool]:
    """Return which hypotheses are rejected at a false discovery rate (step-up)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    passed = 0
    for rank, index in enumerate(order, start=1):
        if p_values[index] <= rate * rank / len(p_values):
            passed = rank
    rejected = [False] * len(p_values)
    for index in order[:passed]:
        rejected[index] = True
    return rejected


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction of the incomplete beta by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + term / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return value
