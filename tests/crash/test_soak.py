"""What a soak calls flat, and what it does not."""

import dataclasses

import numpy as np
import pytest

from tests.crash.soak import Sample, faults, slope

RNG = np.random.default_rng(3)


def hour(
    *, control_mib_h: float = 0.0, serve_mib_h: float = 0.0, fds_h: float = 0.0
) -> list[Sample]:
    """An hour of looks, each ten seconds, at a device whose parts grow so much an hour."""
    return [
        Sample(
            at_s,
            control_kib=round(30_000 + control_mib_h * 1024 * at_s / 3600 + RNG.normal(0, 100)),
            serve_kib=round(45_000 + serve_mib_h * 1024 * at_s / 3600 + RNG.normal(0, 300)),
            control_fds=round(15 + fds_h * at_s / 3600), serve_fds=16, threads=6,
            disk_kib=2000, serve_pid=100 + int(at_s // 300),
        )
        for at_s in np.arange(0.0, 3600.0, 10.0).tolist()
    ]  # fmt: skip


def test_what_stays_is_flat() -> None:
    wrong, figures = faults(hour(), 300.0)
    assert wrong == []
    assert figures["serve_processes"] == 12
    rise, low, high = figures["control_mib_per_hour"]
    assert low < 0.0 < high
    assert abs(rise) < 0.2


@pytest.mark.parametrize(
    ("grows", "what"),
    [
        ({"control_mib_h": 1.5}, "control grows by"),
        ({"control_mib_h": 4.0}, "control grew from"),
        ({"serve_mib_h": 6.0}, "serve grew from"),
        ({"fds_h": 3.0}, "control_fds rose from"),
    ],
)
def test_what_grows_is_told(grows: dict[str, float], what: str) -> None:
    wrong, _ = faults(hour(**grows), 300.0)
    assert any(text.startswith(what) for text in wrong)


def test_what_happens_before_it_is_warm_does_not_count() -> None:
    samples = hour()
    samples[0] = dataclasses.replace(samples[0], control_kib=90_000, serve_fds=90)
    assert faults(samples, 300.0)[0] == []


def test_a_few_looks_say_nothing() -> None:
    assert faults(hour()[:5], 0.0)[0] == ["too few samples to say whether anything grows"]


def test_a_slope_covers_what_it_was_made_with() -> None:
    at_s = np.arange(0.0, 3600.0, 10.0)
    found = slope(at_s.tolist(), (5.0 + 2.0 * at_s / 3600 + RNG.normal(0, 0.3, 360)).tolist())
    assert found.low < 2.0 < found.high
    assert found.high - found.low < 0.5
