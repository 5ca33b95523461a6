"""Which devices see other data than before, in which features, and whose fault it is.

Each window gives a feature one score: the mean normal score of its rows among the
baseline's quantile bins (van der Waerden 1952), so that 1.0 is one standard
deviation of the training data, and counts alone are enough. For each device

    change   = mean score of its current windows - mean score of its own past
    own part = change - median change of its siblings over the same time

A device has drifted in a feature if its own part is at least `floor_sd`, is beyond
chance (t test with moderated variance; Benjamini-Hochberg over every device and
feature), and shows in two of its last three windows. What a whole site does
together is the site's drift, and what everybody does is the fleet's: blame goes to
the highest level that explains it. A device without enough windows is
`insufficient`, never `quiet`. An input that never changes is `stuck`, by rule.

Skew is another matter and stands apart: how far a device's live data are from the
training data of its bundle, of its own site's where the bundle knows them apart, whatever they
were yesterday.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet.scores import Tables, scores, tables, training
from fleet.stats import (
    benjamini_hochberg,
    memory,
    moderate,
    spread_of_mean,
    student_two_sided,
)
from fleet.windows import DeviceWindow, by_device, current_run
from skerry.manifest import Baseline
from skerry.sketch import NumericCounts

__all__ = ["DeviceDrift", "DriftReport", "DriftSettings", "FeatureDrift", "GroupDrift", "assess"]

Floats = NDArray[np.float64]
DeviceVerdict = Literal["quiet", "drift", "insufficient"]
LEAST_SEEN: Final = 0.25  # of a slow wander's variance, in the shortest stretch believed
NOT_FEATURES: Final = frozenset({"prediction", "confidence", "latency_us"})


class DriftSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What drift needs before it is named."""

    current_windows: int = 3
    reference_windows: int = 60  # at most
    min_reference_windows: int = 8
    min_window_n: int = 30
    floor_sd: float = 0.5  # baseline standard deviations
    rate: float = 0.01  # false discoveries among the named
    persistence: int = 2  # of the current windows, which must each show it
    min_siblings: int = 3
    skew_sd: float = 1.0


class FeatureDrift(msgspec.Struct, frozen=True):
    """One feature of one device that moved, in baseline standard deviations."""

    name: str
    effect_sd: float
    past_sd: float  # where its own past stood
    now_sd: float
    p_value: float


class DeviceDrift(msgspec.Struct, frozen=True):
    """What is known of one device, in a verdict and in words."""

    device: str
    site: str
    verdict: DeviceVerdict
    words: str
    features: list[FeatureDrift]
    stuck: list[str]
    skew: dict[str, float]  # feature -> distance from the training data, where beyond skew_sd
    reference_windows: int
    current_windows: int


class GroupDrift(msgspec.Struct, frozen=True):
    """A site, or the whole fleet, that moved together."""

    level: Literal["site", "fleet"]
    name: str
    features: dict[str, float]  # feature -> median change in baseline standard deviations


class DriftReport(msgspec.Struct, frozen=True):
    """One look at the whole fleet."""

    at: float  # Unix seconds
    devices: list[DeviceDrift]
    groups: list[GroupDrift]


@dataclass(frozen=True, slots=True)
class _Change:
    """Scores of one device: reference [windows, features] and current."""

    device: str
    site: str
    reference: Floats
    current: Floats
    training: Floats  # where the training data of its own site stand, [features]

    @property
    def delta(self) -> Floats:
        return np.asarray(self.current.mean(0) - self.reference.mean(0))


def assess(
    baselines: Mapping[str, Baseline],
    windows: Iterable[DeviceWindow],
    site_of: Mapping[str, str],
    now: float,
    *,
    settings: DriftSettings | None = None,
    onset: Mapping[str, float] | None = None,
) -> DriftReport:
    """Look at the fleet once.

    Args:
        baselines: by bundle digest; windows of a device are compared only within the
            bundle it serves now.
        windows: of all devices, any order.
        site_of: the site of every device that shall be reported on.
        now: Unix seconds, kept in the report.
        settings: what drift needs before it is named.
        onset: devices already known to drift -> since when (Unix seconds); what came
            later is not part of their past.
    """
    settings = settings or DriftSettings()
    full = by_device(w for w in windows if w.n >= settings.min_window_n)
    names = sorted(
        {name for b in baselines.values() for name in b.columns if name not in NOT_FEATURES}
    )
    cells = {bundle: tables(baseline, names) for bundle, baseline in baselines.items()}
    runs = {device: current_run(full.get(device, ())) for device in sorted(site_of)}
    changes: dict[str, _Change] = {}
    for device, run in runs.items():
        if run and run[-1].bundle in baselines:
            since = (onset or {}).get(device)
            known = cells[run[-1].bundle]
            own = training(baselines[run[-1].bundle], site_of[device], known, names)
            change = _change(device, site_of[device], run, known, own, names, settings, since)
            if change is not None:
                changes[device] = change
    groups, common = _groups(list(changes.values()), names, settings)
    found = _moved(list(changes.values()), names, common, settings)
    return DriftReport(
        at=now,
        devices=[
            _report(device, site_of[device], runs[device], changes.get(device),
                    found.get(device, []), names, settings,
                    len(changes) > settings.min_siblings)
            for device in sorted(site_of)
        ],
        groups=groups,
    )  # fmt: skip


def _change(
    device: str,
    site: str,
    run: Sequence[DeviceWindow],
    cells: Tables,
    own: Floats,
    names: Sequence[str],
    settings: DriftSettings,
    since: float | None,
) -> _Change | None:
    """Return a device's scores, or None where it has not enough windows."""
    current = run[-settings.current_windows :]
    past = [w for w in run[: -settings.current_windows] if since is None or w.start < since]
    past = past[-settings.reference_windows :]
    if len(current) < settings.current_windows or len(past) < settings.min_reference_windows:
        return None
    return _Change(device, site, scores(past, names, cells), scores(current, names, cells), own)


# --- levels of blame ------------------------------------------------------------------


def _groups(
    changes: Sequence[_Change], names: Sequence[str], settings: DriftSettings
) -> tuple[list[GroupDrift], dict[str, Floats]]:
    """Return groups that moved together, and for each site what its devices have in common.

    A site is held against the others' sites; the fleet against its own past.
    """
    if not changes:
        return [], {}
    sites = sorted({change.site for change in changes})
    medians = {
        site: np.median([c.delta for c in changes if c.site == site], axis=0) for site in sites
    }
    fleet = np.median([change.delta for change in changes], axis=0)
    groups = []
    # what every site shares: where all moved one way, by the least of them
    moved = np.array(list(medians.values()))
    agree = np.abs(np.sign(moved).sum(0)) == len(sites)
    whole = _beyond(np.sign(fleet) * np.abs(moved).min(0) * agree, names, settings)
    if whole and len(changes) >= settings.min_siblings:
        groups.append(GroupDrift("fleet", "all", whole))
    for site in sites:
        members = sum(change.site == site for change in changes)
        others = [change.delta for change in changes if change.site != site]
        if members < settings.min_siblings or len(others) < settings.min_siblings:
            continue
        # with two sites each is apart from the other: the one that moved is to blame
        gap, own = medians[site] - np.median(others, axis=0), medians[site]
        lesser = np.sign(own) * np.minimum(np.abs(gap), np.abs(own)) * (gap * own > 0)
        apart = _beyond(lesser, names, settings)
        if apart and not whole:
            groups.append(GroupDrift("site", site, apart))
    # the median of too few would be mostly the device itself: its own past must do
    shared = fleet if len(changes) > settings.min_siblings else np.zeros_like(fleet)
    common = {
        site: medians[site]
        if sum(change.site == site for change in changes) > settings.min_siblings
        else shared
        for site in sites
    }
    return groups, common


def _beyond(
    effects: Floats, names: Sequence[str], settings: DriftSettings
) -> dict[str, float]:  # fmt: skip
    return {
        name: float(effect)
        for name, effect in zip(names, effects, strict=True)
        if abs(effect) >= settings.floor_sd
    }


def _moved(
    changes: Sequence[_Change],
    names: Sequence[str],
    common: Mapping[str, Floats],
    settings: DriftSettings,
) -> dict[str, list[FeatureDrift]]:
    """Return for each device the features in which it drifted by itself."""
    if not changes or not names:
        return {}
    alike = memory([change.reference for change in changes])
    spreads = [_variance(change.reference, alike) for change in changes]
    pooled = np.mean(spreads, axis=0)
    tests: list[tuple[_Change, int, float, float]] = []
    for change, spread in zip(changes, spreads, strict=True):
        own = change.delta - common[change.site]
        n_past, n_now = len(change.reference), len(change.current)
        variance, dof = moderate(spread, pooled, n_past - 1)
        reach = spread_of_mean(n_past, alike) + spread_of_mean(n_now, alike)
        error = np.sqrt(variance * reach) + 1e-9
        tests.extend(
            (change, index, float(own[index]),
             student_two_sided(float(own[index] / error[index]), dof))
            for index in range(len(names))
        )  # fmt: skip
    named = benjamini_hochberg([p for *_, p in tests], settings.rate)
    found: dict[str, list[FeatureDrift]] = {}
    for (change, index, effect, p_value), significant in zip(tests, named, strict=True):
        if not significant or abs(effect) < settings.floor_sd:
            continue
        past = float(change.reference[:, index].mean())
        each = change.current[:, index] - past - common[change.site][index]
        shown = int((each * np.sign(effect) >= settings.floor_sd / 2).sum())
        if shown >= settings.persistence:
            now = float(change.current[:, index].mean())
            found.setdefault(change.device, []).append(
                FeatureDrift(names[index], effect, past, now, p_value)
            )
    return found


def _variance(scores: Floats, alike: Floats) -> Floats:
    """Return the variance of windows; a short stretch of a slow wander looks too calm."""
    n = len(scores)
    seen = 1.0 - (n * spread_of_mean(n, alike) - 1.0) / (n - 1)
    return np.asarray(scores.var(0, ddof=1) / np.maximum(seen, LEAST_SEEN))


# --- words --------------------------------------------------------------------------------


def _report(
    device: str,
    site: str,
    run: Sequence[DeviceWindow],
    change: _Change | None,
    features: list[FeatureDrift],
    names: Sequence[str],
    settings: DriftSettings,
    has_siblings: bool,
) -> DeviceDrift:
    now = min(len(run), settings.current_windows)
    past = 0 if change is None else len(change.reference)
    current = run[-settings.current_windows :]
    stuck = [] if change is None else _stuck(current, names)
    skew = {} if change is None else _beyond_training(change, names, settings)
    verdict: DeviceVerdict = "quiet"
    if change is None:
        verdict = "insufficient"
        words = (
            f"not enough full windows: {len(run)} of its bundle, "
            f"{settings.min_reference_windows + settings.current_windows} are needed"
        )
    elif features or stuck:
        verdict = "drift"
        words = "; ".join([_in_words(f) for f in features] + [f"{n} never changes" for n in stuck])
        others = " and its siblings" if has_siblings else ", too few siblings to compare with"
        words += f" (against {past} windows of its own past{others})"
    else:
        others = ", and as its siblings" if has_siblings else ""
        words = f"as in the {past} windows before{others}"
    return DeviceDrift(device, site, verdict, words, features, stuck, skew, past, now)


def _in_words(feature: FeatureDrift) -> str:
    moved = "rose" if feature.effect_sd > 0 else "fell"
    return f"{feature.name} {moved} by {abs(feature.effect_sd):.1f} sd"


def _stuck(current: Sequence[DeviceWindow], names: Sequence[str]) -> list[str]:
    """Return inputs whose every row of the current windows has one value."""
    columns = [{n: w.columns.get(n) for n in names} for w in current]
    return [
        name
        for name in names
        if all(isinstance(c[name], NumericCounts) and c[name].run == w.n  # type: ignore[union-attr]
               for c, w in zip(columns, current, strict=True))
    ]  # fmt: skip


def _beyond_training(
    change: _Change, names: Sequence[str], settings: DriftSettings
) -> dict[str, float]:
    """Return how far from its site's training data the current windows are, where it is far."""
    apart = zip(names, change.current.mean(0) - change.training, strict=True)
    return {name: float(score) for name, score in apart if abs(score) >= settings.skew_sd}
