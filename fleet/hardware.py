"""Which variant was measured on which class of hardware: by the compiler, by devices, or not yet.

A device runs the golden set before it serves a release, and says what it showed
(`skerry.trials.Trial`). The latest word of each device counts.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, select

from fleet import schema
from fleet.api.views import HardwareView
from skerry.canonical import from_json
from skerry.profile import ANY_CLASS
from skerry.trials import Trial

__all__ = ["Seen", "hardware", "known_of"]

ACCEPTED: Final = "accepted"
OK, DISAGREES = "ok", "golden_mismatch"  # of a smoke run


@dataclass(frozen=True, slots=True)
class Seen:
    """What devices said: by bundle, variant and class of hardware; and the classes that there are."""

    trials: Mapping[tuple[str, str, str], list[Trial]] = field(default_factory=dict)
    classes: Sequence[str] = ()


def hardware(connection: Connection, bundles: Sequence[str]) -> Seen:
    """Return what devices said of these bundles.

    Args:
        connection: of the fleet's database.
        bundles: digests.
    """
    a, d = schema.assignments, schema.devices
    query = (
        select(a.c.device, a.c.bundle, a.c.trials, d.c.hw_class)
        .join(d, d.c.device == a.c.device)
        .where(a.c.bundle.in_(bundles), a.c.trials.is_not(None))
        .order_by(a.c.n)
    )
    latest: dict[tuple[str, str, str, str], Trial] = {}
    for row in connection.execute(query):
        for trial in from_json(row.trials.encode(), list[Trial]):
            latest[row.bundle, trial.variant, row.hw_class or "", row.device] = trial
    found: dict[tuple[str, str, str], list[Trial]] = defaultdict(list)
    for (bundle, variant, hw_class, _), trial in latest.items():
        found[bundle, variant, hw_class].append(trial)
    classes = connection.scalars(
        select(d.c.hw_class).where(d.c.state == ACCEPTED, d.c.hw_class != "").distinct()
    )
    return Seen(found, sorted(filter(None, classes)))


def known_of(bundle: str, variants: Sequence[Mapping[str, Any]], seen: Seen) -> list[HardwareView]:
    """Return what is known of each variant of a bundle, by class of hardware.

    Args:
        bundle: its digest.
        variants: of its manifest, as JSON.
        seen: what devices said.
    """
    told: list[HardwareView] = []
    for variant in variants:
        name, evaluated = variant["id"], variant["accuracy"]["isa"]
        said = {c: t for (b, v, c), t in seen.trials.items() if (b, v) == (bundle, name)}
        fits = [c for c in seen.classes if _fits(variant["hw_classes"], c)]
        told += [
            _one(name, hw_class, evaluated, said.get(hw_class, []))
            for hw_class in sorted({evaluated, *fits, *said})
        ]
    return told


def _fits(classes: Sequence[str], hw_class: str) -> bool:
    return any(c == ANY_CLASS or hw_class.startswith(c) for c in classes)


def _one(variant: str, hw_class: str, evaluated: str, trials: Sequence[Trial]) -> HardwareView:
    failed = sum(trial.code == DISAGREES for trial in trials)
    unable = sum(trial.code not in (OK, DISAGREES) for trial in trials)
    if failed:
        known = "disagrees"
    elif unable:
        known = "unable"
    elif hw_class == evaluated:
        known = "evaluated"
    else:
        known = "agrees" if trials else "unmeasured"
    times = [trial.run_us for trial in trials if trial.run_us > 0]
    return HardwareView(
        variant=variant,
        hw_class=hw_class,
        known=known,
        devices=len(trials),
        failed=failed,
        unable=unable,
        rows=max((trial.rows for trial in trials), default=0),
        disagree=max((trial.disagree for trial in trials), default=0.0),
        run_us=statistics.median(times) if times else None,
    )
