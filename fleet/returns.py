"""Devices taken back: timed out, gone, withdrawn by an abort, returned by a rollback.

Rules 2 and 10 to 12 of `fleet.rollout`. A device is taken back by a new assignment to what
it ran before, so that it never installs a dead release when it returns, however late.
"""

from collections.abc import Mapping
from typing import Final

from fleet.decisions import AssignmentTo, Decision, RollBack, RolloutTo
from fleet.plan import Assignment, Rollout
from fleet.tally import NOBODY, Absent, in_words
from skerry.states import (
    ASSIGNMENT_ENDS,
    ASSIGNMENT_WAITS,
    AssignmentState,
    DeviceState,
    RolloutState,
)

__all__ = ["leave", "return_all", "time_out", "withdraw"]


def time_out(rollout: Rollout, assignments: Mapping[str, Assignment], now: float) -> list[Decision]:
    """Return what ends and takes back the assignments that took too long (rule 2)."""
    limit, patience = rollout.plan.assignment_timeout_s, rollout.plan.waiting_timeout_s
    made: list[Decision] = []
    for known in _ordered(rollout, assignments):
        if known.state is AssignmentState.QUEUED or known.state in ASSIGNMENT_ENDS:
            continue
        if known.state in ASSIGNMENT_WAITS:
            waited_s = now - known.notified_at
            if waited_s >= patience:
                reason = f"{known.state} for {waited_s:.0f} s, the plan waits {patience:g} s"
                made += _take_back(known, AssignmentState.CANCELED, reason)
            continue
        silent_s = now - max(known.notified_at, known.waited_until)
        if silent_s >= limit:
            reason = (
                f"{known.state} {silent_s:.0f} s after it was notified, the limit is {limit:g} s"
            )
            made += _take_back(known, AssignmentState.TIMED_OUT, reason)
    return made


def leave(
    rollout: Rollout, assignments: Mapping[str, Assignment], absent: Absent
) -> list[Decision]:
    """Return what ends the assignments of devices that are not accepted any more (rule 12)."""
    made: list[Decision] = []
    undoing = rollout.state is RolloutState.ROLLING_BACK
    for known in _ordered(rollout, assignments):
        state = absent.get(known.device)
        if state is None:
            continue
        is_open = known.state not in ASSIGNMENT_ENDS
        reason = f"the device is {state}"
        if state is DeviceState.DECOMMISSIONED:
            if is_open or (undoing and known.state is AssignmentState.COMMITTED):
                made.append(AssignmentTo(known.device, AssignmentState.DECOMMISSIONED, reason))
        elif is_open:
            made += _take_back(known, AssignmentState.CANCELED, reason)
    return made


def withdraw(rollout: Rollout, assignments: Mapping[str, Assignment]) -> list[Decision]:
    """Return what ends the assignments under way; what has reached an end stays (rule 10)."""
    made: list[Decision] = []
    for known in _ordered(rollout, assignments):
        if known.state is AssignmentState.QUEUED:
            made.append(AssignmentTo(known.device, AssignmentState.CANCELED, rollout.reason))
        elif known.state not in ASSIGNMENT_ENDS:
            made += _take_back(known, AssignmentState.CANCELED, rollout.reason)
    return made


def _take_back(known: Assignment, state: AssignmentState, reason: str) -> list[Decision]:
    made: list[Decision] = [AssignmentTo(known.device, state, reason)]
    if known.current and known.back is None:
        made.append(RollBack(known.device, known.previous, reason))
    return made


_STAYS: Final = frozenset(  # nothing of this rollout is, or will come, on these devices
    {
        AssignmentState.QUEUED,
        AssignmentState.ALREADY_INSTALLED,
        AssignmentState.SUPERSEDED,
        AssignmentState.DECOMMISSIONED,
    }
)
_BACK: Final = frozenset({AssignmentState.COMMITTED, AssignmentState.ALREADY_INSTALLED})
_AGAIN: Final = frozenset(  # a return that may succeed if it is asked for once more
    {AssignmentState.FAILED, AssignmentState.ROLLED_BACK, AssignmentState.TIMED_OUT}
)
RETRY_S: Final = 5.0  # from one return of a device to the next


def return_all(
    rollout: Rollout,
    assignments: Mapping[str, Assignment],
    now: float,
    absent: Absent = NOBODY,
) -> list[Decision]:
    """Return what brings every device back, and the end once all have answered (rule 10)."""
    made = withdraw(rollout, assignments)
    touched = [
        known
        for known in _ordered(rollout, assignments)
        if known.notified_at > 0 and known.current and known.state not in _STAYS
    ]
    patience = rollout.plan.assignment_timeout_s
    over = now - rollout.since >= patience
    waiting = False
    for known in touched:
        asked = known.back is not None
        if not asked and known.state in ASSIGNMENT_ENDS:
            made.append(RollBack(known.device, known.previous, rollout.reason))
        elif known.back in _BACK and known.state is AssignmentState.COMMITTED and known.previous:
            reason = f"returned to {known.previous}: {rollout.reason}"
            made.append(AssignmentTo(known.device, AssignmentState.ROLLED_BACK, reason))
        elif known.device in absent:
            continue  # it finds what it ran before if it comes back
        elif known.back in _AGAIN and not over:
            waiting = True
            if now - known.back_at >= RETRY_S:
                reason = f"the return has {known.back}, once more: {rollout.reason}"
                made.append(RollBack(known.device, known.previous, reason))
        elif asked and known.back not in ASSIGNMENT_ENDS and now - known.back_at < patience:
            waiting = True
    if made or waiting:
        return made
    # a slot is never emptied: what was the first release in it goes on serving
    keep = sum(known.state is AssignmentState.COMMITTED and not known.previous for known in touched)
    returned = sum(known.back in _BACK for known in touched) - keep
    reason = f"{rollout.reason}; {returned} of {in_words(len(touched))} returned"
    if keep:
        reason += f", {keep} keep it, for nothing ran there before"
    if returned + keep < len(touched):
        reason += f", {len(touched) - returned - keep} did not confirm"
    return [RolloutTo(RolloutState.ROLLED_BACK, reason, now)]


def _ordered(rollout: Rollout, assignments: Mapping[str, Assignment]) -> list[Assignment]:
    return [assignments[device] for device in rollout.devices if device in assignments]
