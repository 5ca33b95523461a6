"""What came of a stage's devices: the counts from which a stage is judged.

Only `committed` is success, a silent device has failed, and a device that had too
little traffic to judge the new model counts neither way: it is no evidence.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from fleet.plan import Assignment, Stage
from skerry.states import (
    ASSIGNMENT_ENDS,
    ASSIGNMENT_FAILURES,
    ASSIGNMENT_WAITS,
    AssignmentState,
    DeviceState,
    StageState,
)

__all__ = ["NOBODY", "NO_TRAFFIC", "Absent", "Tally", "count", "in_words"]

Absent = Mapping[str, DeviceState]  # devices that are not accepted
NOBODY: Final[Absent] = {}
NO_TRAFFIC: Final = "insufficient_data"  # the code of a probation that saw too few requests


_TELLING: Final = frozenset({StageState.PENDING, StageState.ACTIVE, StageState.INCONCLUSIVE})


class Tally(msgspec.Struct, frozen=True):
    """A stage's devices by what came of them; each list in the stage's order."""

    committed: list[str]
    failed: list[str]  # said so themselves, or timed out
    starved: list[str]  # too little traffic to judge the new model
    left_out: list[str]  # neither way: had it, cannot run it, withdrawn, absent (rules 4, 12)
    under_way: list[str]
    why: dict[str, str]  # of the failed ones
    waiting: list[str] = []  # of those under way: for their consent or maintenance window

    @property
    def asked(self) -> int:
        """The denominator: devices notified and able to take the release."""
        return len(self.committed) + len(self.failed) + len(self.starved) + len(self.under_way)

    @property
    def evidence(self) -> int:
        """How many devices have committed or failed."""
        return len(self.committed) + len(self.failed)

    def sentence(self) -> str:
        """The counts in words."""
        parts = [f"{len(self.committed)} of {in_words(self.asked)} notified committed"]
        if self.failed:
            why = "; ".join(f"{device}: {self.why[device]}" for device in self.failed[:3])
            parts.append(f"{len(self.failed)} failed ({why})")
        if self.starved:
            parts.append(f"{len(self.starved)} saw too few requests to judge")
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out")
        if self.under_way:
            wait = f", of which {len(self.waiting)} wait for leave" if self.waiting else ""
            parts.append(f"{len(self.under_way)} under way{wait}")
        return ", ".join(parts)


def count(stage: Stage, assignments: Mapping[str, Assignment], absent: Absent = NOBODY) -> Tally:
    """Return what came of a stage's devices (rules 1, 2, 4 and 12)."""
    tally = Tally([], [], [], [], [], {}, [])
    for device in stage.devices:
        known = assignments.get(device)
        if known is None:
            # one that comes back when the others are in is not told any more
            is_late = device in absent or stage.state not in _TELLING
            (tally.left_out if is_late else tally.under_way).append(device)
        elif known.state is AssignmentState.COMMITTED:
            tally.committed.append(device)
        elif known.state in ASSIGNMENT_FAILURES and known.code == NO_TRAFFIC:
            tally.starved.append(device)
        elif known.state in ASSIGNMENT_FAILURES:
            tally.failed.append(device)
            tally.why[device] = " ".join(filter(None, (known.state, known.code or known.phase)))
        elif known.state in ASSIGNMENT_ENDS:
            tally.left_out.append(device)
        else:
            tally.under_way.append(device)
            if known.state in ASSIGNMENT_WAITS:
                tally.waiting.append(device)
    return tally


def in_words(number: int) -> str:
    """Return a number of devices as a person says it."""
    return f"{number} device" if number == 1 else f"{number} devices"
