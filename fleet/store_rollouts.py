"""Rollouts, assignments and `desired` in the database.

A step of a rollout is one transaction (`RolloutStore.step`): the rollout is loaded and
locked, the caller decides, and its decisions, the assignments they make and the devices'
new `desired` are stored together or not at all. What is sent is sent afterwards, from
what is stored, and may be sent again.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, and_, exists, func, insert, select, update

from fleet.database import Database, upsert
from fleet.plan import Assignment, Rollout
from fleet.schema import assignments, desired, releases, reported, rollouts, steps, verdicts
from skerry.canonical import from_json, from_msgpack, to_json, to_msgpack
from skerry.errors import ConflictError, NotFoundError
from skerry.states import (
    ASSIGNMENT,
    ASSIGNMENT_ENDS,
    ROLLOUT_ENDS,
    AnalysisState,
    AssignmentState,
    RolloutState,
    advance,
)
from skerry.wire import ReleaseRef, SlotDesired

__all__ = ["DesiredRow", "NewAssignment", "RolloutStep", "RolloutStore", "StoredVerdict"]

QUIET: Final = sorted(ROLLOUT_ENDS - {RolloutState.ABORTED})


class StoredVerdict(msgspec.Struct, frozen=True):
    """A verdict as stored: what `fleet.rollout.decide` reads of it, and all its numbers."""

    state: AnalysisState
    reason: str
    insufficient: bool
    at: float = 0.0
    stage: str = ""
    body: dict[str, Any] = {}


class DesiredRow(msgspec.Struct, frozen=True):
    """What a device shall run, as stored: `director` maps file names to signed bytes."""

    device: str
    version: int
    slots: dict[str, SlotDesired]
    director: dict[str, bytes]
    updated_at: float


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
                    **_changing(rollout, rollout.created_at),
                )
            )

    def get(self, rollout_id: str) -> Rollout:
        """Return a rollout.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._db.read() as connection:
            return _load(connection, rollout_id)[0]

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
            return _assignments(connection, rollout_id)

    @contextlib.contextmanager
    def step(self, rollout_id: str) -> Iterator["RolloutStep"]:
        """Load and lock a rollout for one step; what the block stores is stored together.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: another process was faster; try again.
        """
        with self._db.write() as connection:
            rollout, revision = _load(connection, rollout_id, lock=True)
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
            return _desired(connection, device)

    def all_desired(self) -> list[DesiredRow]:
        """Return what every device shall run."""
        with self._db.read() as connection:
            rows = connection.execute(select(desired).order_by(desired.c.device))
            return [_desired_row(row) for row in rows]

    def desired_signed_before(self, at: float, limit: int) -> list[str]:
        """Return devices whose director metadata is older than a time, the oldest first."""
        query = (
            select(desired.c.device)
            .where(desired.c.updated_at < at)
            .order_by(desired.c.updated_at)
            .limit(limit)
        )
        with self._db.read() as connection:
            return list(connection.scalars(query))

    @contextlib.contextmanager
    def change_desired(self, device: str) -> Iterator["DesiredChange"]:
        """Load and lock what one device shall run, to sign it anew."""
        with self._db.write() as connection:
            yield DesiredChange(connection, _desired(connection, device, lock=True))


class DesiredChange:
    """What one device shall run, inside a transaction."""

    def __init__(self, connection: Connection, row: DesiredRow | None) -> None:
        self._connection = connection
        self.row = row

    def put(self, row: DesiredRow) -> None:
        """Store it."""
        _put_desired(self._connection, row)


class RolloutStep:
    """One step of a rollout, inside its transaction."""

    def __init__(self, connection: Connection, rollout: Rollout, revision: int) -> None:
        self._connection = connection
        self._revision = revision
        self.rollout = rollout

    def assignments(self) -> dict[str, Assignment]:
        """Return each device's latest assignment in the rollout."""
        return _assignments(self._connection, self.rollout.rollout_id)

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
            .values(revision=self._revision + 1, **_changing(rollout, now))
        )
        if changed.rowcount == 0:
            raise ConflictError(f"rollout {rollout.rollout_id} changed meanwhile; try again")
        self._revision += 1
        self.rollout = rollout

    def running(self, device: str, slot: str) -> tuple[str, str]:
        """Return target and bundle of the release that a device reports in a slot."""
        body = self._connection.scalar(select(reported.c.slots).where(reported.c.device == device))
        ref = from_json(body.encode(), dict[str, ReleaseRef]).get(slot) if body else None
        if ref is None:
            return "", ""
        target = self._connection.scalar(
            select(releases.c.target).where(releases.c.bundle == ref.bundle)
        )
        return (target, ref.bundle) if target else ("", "")

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

    def length_of(self, target: str) -> int:
        """Return how many bytes the OCI manifest of a published release has."""
        query = select(releases.c.length).where(releases.c.target == target)
        return int(self._connection.execute(query).scalar_one())

    def assign(self, new: NewAssignment, now: float) -> None:
        """Make an assignment; what the device's slot had under way is superseded.

        An assignment without a target takes the slot out: nothing comes back from the
        device, so it is committed at once.
        """
        self._supersede(new, now)
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
        self._set_state(new.assignment_id, path[-1], now)

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
        self._take_step(row.assignment, AssignmentState(row.state), state, now, reason)

    def desired(self, device: str) -> DesiredRow | None:
        """Return what a device shall run."""
        return _desired(self._connection, device, lock=True)

    def put_desired(self, row: DesiredRow) -> None:
        """Store what a device shall run."""
        _put_desired(self._connection, row)

    def _supersede(self, new: NewAssignment, now: float) -> None:
        table = assignments.c
        rows = self._connection.execute(
            select(table.assignment, table.state).where(
                table.device == new.device,
                table.slot == new.slot,
                table.state.not_in(sorted(ASSIGNMENT_ENDS)),
            )
        ).all()
        for row in rows:
            reason = f"superseded by {new.assignment_id}"
            old = AssignmentState(row.state)
            self._take_step(row.assignment, old, AssignmentState.SUPERSEDED, now, reason)

    def _take_step(
        self, assignment: str, old: AssignmentState, new: AssignmentState, now: float, why: str
    ) -> None:
        advance(ASSIGNMENT, old, new)
        last = self._connection.scalar(
            select(func.max(steps.c.position)).where(steps.c.assignment == assignment)
        )
        position = 0 if last is None else last + 1
        self._connection.execute(
            insert(steps).values(
                assignment=assignment, position=position, state=new, at=now, stored_at=now
            )
        )
        self._set_state(assignment, new, now, why)

    def _set_state(
        self, assignment: str, state: AssignmentState, now: float, why: str | None = None
    ) -> None:
        values: dict[str, Any] = {"state": state, "updated_at": now}
        if state in ASSIGNMENT_ENDS:
            values["ended_at"] = now
        if why is not None:
            values["message"] = why
        self._connection.execute(
            update(assignments).where(assignments.c.assignment == assignment).values(values)
        )


def _changing(rollout: Rollout, now: float) -> dict[str, Any]:
    return {
        "state": rollout.state,
        "pause_reason": rollout.pause_reason,
        "reason": rollout.reason,
        "body": to_json(rollout).decode(),
        "updated_at": now,
    }


def _load(connection: Connection, rollout_id: str, *, lock: bool = False) -> tuple[Rollout, int]:
    query = select(rollouts.c.body, rollouts.c.revision).where(rollouts.c.rollout == rollout_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFoundError(
            f"expected a rollout, found no {rollout_id[:80]}; list them with: skerry rollout list"
        )
    return from_json(row.body.encode(), Rollout), row.revision


def _assignments(connection: Connection, rollout_id: str) -> dict[str, Assignment]:
    table = assignments
    rows = connection.execute(
        select(table).where(table.c.rollout == rollout_id).order_by(table.c.n)
    ).all()
    forward: dict[str, Row[Any]] = {}
    back: dict[str, Row[Any]] = {}
    for row in rows:
        if row.returns is None:
            forward[row.device] = row
        else:
            back[row.returns] = row
    # the latest assignment of each (device, slot), whoever made it
    newest = (
        select(table.c.device, table.c.slot, func.max(table.c.n).label("n"))
        .where(table.c.device.in_(select(table.c.device).where(table.c.rollout == rollout_id)))
        .group_by(table.c.device, table.c.slot)
        .subquery()
    )
    holder = {
        (row.device, row.slot): row.rollout
        for row in connection.execute(
            select(table.c.device, table.c.slot, table.c.rollout).join(
                newest, and_(newest.c.n == table.c.n)
            )
        )
    }
    return {
        device: _assignment(row, back.get(row.assignment), holder[device, row.slot] == rollout_id)
        for device, row in forward.items()
    }


def _assignment(row: Row[Any], back: Row[Any] | None, current: bool) -> Assignment:
    return Assignment(
        assignment_id=row.assignment,
        device=row.device,
        state=AssignmentState(row.state),
        attempt=row.attempt,
        notified_at=row.notified_at or 0.0,
        previous=row.previous,
        phase=row.phase or "",
        code=row.code or "",
        effect=row.effect or "",
        message=row.message or "",
        back=None if back is None else AssignmentState(back.state),
        back_at=0.0 if back is None else back.created_at,
        current=current,
    )


def _desired(connection: Connection, device: str, *, lock: bool = False) -> DesiredRow | None:
    query = select(desired).where(desired.c.device == device)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else _desired_row(row)


def _desired_row(row: Row[Any]) -> DesiredRow:
    return DesiredRow(
        device=row.device,
        version=row.version,
        slots=from_json(row.slots.encode(), dict[str, SlotDesired]),
        director=from_msgpack(bytes(row.director), dict[str, bytes]),
        updated_at=row.updated_at,
    )


def _put_desired(connection: Connection, row: DesiredRow) -> None:
    values: Mapping[str, Any] = {
        "device": row.device,
        "version": row.version,
        "slots": to_json(row.slots).decode(),
        "director": to_msgpack(row.director),
        "updated_at": row.updated_at,
    }
    statements: Sequence[Mapping[str, Any]] = [values]
    connection.execute(upsert(connection, desired, ["device"]), statements)
