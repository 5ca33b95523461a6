"""Rows of rollouts, assignments and `desired` as values, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, and_, func, select

from fleet.database import upsert
from fleet.plan import Assignment, Rollout
from fleet.schema import assignments, desired, devices, rollouts, steps
from skerry.canonical import from_json, from_msgpack, to_json, to_msgpack
from skerry.errors import NotFoundError
from skerry.states import ASSIGNMENT_WAITS, AnalysisState, AssignmentState, DeviceState
from skerry.wire import SlotDesired

__all__ = [
    "DesiredRow",
    "StoredVerdict",
    "changing",
    "desired_row",
    "is_accepted",
    "load_assignments",
    "load_desired",
    "load_rollout",
    "store_desired",
]


class StoredVerdict(msgspec.Struct, frozen=True):
    """A verdict as stored: what `fleet.rollout.decide` reads of it, and all its numbers."""

    state: AnalysisState
    reason: str
    insufficient: bool
    at: float = 0.0
    stage: str = ""
    body: dict[str, Any] = {}


class DesiredRow(msgspec.Struct, frozen=True):
    """What a device shall run, as stored: `director` maps file names to signed bytes.

    It is empty where nothing was signed, for the device was not accepted.
    """

    device: str
    version: int
    slots: dict[str, SlotDesired]
    director: dict[str, bytes]
    updated_at: float


def changing(rollout: Rollout, now: float) -> dict[str, Any]:
    """Return the columns of a rollout that change with it."""
    return {
        "state": rollout.state,
        "pause_reason": rollout.pause_reason,
        "reason": rollout.reason,
        "body": to_json(rollout).decode(),
        "updated_at": now,
    }


def load_rollout(
    connection: Connection, rollout_id: str, *, lock: bool = False
) -> tuple[Rollout, int]:
    """Return a rollout and its revision.

    Raises:
        NotFoundError: there is none of this id.
    """
    query = select(rollouts.c.body, rollouts.c.revision).where(rollouts.c.rollout == rollout_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFoundError(
            f"expected a rollout, found no {rollout_id[:80]}; list them with: skerry rollout list"
        )
    return from_json(row.body.encode(), Rollout), row.revision


def load_assignments(connection: Connection, rollout_id: str) -> dict[str, Assignment]:
    """Return each device's latest assignment in a rollout."""
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
    waited = _waited_until(connection, rollout_id)
    return {
        device: _assignment(
            row,
            back.get(row.assignment),
            holder[device, row.slot] == rollout_id,
            waited.get(row.assignment, 0.0),
        )
        for device, row in forward.items()
    }


def _waited_until(connection: Connection, rollout_id: str) -> dict[str, float]:
    """Return when the assignments under way that had waited for their device's leave went on."""
    table = assignments
    query = (
        select(steps.c.assignment, steps.c.state, steps.c.stored_at)
        .join(table, table.c.assignment == steps.c.assignment)
        .where(
            table.c.rollout == rollout_id,
            table.c.state.in_([AssignmentState.ACTIVATING, AssignmentState.PROBATION]),
            steps.c.state.in_([AssignmentState.ACTIVATING, *sorted(ASSIGNMENT_WAITS)]),
        )
    )
    rows = connection.execute(query).all()
    waited = {row.assignment for row in rows if row.state in ASSIGNMENT_WAITS}
    return {
        row.assignment: row.stored_at
        for row in rows
        if row.assignment in waited and row.state == AssignmentState.ACTIVATING
    }


def _assignment(
    row: Row[Any], back: Row[Any] | None, current: bool, waited_until: float
) -> Assignment:
    return Assignment(
        assignment_id=row.assignment,
        device=row.device,
        state=AssignmentState(row.state),
        attempt=row.attempt,
        notified_at=row.notified_at or 0.0,
        waited_until=waited_until,
        previous=row.previous,
        phase=row.phase or "",
        code=row.code or "",
        effect=row.effect or "",
        message=row.message or "",
        back=None if back is None else AssignmentState(back.state),
        back_at=0.0 if back is None else back.created_at,
        current=current,
    )


def is_accepted(connection: Connection, device: str) -> bool:
    """Tell whether a device is accepted."""
    query = select(devices.c.state).where(devices.c.device == device)
    return connection.scalar(query) == DeviceState.ACCEPTED


def load_desired(connection: Connection, device: str, *, lock: bool = False) -> DesiredRow | None:
    """Return what a device shall run, None for nothing yet."""
    query = select(desired).where(desired.c.device == device)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else desired_row(row)


def desired_row(row: Row[Any]) -> DesiredRow:
    """Return a row of `desired` as a value."""
    return DesiredRow(
        device=row.device,
        version=row.version,
        slots=from_json(row.slots.encode(), dict[str, SlotDesired]),
        director=from_msgpack(bytes(row.director), dict[str, bytes]),
        updated_at=row.updated_at,
    )


def store_desired(connection: Connection, row: DesiredRow) -> None:
    """Store what a device shall run."""
    values: Mapping[str, Any] = {
        "device": row.device,
        "version": row.version,
        "slots": to_json(row.slots).decode(),
        "director": to_msgpack(row.director),
        "updated_at": row.updated_at,
    }
    statements: Sequence[Mapping[str, Any]] = [values]
    connection.execute(upsert(connection, desired, ["device"]), statements)
