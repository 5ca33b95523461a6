"""How often the drift watch is right, and how long one look takes.

    python benchmarks/drift_calibration.py [--null 1000] [--power 300]

Twelve devices on two sites, three features, 45 rows a window, made up as `made_up_fleet`
says; 30 windows of the past and 3 of now. A null look is false if it names any device.
Then two devices of one site move by so many standard deviations: how many of the two are
named, how often exactly those two, how often another one. Last, fleets at rest are looked
at after every window, as a fleet service does: how many devices are newly blamed in a
thousand windows.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.made_up_fleet import WORLDS, Fleet, World, names, site
from benchmarks.outcome import write
from fleet.drift import DriftReport, assess
from fleet.windows import DeviceWindow
from skerry.sketch import NumericCounts

PAST: Final = 30
NOW: Final = 3
MOVED: Final = (1, 7)  # two of one site
SHIFTS: Final = (0.5, 0.75, 1.0, 1.5)


def look(world: World, seed: int, *, past: int = PAST, shift: float = 0.0) -> DriftReport:
    """One look at one made-up fleet."""
    fleet, windows = Fleet(world, seed), []
    for at in range(past):
        windows += fleet.second(at, counted=("features",))
    for at in range(past, past + NOW):
        windows += fleet.second(at, shifted=MOVED, shift=shift, counted=("features",))
    sites = {name: site(name) for name in fleet.names}
    return assess({"old": fleet.baseline}, windows, sites, 0.0)


def named(report: DriftReport) -> set[str]:
    """The devices that a look blames."""
    return {device.device for device in report.devices if device.verdict == "drift"}


def null(world: World, times: int, past: int = PAST) -> dict[str, object]:
    """How often a look at a fleet that does not change blames somebody."""
    reports = [look(world, seed, past=past) for seed in range(times)]
    return {
        "looks": times,
        "windows_of_the_past": past,
        "looks_that_name_a_device": sum(bool(named(r)) for r in reports) / times,
        "looks_that_name_a_site_or_the_fleet": sum(bool(r.groups) for r in reports) / times,
    }


def power(world: World, shift: float, times: int) -> dict[str, object]:
    """How often two devices that moved are named."""
    truth = {names(world.devices)[index] for index in MOVED}
    found = [named(look(world, seed, shift=shift)) for seed in range(times)]
    return {
        "looks": times,
        "devices_named": round(sum(len(f & truth) for f in found) / times / len(truth), 4),
        "exactly_the_two": round(sum(f == truth for f in found) / times, 4),
        "looks_that_name_another": round(sum(bool(f - truth) for f in found) / times, 4),
    }


def vigil(world: World, fleets: int, windows: int) -> dict[str, object]:
    """How often somebody is newly blamed when a fleet at rest is looked at after every window."""
    blamed = 0
    for seed in range(fleets):
        fleet, before = Fleet(world, seed), set()
        sites = {name: site(name) for name in fleet.names}
        seen = [fleet.second(at, counted=("features",)) for at in range(PAST + NOW)]
        for at in range(PAST + NOW, PAST + NOW + windows):
            seen = [*seen[-60 - NOW + 1 :], fleet.second(at, counted=("features",))]
            found = named(
                assess({"old": fleet.baseline}, [w for second in seen for w in second], sites, 0.0)
            )
            blamed += len(found - before)
            before = found
    looked = fleets * windows
    return {"windows": looked, "devices_blamed_in_1000_windows": round(1000 * blamed / looked, 2)}


def seconds_for(devices: int, features: int, windows: int) -> float:
    """Seconds of CPU for one look at a fleet of this size."""
    fleet = Fleet(World(devices=devices, features=features), 0)
    spec = next(iter(fleet.specs.values()))
    bins = len(spec.edges) - 1
    rng, made = np.random.default_rng(0), []
    for at in range(windows):
        counts = rng.multinomial(45, [1 / bins] * bins, (devices, features)).tolist()
        for name, rows in zip(fleet.names, counts, strict=True):
            columns = {
                feature: NumericCounts(45, cells, min=-1.0, max=1.0)
                for feature, cells in zip(fleet.features, rows, strict=True)
            }
            made.append(DeviceWindow(name, "old", float(at), 1.0, 45, 0, columns))
    sites = {name: site(name) for name in fleet.names}
    took = []
    for _ in range(5 if devices < 100 else 1):
        started = time.thread_time()
        assess({"old": fleet.baseline}, made, sites, 0.0)
        took.append(time.thread_time() - started)
    return round(sorted(took)[len(took) // 2], 4)


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--null", type=int, default=1000, help="looks at a fleet at rest")
    parser.add_argument("--power", type=int, default=300, help="looks at each shift")
    args = parser.parse_args()
    found: dict[str, object] = {
        "look_cpu_s": {
            "12 devices x 3 features x 60 windows": seconds_for(12, 3, 60),
            "1000 devices x 50 features x 33 windows": seconds_for(1000, 50, 33),
        }
    }
    for name, world in WORLDS.items():
        plain = world == World()
        times, tries = (args.null, args.power) if plain else (args.null // 5, args.power // 5)
        found[name] = {
            "at rest": null(world, times),
            "at rest, short past": null(world, times // 4, past=8),
            "watched": vigil(world, 10 if plain else 3, times // 3),
            **{f"two moved by {shift} sd": power(world, shift, tries) for shift in SHIFTS},
        }
    write("drift_calibration", found)


if __name__ == "__main__":
    main()
