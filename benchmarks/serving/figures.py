"""Medians with intervals, and goals."""

import statistics
from collections.abc import Sequence
from math import comb

__all__ = ["Goals", "middle"]


def middle(values: Sequence[float], digits: int = 1) -> list[float]:
    """Return median, and the order statistics around it that hold it with at least 95 %.

    Below six values that is more than they can say: the smallest and the largest are given.
    """
    ordered = sorted(values)
    n, k, outside = len(ordered), 0, 0.0
    while k < n // 2:
        outside += 2 * comb(n, k) / 2**n
        if outside > 0.05:
            break
        k += 1
    k = max(k, 1)
    low, high = ordered[k - 1], ordered[n - k]
    return [round(x, digits) for x in (statistics.median(ordered), low, high)]


class Goals:
    """What was aimed at, what came, and by how much it is missed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def at_most(self, name: str, goal: float, got: float | Sequence[float], unit: str) -> None:
        """A figure that shall be small."""
        self._add(name, "at most", goal, got, unit, lambda value: value <= goal)

    def at_least(self, name: str, goal: float, got: float | Sequence[float], unit: str) -> None:
        """A figure that shall be large."""
        self._add(name, "at least", goal, got, unit, lambda value: value >= goal)

    def _add(self, name, bound, goal, got, unit, holds) -> None:
        value = got if isinstance(got, int | float) else got[0]
        met = bool(holds(value))
        row = {"goal": name, "bound": f"{bound} {goal:g}", "unit": unit, "got": got, "met": met}
        if not met:
            row["missed"] = f"{value / goal:.2f} of the goal"
        self.rows.append(row)
        shown = got if isinstance(got, int | float) else f"{got[0]:g} ({got[1]:g} to {got[2]:g})"
        word = "met" if met else f"MISSED, {row['missed']}"
        print(f"{name}: {bound} {goal:g} {unit}; got {shown}: {word}", flush=True)
