"""Windows of a fleet that never was, for measuring how often the statistics are right.

A device differs from its siblings for life (`offset_sd` in its features, `mix_sd` in its
class shares) and from itself from window to window (`wobble_sd`); the wobble may have a
memory (`memory`, the correlation of neighbouring windows), and every device may feel the
same weather (`weather_sd`). Everything comes from a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fleet.windows import DeviceWindow
from skerry.counting import count_categorical, count_numeric, quantile_spec
from skerry.manifest import Baseline, BaselineColumn
from skerry.sketch import CategoricalCounts, CategoricalSpec, NumericSpec

CLASSES: Final = CategoricalSpec(values=[str(digit) for digit in range(10)])
LATENCY: Final = NumericSpec(edges=np.geomspace(1.0, 1e7, 57).tolist())
TRAINING_ROWS: Final = 2000


@dataclass(frozen=True)
class World:
    """How devices and windows differ; standard deviations in those of the training data."""

    devices: int = 12
    rows: int = 45  # predictions in a window
    features: int = 3
    offset_sd: float = 0.3
    mix_sd: float = 0.1
    wobble_sd: float = 0.1
    memory: float = 0.0
    weather_sd: float = 0.0
    error_rate: float = 0.005


# The worlds that both calibrations look at: the plain one, and two that break its assumptions.
WORLDS: Final = {
    "plain": World(),
    "windows with a memory (0.5)": World(memory=0.5),
    "weather for everybody (0.1)": World(weather_sd=0.1),
    "slow wide wander (0.2, memory 0.8)": World(wobble_sd=0.2, memory=0.8),
}


def site(device: str) -> str:
    """The site in a device's name."""
    return device.partition("-")[0]


def names(count: int) -> list[str]:
    """Devices, in turn on two sites."""
    return [f"{('harbour', 'airport')[i % 2]}-{i // 2:04d}" for i in range(count)]


class Fleet:
    """One world from one seed."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = np.random.default_rng(seed)
        training = np.random.default_rng(0)
        self.features = [f"feature_{n:02d}" for n in range(world.features)]
        self.specs = {n: quantile_spec(training.normal(size=TRAINING_ROWS)) for n in self.features}
        self.confidence = quantile_spec(training.beta(8, 1, TRAINING_ROWS))
        known = training.normal(size=TRAINING_ROWS)
        self.baseline = Baseline(
            columns={
                **{n: BaselineColumn(s, count_numeric(known, s)) for n, s in self.specs.items()},
                "prediction": BaselineColumn(
                    CLASSES, count_categorical(training.integers(10, size=TRAINING_ROWS), CLASSES)
                ),
                "confidence": BaselineColumn(
                    self.confidence,
                    count_numeric(training.beta(8, 1, TRAINING_ROWS), self.confidence),
                ),
                "latency_us": BaselineColumn(LATENCY, count_numeric([], LATENCY)),
            },
            n=TRAINING_ROWS,
        )
        self.names = names(world.devices)
        wide = world.features + 10
        self._offset = self.rng.normal(0, world.offset_sd, (world.devices, world.features))
        self._mix = self.rng.normal(0, world.mix_sd, (world.devices, 10))
        self._wobble = self.rng.normal(0, world.wobble_sd, (world.devices, wide))

    def second(
        self,
        at: float,
        *,
        new: Sequence[int] = (),
        collapse: float = 0.0,
        shifted: Sequence[int] = (),
        shift: float = 0.0,
        counted: Sequence[str] = ("features", "prediction", "confidence", "latency_us"),
    ) -> list[DeviceWindow]:
        """One window of every device.

        Args:
            at: its start, Unix seconds.
            new: devices that serve the new bundle.
            collapse: share of the new bundle's predictions that turn into class 1.
            shifted: devices whose features have moved.
            shift: by so much.
            counted: which columns; leaving some out only saves time.
        """
        world, rng = self.world, self.rng
        fresh = rng.normal(0, world.wobble_sd, self._wobble.shape)
        self._wobble = world.memory * self._wobble + np.sqrt(1 - world.memory**2) * fresh
        weather = rng.normal(0, world.weather_sd, self._wobble.shape[1])
        moved = self._wobble + weather
        shares = np.exp(self._mix + moved[:, world.features :])
        shares /= shares.sum(1, keepdims=True)
        made = []
        for index, name in enumerate(self.names):
            is_new = index in new
            columns = {}
            if "features" in counted:
                middle = self._offset[index] + moved[index, : world.features]
                middle = middle + (shift if index in shifted else 0.0)
                rows = rng.normal(middle, 1.0, (world.rows, world.features))
                for column, feature in enumerate(self.features):
                    columns[feature] = count_numeric(rows[:, column], self.specs[feature])
            if "prediction" in counted:
                mix = shares[index] * (1 - collapse * is_new)
                mix[1] += collapse * is_new
                counts = rng.multinomial(world.rows, mix / mix.sum())
                columns["prediction"] = CategoricalCounts(world.rows, counts.tolist())
            if "confidence" in counted:
                columns["confidence"] = count_numeric(rng.beta(8, 1, world.rows), self.confidence)
            if "latency_us" in counted:
                columns["latency_us"] = count_numeric(rng.lognormal(6, 0.3, world.rows), LATENCY)
            bundle = "new" if is_new else "old"
            errors = int(rng.binomial(world.rows, world.error_rate))
            made.append(DeviceWindow(name, bundle, at, 1.0, world.rows, errors, columns))
        return made
