"""Windows of a fleet that never was: seeded, with devices that differ and wander."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from fleet.windows import DeviceWindow
from skerry.counting import count_categorical, count_numeric, quantile_spec
from skerry.manifest import Baseline, BaselineColumn
from skerry.sketch import CategoricalSpec, NumericSpec

FEATURES: Final = ("brightness", "contrast", "sharpness")
CLASSES: Final = CategoricalSpec(values=[str(digit) for digit in range(10)])
LATENCY: Final = NumericSpec(edges=np.geomspace(1.0, 1e7, 57).tolist())
_training = np.random.default_rng(0)
_SPECS: Final = {name: quantile_spec(_training.normal(size=2000)) for name in FEATURES}
CONFIDENCE: Final = quantile_spec(_training.beta(8, 1, 2000))
BASELINE: Final = Baseline(
    columns={
        **{
            name: BaselineColumn(spec, count_numeric(_training.normal(size=2000), spec))
            for name, spec in _SPECS.items()
        },
        "prediction": BaselineColumn(CLASSES, count_categorical(_training.integers(10, size=2000), CLASSES)),
        "confidence": BaselineColumn(CONFIDENCE, count_numeric(_training.beta(8, 1, 2000), CONFIDENCE)),
        "latency_us": BaselineColumn(LATENCY, count_numeric([], LATENCY)),
    },
    n=2000,
)  # fmt: skip


class FakeDevice:
    """A device with a lens of its own: an offset for life, and a wobble from window to window."""

    def __init__(self, name: str, seed: int, *, offset: float = 0.3, wobble: float = 0.1) -> None:
        self.name = name
        self._rng = np.random.default_rng([seed, *name.encode()])
        self._lens = self._rng.normal(0, offset, len(FEATURES))
        self._mix = np.exp(self._rng.normal(0, 0.1, 10))
        self._wobble = wobble

    def window(
        self,
        start: float,
        *,
        bundle: str = "old",
        shift: float = 0.0,
        collapse: float = 0.0,
        n: int = 45,
        errors: int = 0,
        latency: float = 1.0,
        stuck: str = "",
    ) -> DeviceWindow:
        """Return one window.

        Args:
            start: Unix seconds.
            bundle: what it serves.
            shift: every feature moved, in baseline standard deviations.
            collapse: share of predictions that a bad model turns into the class 1.
            n: predictions in it.
            errors: answers that failed.
            latency: factor on the latency.
            stuck: a feature with one value in every row.
        """
        rng = self._rng
        centre = self._lens + rng.normal(0, self._wobble, len(FEATURES)) + shift
        mix = self._mix * np.exp(rng.normal(0, self._wobble, 10))
        mix = (1 - collapse) * mix / mix.sum()
        mix[1] += collapse
        columns = {
            name: count_numeric(
                np.full(n, 0.1) if name == stuck else rng.normal(middle, 1.0, n), _SPECS[name]
            )
            for name, middle in zip(FEATURES, centre, strict=True)
        }
        return DeviceWindow(
            self.name, bundle, start, 1.0, n, errors,
            columns | {
                "prediction": count_categorical(rng.choice(10, n, p=mix), CLASSES),
                "confidence": count_numeric(rng.beta(8, 1, n), CONFIDENCE),
                "latency_us": count_numeric(rng.lognormal(6, 0.3, n) * latency, LATENCY),
            },
        )  # fmt: skip


def names(count: int = 12) -> Sequence[str]:
    """Return device names on two sites, ``harbour-01`` first."""
    half = count // 2
    return [f"{site}-{i:02d}" for site in ("harbour", "airport") for i in range(1, half + 1)]
