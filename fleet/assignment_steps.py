"""Steps that the fleet itself takes on assignments, inside a transaction."""

from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from fleet.schema import assignments, steps
from skerry.states import ASSIGNMENT, ASSIGNMENT_ENDS, AssignmentState, advance

__all__ = ["end_open", "set_state", "take_step"]


def end_open(
    connection: Connection,
    device: str,
    state: AssignmentState,
    why: str,
    now: float,
    *,
    slot: str | None = None,
) -> None:
    """End what a device has under way.

    Args:
        connection: of the transaction.
        device: whose.
        state: the end.
        why: for the record.
        now: Unix seconds.
        slot: only of this slot.
    """
    table = assignments.c
    query = select(table.assignment, table.state).where(
        table.device == device, table.state.not_in(sorted(ASSIGNMENT_ENDS))
    )
    if slot is not None:
        query = query.where(table.slot == slot)
    for row in connection.execute(query).all():
        take_step(connection, row.assignment, AssignmentState(row.state), state, why, now)


def take_step(
    connection: Connection,
    assignment: str,
    old: AssignmentState,
    new: AssignmentState,
    why: str,
    now: float,
) -> None:
    """Take an assignment one step on, and say why.

    Raises:
        InvalidTransition: it cannot go there from where it is.
    """
    advance(ASSIGNMENT, old, new)
    last = connection.scalar(
        select(func.max(steps.c.position)).where(steps.c.assignment == assignment)
    )
    position = 0 if last is None else last + 1
    connection.execute(
        insert(steps).values(
            assignment=assignment, position=position, state=new, at=now, stored_at=now
        )
    )
    set_state(connection, assignment, new, now, why)


def set_state(
    connection: Connection,
    assignment: str,
    state: AssignmentState,
    now: float,
    why: str | None = None,
) -> None:
    """Write the state that an assignment's last step has brought it to."""
    values: dict[str, Any] = {"state": state, "updated_at": now}
    if state in ASSIGNMENT_ENDS:
        values["ended_at"] = now
    if why is not None:
        values["message"] = why
    connection.execute(
        update(assignments).where(assignments.c.assignment == assignment).values(values)
    )
