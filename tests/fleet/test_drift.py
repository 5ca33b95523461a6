"""Drift names exactly who moved, in what, and at which level."""

from typing import Any

import msgspec
import numpy as np
import pytest

from fleet.drift import DriftReport, DriftSettings, assess
from fleet.windows import DeviceWindow
from skerry.counting import count_numeric
from skerry.manifest import BaselineGroup
from skerry.sketch import NumericSpec
from tests.fakes.windows import BASELINE, FEATURES, FakeDevice, names

PAST, NOW = 12, 3


def look(
    changed: dict[str, dict[str, Any]] | None = None,
    *,
    seed: int = 1,
    past: int = PAST,
    onset: dict[str, float] | None = None,
) -> DriftReport:
    """Look at twelve devices, some of which change in their last three windows."""
    windows: list[DeviceWindow] = []
    for name in names():
        device = FakeDevice(name, seed)
        windows += [device.window(float(t)) for t in range(past)]
        extra = (changed or {}).get(name, {})
        windows += [device.window(float(t), **extra) for t in range(past, past + NOW)]
    sites = {name: name.split("-")[0] for name in names()}
    return assess({"old": BASELINE, "new": BASELINE}, windows, sites, 99.0, onset=onset)


def drifted(report: DriftReport) -> list[str]:
    return [device.device for device in report.devices if device.verdict == "drift"]


@pytest.mark.parametrize("seed", range(10))
def test_two_smudged_devices_of_one_site_are_named_and_no_other(seed: int) -> None:
    smudge = {"shift": -1.5}
    report = look({"airport-02": smudge, "airport-05": smudge}, seed=seed)
    assert drifted(report) == ["airport-02", "airport-05"]
    named = next(d for d in report.devices if d.device == "airport-02")
    assert {feature.name for feature in named.features} == set(FEATURES)
    assert "brightness fell by" in named.words


def test_a_quiet_fleet_is_quiet_for_forty_looks() -> None:
    loud = [seed for seed in range(40) if drifted(look(seed=seed))]
    assert len(loud) <= 1  # benchmarks/drift_calibration.py has the rate over many more


def test_what_everybody_sees_is_the_fleets_and_no_devices() -> None:
    report = look({name: {"shift": 1.5} for name in names()})
    assert drifted(report) == []
    assert [(group.level, group.name) for group in report.groups] == [("fleet", "all")]


def test_what_a_site_sees_is_the_sites() -> None:
    report = look({name: {"shift": 1.5} for name in names() if name.startswith("airport")})
    assert drifted(report) == []
    assert [(group.level, group.name) for group in report.groups] == [("site", "airport")]


def test_too_few_windows_are_insufficient_and_never_quiet() -> None:
    report = look(past=5)
    assert {device.verdict for device in report.devices} == {"insufficient"}
    assert "are needed" in report.devices[0].words


def test_another_bundle_has_another_past() -> None:
    report = look({"harbour-01": {"bundle": "new", "shift": 3.0}})
    device = next(d for d in report.devices if d.device == "harbour-01")
    assert device.verdict == "insufficient"


def test_an_input_that_never_changes_is_stuck() -> None:
    report = look({"harbour-04": {"stuck": "contrast"}})
    device = next(d for d in report.devices if d.device == "harbour-04")
    assert device.stuck == ["contrast"]
    assert device.verdict == "drift"
    assert "contrast never changes" in device.words


def test_what_came_after_the_onset_is_no_part_of_the_past() -> None:
    windows = []
    for name in names():
        device = FakeDevice(name, 3)
        bad = name == "harbour-02"
        windows += [device.window(float(t)) for t in range(PAST)]
        windows += [device.window(float(t), shift=-2.0 * bad) for t in range(PAST, PAST + 40)]
    sites = {name: name.split("-")[0] for name in names()}
    settings = DriftSettings(reference_windows=20)
    forgotten = assess({"old": BASELINE}, windows, sites, 0.0, settings=settings)
    known = assess(
        {"old": BASELINE}, windows, sites, 0.0, settings=settings, onset={"harbour-02": PAST}
    )
    assert drifted(forgotten) == []
    assert drifted(known) == ["harbour-02"]


def test_skew_against_training_stands_apart_from_drift() -> None:
    windows = []
    for name in names():
        device = FakeDevice(name, 4, offset=0.0)
        windows += [device.window(float(t), shift=2.0) for t in range(PAST + NOW)]
    report = assess({"old": BASELINE}, windows, {n: n.split("-")[0] for n in names()}, 0.0)
    assert drifted(report) == []
    assert all(set(device.skew) == set(FEATURES) for device in report.devices)


def test_a_fleet_without_devices_is_an_empty_report() -> None:
    assert assess({}, [], {}, 0.0).devices == []


def test_a_device_whose_siblings_fell_silent_is_held_to_its_own_past() -> None:
    windows = []
    for name in ("airport-02", "airport-05"):
        device = FakeDevice(name, 5)
        windows += [device.window(float(t)) for t in range(PAST)]
        windows += [device.window(float(t), shift=-2.0) for t in range(PAST, PAST + NOW)]
    report = assess(
        {"old": BASELINE}, windows, dict.fromkeys(("airport-02", "airport-05"), "airport"), 0.0
    )
    assert drifted(report) == ["airport-02", "airport-05"]
    assert "too few siblings" in report.devices[0].words


def test_skew_is_from_the_training_data_of_the_devices_own_site() -> None:
    spec = BASELINE.columns[FEATURES[0]].spec
    assert isinstance(spec, NumericSpec)
    bright = count_numeric(np.random.default_rng(5).normal(2.0, 1.0, 500), spec)
    slices = {"site": {"airport": BaselineGroup(500, {FEATURES[0]: bright})}}
    known = msgspec.structs.replace(BASELINE, slices=slices)
    windows = []
    for name in names():
        device = FakeDevice(name, 3, offset=0.0)
        windows += [device.window(float(t), shift=2.0) for t in range(PAST + NOW)]
    sites = {name: name.split("-")[0] for name in names()}
    report = assess({"old": known, "new": known}, windows, sites, 99.0)
    skewed = {d.device: set(d.skew) for d in report.devices}
    assert all(FEATURES[0] in skewed[name] for name in names() if name.startswith("harbour"))
    # as bright as its training data; in what the slice does not know, all of it is the measure
    assert all(FEATURES[0] not in skewed[name] for name in names() if name.startswith("airport"))
    assert all(FEATURES[1] in skewed[name] for name in names() if name.startswith("airport"))
