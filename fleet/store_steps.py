"""One step of a rollout, inside the transaction that loaded and locked it."""

import msgspec
from sqlalchemy import Connection, insert, select, update

from fleet.assignment_steps import end_open, set_state, take_step
from fleet.plan import Assignment, Rollout
from fleet.rollout_rows import (
    DesiredRow,
    StoredVerdict,
    changing,
    is_accepted,
    load_assignments,
    load_desired,
    store_desired,
)
from fleet.schema import assignments, devices, releases, reported, rollouts, steps, verdicts
from skerry.canonical import from_json
from skerry.errors import ConflictError, NotFoundError
from skerry.states import AssignmentState, DeviceState
from skerry.wire import ReleaseRef

__all__ = ["NewAssignment", "RolloutStep"]


class NewAssignment(msgspec.Struct, frozen=True):
    """An assignment to be made; `returns` names the one that it undoes."""

    assignment_id: str
    stage: str
    device: str
    slot: str
    attempt: int
    target: str
    bundle: str
    previous: str
    returns: str | None = None


class RolloutStep:
    """One step of a rollout, inside its transaction."""

    def __init__(self, connection: Connection, rollout: Rollout, revision: int) -> None:
        self._connection = connection
        self._revision = revision
        self.rollout = rollout

    def assignments(self) -> dict[str, Assignment]:
        """Return each device's latest assignment in the rollout."""
        return load_assignments(self._connection, self.rollout.rollout_id)

    def absent(self) -> dict[str, DeviceState]:
        """Return the rollout's devices that are not accepted, and what they are instead."""
        query = select(devices.c.device, devices.c.state).where(
            devices.c.state != DeviceState.ACCEPTED
        )
        found = {row.device: DeviceState(row.state) for row in self._connection.execute(query)}
        return {device: found[device] for device in self.rollout.devices if device in found}

    def accepts(self, device: str) -> bool:
        """Tell whether a device is accepted."""
        return is_accepted(self._connection, device)

    def verdicts(self) -> dict[str, StoredVerdict]:
        """Return the latest verdict on each stage since it began to be analysed."""
        latest: dict[str, StoredVerdict] = {}
        since = {stage.name: stage.since for stage in self.rollout.stages}
        query = (
            select(verdicts.c.stage, verdicts.c.body)
            .where(verdicts.c.rollout == self.rollout.rollout_id)
            .order_by(verdicts.c.n)
        )
        for stage, body in self._connection.execute(query):
            verdict = from_json(body.encode(), StoredVerdict)
            if verdict.at >= since.get(stage, float("inf")):
                latest[stage] = verdict
        return latest

    def put_rollout(self, rollout: Rollout, now: float) -> None:
        """Store the rollout's next value.

        Raises:
            ConflictError: another process changed it meanwhile.
        """
        if rollout == self.rollout:
            return
        changed = self._connection.execute(
            update(rollouts)
            .where(rollouts.c.rollout == rollout.rollout_id, rollouts.c.revision == self._revision)
            .values(revision=self._revision + 1, **changing(rollout, now))
        )
        if changed.rowcount == 0:
            raise ConflictError(f"rollout {rollout.rollout_id} changed meanwhile; try again")
        self._revision += 1
        self.rollout = rollout

    def running(self, device: str, slot: str) -> str:
        """Return the target of the release that a device reports in a slot, or nothing."""
        body = self._connection.scalar(select(reported.c.slots).where(reported.c.device == device))
        ref = from_json(body.encode(), dict[str, ReleaseRef]).get(slot) if body else None
        if ref is None:
            return ""
        query = select(releases.c.target).where(releases.c.bundle == ref.bundle)
        return self._connection.scalar(query) or ""

    def bundle_of(self, target: str) -> str:
        """Return the bundle digest of a published release.

        Raises:
            NotFoundError: none is published under this path.
        """
        bundle = self._connection.scalar(
            select(releases.c.bundle).where(releases.c.target == target)
        )
        if bundle is None:
            raise NotFoundError(f"expected a published release, found no {target}")
        return str(bundle)

    def assign(self, new: NewAssignment, now: float) -> None:
        """Make an assignment; what the device's slot had under way is superseded.

        An assignment without a target takes the slot out: nothing comes back from the
        device, so it is committed at once.
        """
        end_open(
            self._connection,
            new.device,
            AssignmentState.SUPERSEDED,
            f"superseded by {new.assignment_id}",
            now,
            slot=new.slot,
        )
        self._connection.execute(
            insert(assignments).values(
                assignment=new.assignment_id,
                rollout=self.rollout.rollout_id,
                stage=new.stage,
                returns=new.returns,
                device=new.device,
                slot=new.slot,
                attempt=new.attempt,
                state=AssignmentState.QUEUED,
                target=new.target,
                bundle=new.bundle,
                previous=new.previous,
                created_at=now,
                notified_at=now,
                updated_at=now,
            )
        )
        path = [AssignmentState.QUEUED, AssignmentState.NOTIFIED]
        if not new.target:
            path.append(AssignmentState.COMMITTED)
        rows = [
            {"assignment": new.assignment_id, "position": position, "state": state,
             "at": now, "stored_at": now}
            for position, state in enumerate(path)
        ]  # fmt: skip
        self._connection.execute(insert(steps), rows)
        set_state(self._connection, new.assignment_id, path[-1], now)

    def end_assignment(self, device: str, state: AssignmentState, reason: str, now: float) -> None:
        """End the device's latest forward assignment of this rollout from the fleet's side."""
        row = self._connection.execute(
            select(assignments.c.assignment, assignments.c.state)
            .where(
                assignments.c.rollout == self.rollout.rollout_id,
                assignments.c.device == device,
                assignments.c.returns.is_(None),
            )
            .order_by(assignments.c.n.desc())
            .limit(1)
        ).one()
        old = AssignmentState(row.state)
        take_step(self._connection, row.assignment, old, state, reason, now)

    def desired(self, device: str) -> DesiredRow | None:
        """Return what a device shall run."""
        return load_desired(self._connection, device, lock=True)

    def put_desired(self, row: DesiredRow) -> None:
        """Store what a device shall run."""
        store_desired(self._connection, row)
