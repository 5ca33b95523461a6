"""Decisions carried out: assignments made and ended, and each device's `desired` signed anew.

All of it happens inside the transaction of one step of a rollout: either the rollout, its
assignments, the director metadata and the versions are all stored, or none. Sending comes
after, from what is stored.
"""

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from fleet.decisions import (
    RETURN_PROBATION,
    AssignmentTo,
    Decision,
    Notify,
    RollBack,
    apply,
)
from fleet.director import assign
from fleet.plan import Assignment, Rollout
from fleet.rollout_rows import DesiredRow
from fleet.store_releases import ReleaseStore
from fleet.store_rollouts import DesiredChange
from fleet.store_steps import NewAssignment, RolloutStep
from skerry.trust import DirectorTarget
from skerry.wire import SlotDesired

__all__ = ["RETURN_STAGE", "Dispatcher", "MetadataSigner"]

RETURN_STAGE = "rollback"  # the stage of assignments that take a device back
MAX_VERSION = 1 << 53
Slots = dict[str, SlotDesired]


class MetadataSigner(Protocol):
    """What signs a device's director metadata (`fleet.director.Director`)."""

    def sign(
        self, device_id: str, targets: Sequence[DirectorTarget], *, version: int, now: datetime
    ) -> dict[str, bytes]:
        """Return the metadata of one device: file name -> signed bytes."""
        ...


class Dispatcher:
    """Carries decisions out, and signs what devices shall run."""

    def __init__(self, director: MetadataSigner, releases: ReleaseStore) -> None:
        self._director = director
        self._releases = releases

    def carry_out(
        self, step: RolloutStep, decisions: Sequence[Decision], now: datetime
    ) -> list[str]:
        """Store what decisions mean, and return the devices whose `desired` changed.

        Raises:
            InvalidTransition: a table does not list a step; the transaction must not commit.
            ConflictError: another process changed the rollout meanwhile.
        """
        rollout = step.rollout
        known = step.assignments()
        changes: dict[str, dict[str, SlotDesired | None]] = {}
        for decision in decisions:
            rollout = apply(rollout, decision)
            match decision:
                case Notify():
                    slots = changes.setdefault(decision.device, {})
                    earlier = known.get(decision.device)
                    slots[rollout.plan.slot] = _notify(step, rollout, decision, earlier, now)
                case AssignmentTo():
                    step.end_assignment(
                        decision.device, decision.state, decision.reason, now.timestamp()
                    )
                case RollBack():
                    slots = changes.setdefault(decision.device, {})
                    slots[rollout.plan.slot] = _return(step, rollout, decision, known, now)
                case _:
                    pass
        step.put_rollout(rollout, now.timestamp())
        for device, slots in changes.items():
            row = step.desired(device)
            step.put_desired(self._next(device, row, slots, 0, now, step.accepts(device)))
        return sorted(changes)

    def sign_anew(self, change: DesiredChange, above: int, now: datetime) -> None:
        """Sign what a device shall run once more, under a version above `above`.

        For a device that is not accepted, nothing is signed.
        """
        if change.row is not None and change.accepts():
            change.put(self._next(change.row.device, change.row, {}, above, now, True))

    def _next(
        self,
        device: str,
        row: DesiredRow | None,
        changes: Mapping[str, SlotDesired | None],
        above: int,
        now: datetime,
        accepted: bool,
    ) -> DesiredRow:
        slots: Slots = dict(row.slots) if row is not None else {}
        for slot, wanted in changes.items():
            slots.pop(slot, None)
            if wanted is not None:
                slots[slot] = wanted
        version = max(row.version if row is not None else 0, min(above, MAX_VERSION)) + 1
        if not accepted:  # what it shall run is kept, and signed when it is accepted again
            return DesiredRow(device, version, slots, {}, 0.0)
        targets = [
            assign(
                self._releases.get(wanted.target).target,
                device=device,
                slot=slot,
                rollout=wanted.rollout_id,
                assignment_id=wanted.assignment_id,
            )
            for slot, wanted in sorted(slots.items())
        ]
        director = self._director.sign(device, targets, version=version, now=now)
        return DesiredRow(device, version, slots, director, now.timestamp())


def _notify(
    step: RolloutStep,
    rollout: Rollout,
    decision: Notify,
    earlier: Assignment | None,
    now: datetime,
) -> SlotDesired:
    plan = rollout.plan
    new = NewAssignment(
        assignment_id=f"a-{secrets.token_hex(8)}",
        stage=decision.stage,
        device=decision.device,
        slot=plan.slot,
        attempt=decision.attempt,
        target=plan.target,
        bundle=step.bundle_of(plan.target),
        # a second attempt goes back to where the first one started from
        previous=step.running(decision.device, plan.slot) if earlier is None else earlier.previous,
    )
    step.assign(new, now.timestamp())
    return SlotDesired(
        assignment_id=new.assignment_id,
        rollout_id=rollout.rollout_id,
        target=new.target,
        bundle=new.bundle,
        attempt=new.attempt,
        probation=plan.probation,
        shadow=plan.shadow,
        deadline_s=plan.assignment_timeout_s,
    )


def _return(
    step: RolloutStep,
    rollout: Rollout,
    decision: RollBack,
    known: Mapping[str, Assignment],
    now: datetime,
) -> SlotDesired | None:
    undone = known[decision.device]
    new = NewAssignment(
        assignment_id=f"a-{secrets.token_hex(8)}",
        stage=RETURN_STAGE,
        device=decision.device,
        slot=rollout.plan.slot,
        attempt=undone.attempt,
        target=decision.target,
        bundle=step.bundle_of(decision.target) if decision.target else "",
        previous=rollout.plan.target,
        returns=undone.assignment_id,
    )
    step.assign(new, now.timestamp())
    if not decision.target:
        return None
    return SlotDesired(
        assignment_id=new.assignment_id,
        rollout_id=rollout.rollout_id,
        target=new.target,
        bundle=new.bundle,
        attempt=new.attempt,
        probation=RETURN_PROBATION,
        deadline_s=rollout.plan.assignment_timeout_s,
    )
