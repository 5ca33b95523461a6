"""Rollouts, assignments and `desired` in the database.

A step of a rollout is one transaction (`RolloutStore.step`): the rollout is loaded and
locked, the caller decides, and its decisions, the assignments they make and the devices'
new `desired` are stored together or not at all. What is sent is sent afterwards, from
what is stored, and may be sent again.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, exists, func, insert, select

from fleet.database import Database
from fleet.plan import Assignment, Rollout
from fleet.rollout_rows import (
    DesiredRow,
    StoredVerdict,
    changing,
    desired_row,
    is_accepted,
    load_assignments,
    load_desired,
    load_rollout,
    store_desired,
)
from fleet.schema import assignments, desired, devices, liveness, reported, rollouts, verdicts
from fleet.store_steps import RolloutStep
from skerry.canonical import from_json, to_json
from skerry.errors import ConflictError
from skerry.states import (
    ASSIGNMENT_ENDS,
    ROLLOUT_ENDS,
    DeviceState,
    RolloutState,
)
from skerry.wire import SlotDesired

__all__ = ["DesiredChange", "RolloutStore"]

QUIET: Final = sorted(ROLLOUT_ENDS - {RolloutState.ABORTED})


class RolloutStore:
    """Reads rollouts, and opens the transactions in which they take a step."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def create(self, rollout: Rollout, bundle: str) -> None:
        """Store a new rollout.

        Raises:
            ConflictError: there is one of this id.
        """
        with self._db.write() as connection:
            taken = select(exists().where(rollouts.c.rollout == rollout.rollout_id))
            if connection.scalar(taken):
                raise ConflictError(f"expected a new rollout id, {rollout.rollout_id} is taken")
            connection.execute(
                insert(rollouts).values(
                    rollout=rollout.rollout_id,
                    model=rollout.plan.model,
                    model_version=rollout.plan.model_version,
                    bundle=bundle,
                    slot=rollout.plan.slot,
                    revision=1,
                    created_at=rollout.created_at,
                    **changing(rollout, rollout.created_at),
                )
            )

    def get(self, rollout_id: str) -> Rollout:
        """Return a rollout.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._db.read() as connection:
            return load_rollout(connection, rollout_id)[0]

    def all(self) -> list[Rollout]:
        """Return every rollout, the newest first."""
        query = select(rollouts.c.body).order_by(rollouts.c.created_at.desc())
        with self._db.read() as connection:
            return [from_json(body.encode(), Rollout) for body in connection.scalars(query)]

    def open_ids(self) -> list[str]:
        """Return the rollouts about which there is something to decide, the oldest first."""
        under_way = exists().where(
            assignments.c.rollout == rollouts.c.rollout,
            assignments.c.state.not_in(sorted(ASSIGNMENT_ENDS)),
        )
        query = (
            select(rollouts.c.rollout)
            .where(rollouts.c.state.not_in(QUIET))
            .where((rollouts.c.state != RolloutState.ABORTED) | under_way)
            .order_by(rollouts.c.created_at)
        )
        with self._db.read() as connection:
            return list(connection.scalars(query))

    def assignments(self, rollout_id: str) -> dict[str, Assignment]:
        """Return each device's latest assignment in a rollout."""
        with self._db.read() as connection:
            return load_assignments(connection, rollout_id)

    @contextlib.contextmanager
    def step(self, rollout_id: str) -> Iterator[RolloutStep]:
        """Load and lock a rollout for one step; what the block stores is stored together.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: another process was faster; try again.
        """
        with self._db.write() as connection:
            rollout, revision = load_rollout(connection, rollout_id, lock=True)
            yield RolloutStep(connection, rollout, revision)

    def add_verdict(self, rollout_id: str, attempt: int, verdict: StoredVerdict) -> None:
        """Store the verdict on a stage."""
        with self._db.write() as connection:
            connection.execute(
                insert(verdicts).values(
                    rollout=rollout_id,
                    stage=verdict.stage,
                    attempt=attempt,
                    state=verdict.state,
                    reason=verdict.reason,
                    body=to_json(verdict).decode(),
                    at=verdict.at,
                )
            )

    def desired(self, device: str) -> DesiredRow | None:
        """Return what a device shall run."""
        with self._db.read() as connection:
            return load_desired(connection, device)

    def all_desired(self) -> list[DesiredRow]:
        """Return what every device shall run."""
        with self._db.read() as connection:
            rows = connection.execute(select(desired).order_by(desired.c.device))
            return [desired_row(row) for row in rows]

    def desired_signed_before(self, at: float, limit: int) -> list[str]:
        """Return devices whose director metadata is older than a time, the oldest first."""
        query = (
            select(desired.c.device)
            .join(devices, devices.c.device == desired.c.device)
            .where(desired.c.updated_at < at, devices.c.state == DeviceState.ACCEPTED)
            .order_by(desired.c.updated_at)
            .limit(limit)
        )
        with self._db.read() as connection:
            return list(connection.scalars(query))

    def behind(self, *, seen_since: float, told_before: float, limit: int) -> list[str]:
        """Return devices that are there and have not taken over what they shall run.

        Args:
            seen_since: heard of since then (Unix seconds).
            told_before: and told before then.
            limit: at most so many.
        """
        query = (
            select(desired.c.device)
            .join(liveness, liveness.c.device == desired.c.device)
            .join(devices, devices.c.device == desired.c.device)
            .outerjoin(reported, reported.c.device == desired.c.device)
            .where(
                devices.c.state == DeviceState.ACCEPTED,
                liveness.c.last_seen >= seen_since,
                desired.c.updated_at < told_before,
                func.coalesce(reported.c.desired_version, 0) < desired.c.version,
            )
            .order_by(desired.c.updated_at)
            .limit(limit)
        )
        with self._db.read() as connection:
            return list(connection.scalars(query))

    def in_other_slots(self, target: str, slot: str) -> dict[str, str]:
        """Return the devices that shall run a release in another slot, or are about to, and which.

        Args:
            target: of the release.
            slot: the one that is no other.
        """
        found: dict[str, str] = {}
        open_states = [state for state in RolloutState if state not in ROLLOUT_ENDS]
        query = select(rollouts.c.body).where(
            rollouts.c.state.in_(sorted(open_states)), rollouts.c.slot != slot
        )
        with self._db.read() as connection:
            for body in connection.scalars(query):
                rollout = from_json(body.encode(), Rollout)
                if rollout.plan.target == target:
                    found |= dict.fromkeys(rollout.devices, rollout.plan.slot)
            for row in connection.execute(select(desired.c.device, desired.c.slots)):
                for name, wanted in from_json(row.slots.encode(), dict[str, SlotDesired]).items():
                    if name != slot and wanted.target == target:
                        found[row.device] = name
        return found

    @contextlib.contextmanager
    def change_desired(self, device: str) -> Iterator["DesiredChange"]:
        """Load and lock what one device shall run, to sign it anew."""
        with self._db.write() as connection:
            yield DesiredChange(connection, load_desired(connection, device, lock=True))


class DesiredChange:
    """What one device shall run, inside a transaction."""

    def __init__(self, connection: Connection, row: DesiredRow | None) -> None:
        self._connection = connection
        self.row = row

    def accepts(self) -> bool:
        """Tell whether the device is accepted."""
        return self.row is not None and is_accepted(self._connection, self.row.device)

    def put(self, row: DesiredRow) -> None:
        """Store it."""
        store_desired(self._connection, row)
