"""Alerts, the audit trail, and the policy of the fleet, in the database."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Row, func, insert, select, update

from fleet.database import Database
from fleet.schema import alerts, audit, commands, policies
from skerry.canonical import from_json, to_json
from skerry.errors import ConflictError, NotFoundError
from skerry.wire import Policy

__all__ = ["Alert", "AlertStore", "AuditEntry", "CommandRow", "NewAlert"]

FIRST_POLICY: Final = Policy(version=1)
LIVE: Final = ("open", "acknowledged")


class NewAlert(msgspec.Struct, frozen=True):
    """What an alert says; of one kind and subject at most one is open."""

    kind: str
    subject: str
    severity: str
    message: str
    body: dict[str, Any]


class Alert(msgspec.Struct, frozen=True):
    """An alert as stored."""

    alert_id: str
    kind: str
    subject: str
    state: str
    severity: str
    message: str
    body: dict[str, Any]
    raised_at: float
    updated_at: float
    acknowledged_at: float | None
    acknowledged_by: str | None
    closed_at: float | None


class AuditEntry(msgspec.Struct, frozen=True):
    """Who did what to what, and when."""

    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


class CommandRow(msgspec.Struct, frozen=True):
    """A command to a device; `ok` is None until the device has answered. Times in Unix seconds."""

    command_id: str
    device: str
    verb: str
    args: dict[str, str]
    created_at: float
    expires_at: float
    finished_at: float | None
    ok: bool | None
    output: str


class AlertStore:
    """Reads and writes alerts, audit entries and policies."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def raise_alert(self, new: NewAlert, now: float) -> str:
        """Raise an alert, or bring the open one of its subject up to date; return its id."""
        values = {
            "severity": new.severity,
            "message": new.message,
            "body": to_json(new.body).decode(),
            "updated_at": now,
        }
        same = (alerts.c.kind == new.kind, alerts.c.subject == new.subject)
        with self._db.write() as connection:
            found = connection.scalar(select(alerts.c.alert).where(*same, alerts.c.state.in_(LIVE)))
            if found is not None:
                connection.execute(update(alerts).where(alerts.c.alert == found).values(values))
                return str(found)
            made = f"alert-{secrets.token_hex(6)}"
            connection.execute(
                insert(alerts).values(
                    alert=made, kind=new.kind, subject=new.subject, state="open",
                    raised_at=now, **values,
                )
            )  # fmt: skip
        return made

    def live_alerts(self, kind: str) -> list[Alert]:
        """Return the alerts of a kind that are not closed."""
        query = select(alerts).where(alerts.c.kind == kind, alerts.c.state.in_(LIVE))
        with self._db.read() as connection:
            return [_alert(row) for row in connection.execute(query)]

    def closed_alerts(self, kind: str, since: float) -> list[Alert]:
        """Return the alerts of a kind that were closed since a time (Unix seconds)."""
        query = select(alerts).where(alerts.c.kind == kind, alerts.c.closed_at >= since)
        with self._db.read() as connection:
            return [_alert(row) for row in connection.execute(query)]

    def get_alert(self, alert_id: str) -> Alert:
        """Return an alert.

        Raises:
            NotFoundError: there is none of this id.
        """
        with self._db.read() as connection:
            row = connection.execute(select(alerts).where(alerts.c.alert == alert_id)).one_or_none()
        if row is None:
            raise NotFoundError(
                f"expected an alert, found no {alert_id[:80]}; list them with: skerry alerts list"
            )
        return _alert(row)

    def acknowledge(self, alert_id: str, actor: str, now: float) -> bool:
        """Note who has seen an open alert; tell whether it was open."""
        with self._db.write() as connection:
            changed = connection.execute(
                update(alerts)
                .where(alerts.c.alert == alert_id, alerts.c.state == "open")
                .values(
                    state="acknowledged",
                    acknowledged_at=now,
                    acknowledged_by=actor,
                    updated_at=now,
                )
            )
        return changed.rowcount == 1

    def close_alert(self, alert_id: str, now: float) -> None:
        """Close an alert whose cause is gone."""
        with self._db.write() as connection:
            connection.execute(
                update(alerts)
                .where(alerts.c.alert == alert_id, alerts.c.state.in_(LIVE))
                .values(state="closed", closed_at=now, updated_at=now)
            )

    def note(
        self, actor: str, action: str, subject: str, detail: Mapping[str, Any], now: float
    ) -> None:
        """Append to the audit trail."""
        with self._db.write() as connection:
            connection.execute(
                insert(audit).values(
                    at=now, actor=actor, action=action, subject=subject[:128],
                    detail=to_json(dict(detail)).decode(),
                )
            )  # fmt: skip

    def audit_trail(self, limit: int) -> Sequence[AuditEntry]:
        """Return the latest entries, the newest first."""
        query = select(audit).order_by(audit.c.n.desc()).limit(limit)
        with self._db.read() as connection:
            return [
                AuditEntry(
                    row.at, row.actor, row.action, row.subject,
                    from_json(row.detail.encode(), dict[str, Any]),
                )
                for row in connection.execute(query)
            ]  # fmt: skip

    def policy(self) -> Policy:
        """Return the policy that holds."""
        query = select(policies.c.body).order_by(policies.c.version.desc()).limit(1)
        with self._db.read() as connection:
            body = connection.scalar(query)
        return FIRST_POLICY if body is None else from_json(body.encode(), Policy)

    def put_policy(self, policy: Policy, now: float) -> None:
        """Store a policy whose version is one above the last one's.

        Raises:
            ConflictError: it is not.
        """
        with self._db.write() as connection:
            last = connection.scalar(select(func.max(policies.c.version))) or FIRST_POLICY.version
            if policy.version != last + 1:
                raise ConflictError(
                    f"expected policy version {last + 1}, got {policy.version}: "
                    "somebody else changed it; read it again"
                )
            connection.execute(
                insert(policies).values(
                    version=policy.version, body=to_json(policy).decode(), created_at=now
                )
            )

    def add_command(
        self,
        command_id: str,
        device: str,
        verb: str,
        args: Mapping[str, str],
        *,
        now: float,
        expires_at: float,
    ) -> None:
        """Store a command before it is sent."""
        with self._db.write() as connection:
            connection.execute(
                insert(commands).values(
                    command=command_id, device=device, verb=verb,
                    args=to_json(dict(args)).decode(), created_at=now, expires_at=expires_at,
                )
            )  # fmt: skip

    def command(self, device: str, command_id: str) -> CommandRow:
        """Return a command that was sent, and what came of it.

        Raises:
            NotFoundError: no such command to this device.
        """
        query = select(commands).where(
            commands.c.command == command_id, commands.c.device == device
        )
        with self._db.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise NotFoundError(f"expected a command to {device}, got {command_id[:64]!r}")
        return CommandRow(
            row.command, row.device, row.verb, from_json(row.args.encode(), dict[str, str]),
            row.created_at, row.expires_at, row.finished_at,
            None if row.ok is None else bool(row.ok), row.output or "",
        )  # fmt: skip


def _alert(row: Row[Any]) -> Alert:
    return Alert(
        alert_id=row.alert,
        kind=row.kind,
        subject=row.subject,
        state=row.state,
        severity=row.severity,
        message=row.message,
        body=from_json(row.body.encode(), dict[str, Any]),
        raised_at=row.raised_at,
        updated_at=row.updated_at,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
        closed_at=row.closed_at,
    )
