"""How often a canary analysis is right: no change, and changes of a known size.

    python benchmarks/analysis_calibration.py [--null 2000] [--power 500]

Twelve devices, three of them canaries, 20 windows before and from 6 to 18 after, 45 rows a
window, made up as `made_up_fleet` says. The first look is after six windows; as the fleet
does, it looks again with each window more while the verdict is too early. `collapse` is the
share of predictions that a bad model turns into one class; the true distance between the
class distributions is about nine tenths of it, and the floor is 0.15.

Beside it stands what a test of rows would say of the same canaries that change nothing:
chi-square at 0.001, the canaries' rows after against before, and against the controls'.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.made_up_fleet import WORLDS, Fleet, World
from benchmarks.outcome import write
from fleet.analysis import AnalysisPlan, Verdict, analyse
from fleet.windows import DeviceWindow, split

PLAN: Final = AnalysisPlan()
CHI_SQUARE_9: Final = 27.877  # the 0.999 quantile at 9 degrees of freedom
CANARIES: Final = (0, 1, 2)
COLLAPSES: Final = (0.1, 0.15, 0.167, 0.2, 0.3, 0.4, 0.5)  # 0.167: the floor itself


def story(world: World, seed: int, collapse: float) -> tuple[Verdict, Verdict, int]:
    """One canary's first verdict, its last, and how many looks that took."""
    fleet = Fleet(world, seed)
    windows = []
    for at in range(PLAN.min_windows_before):
        windows += fleet.second(at, counted=("prediction",))
    looks: list[Verdict] = []
    for count in range(1, PLAN.max_windows_after + 1):
        at = PLAN.min_windows_before + count - 1
        windows += fleet.second(at, new=CANARIES, collapse=collapse, counted=("prediction",))
        if count < PLAN.min_windows_after:
            continue
        canary, control = split(
            windows, canary=fleet.names[:3], control=fleet.names[3:], bundle="new", min_n=30
        )
        looks.append(analyse(PLAN, fleet.baseline, canary, control))
        if not looks[-1].insufficient:
            break
    return looks[0], looks[-1], len(looks)


def rates(world: World, collapse: float, times: int) -> dict[str, object]:
    """Shares of each verdict over so many stories."""
    stories = [story(world, seed, collapse) for seed in range(times)]
    return {
        "stories": times,
        "first_look": shares([first for first, _, _ in stories]),
        "last_look": shares([last for _, last, _ in stories]),
        "looks_mean": round(sum(looks for *_, looks in stories) / times, 2),
    }


def rows_alarm(world: World, times: int) -> dict[str, float]:
    """Share of canaries that change nothing and yet fail a test of rows."""
    past, controls = 0, 0
    for seed in range(times):
        fleet = Fleet(world, seed)
        spans = (range(PLAN.min_windows_before), range(PLAN.min_windows_after))
        before, after = (
            np.sum(
                [_class_counts(fleet.second(at, counted=("prediction",))) for at in span], axis=0
            )
            for span in spans
        )
        past += chi_square(after[:3].sum(0), before[:3].sum(0)) > CHI_SQUARE_9
        controls += chi_square(after[:3].sum(0), after[3:].sum(0)) > CHI_SQUARE_9
    return {
        "against_their_past": round(past / times, 4),
        "against_the_controls": round(controls / times, 4),
    }


def _class_counts(windows: list[DeviceWindow]) -> np.ndarray:
    return np.array([window.columns["prediction"].counts for window in windows])


def chi_square(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's statistic of two rows of counts."""
    table = np.array([one, other], dtype=float)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """Share of each state."""
    counted = Counter(str(verdict.state) for verdict in verdicts)
    return {
        state: round(counted[state] / len(verdicts), 4)
        for state in ("failed", "inconclusive", "successful")
    }


def look_ms() -> float:
    """Milliseconds of CPU for one look with every column."""
    fleet, windows = Fleet(World(), 0), []
    for at in range(26):
        windows += fleet.second(at, new=CANARIES if at >= 20 else ())
    canary, control = split(
        windows, canary=fleet.names[:3], control=fleet.names[3:], bundle="new", min_n=30
    )
    took = []
    for _ in range(20):
        started = time.thread_time()
        analyse(PLAN, fleet.baseline, canary, control)
        took.append(time.thread_time() - started)
    return round(sorted(took)[len(took) // 2] * 1000, 1)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--null", type=int, default=2000, help="canaries that change nothing")
    parser.add_argument("--power", type=int, default=500, help="canaries of each collapse")
    args = parser.parse_args()
    found: dict[str, object] = {"look_cpu_ms": look_ms()}
    for name, world in (WORLDS | {"busy windows (1000 rows)": World(rows=1000)}).items():
        plain = world == World()
        found[name] = {
            "no change, by rows": rows_alarm(world, args.power),
            "no change": rates(world, 0.0, args.null if plain else args.null // 4),
            **{
                f"collapse {collapse}": rates(
                    world, collapse, args.power if plain else args.power // 5
                )
                for collapse in COLLAPSES
            },
        }
    write("analysis_calibration", found)


if __name__ == "__main__":
    main()
