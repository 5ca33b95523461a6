"""What devices say, in the database: the store that `fleet.ingest` writes through.

One transaction gathers what it is told and writes each table once, at its end: fifty
messages cost about as many statements as one.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, update

from fleet.database import Database, upsert
from fleet.ingest import AssignmentRecord, Run
from fleet.labels import error_row
from fleet.schema import (
    assignments,
    commands,
    contexts,
    devices,
    error_windows,
    ingest_cursors,
    liveness,
    losses,
    predictions,
    refused,
    releases,
    reported,
    steps,
    voices,
    windows,
)
from fleet.store_devices import DeviceStore
from fleet.store_releases import MAX_BASELINE_BYTES
from fleet.voices import Voice
from skerry.canonical import from_msgpack, to_json, to_msgpack
from skerry.keys import PublicKey
from skerry.manifest import Baseline
from skerry.profile import hw_class
from skerry.records import Context, Errors, Loss, Prediction, SketchWindow
from skerry.sketch import ColumnSpec
from skerry.states import ASSIGNMENT_ENDS
from skerry.wire import AssignmentReport, Health, Hello, Reported, Result, Step, Up

__all__ = ["TelemetryStore"]

ContextKey = tuple[str, str, str, str, str]
Rows = dict[str, Any]


class TelemetryStore:
    """`fleet.ingest.Store` on the database."""

    def __init__(self, database: Database, device_store: DeviceStore) -> None:
        self._db = database
        self._devices = device_store
        self._contexts: dict[ContextKey, int] = {}
        self._specs: dict[str, Mapping[str, ColumnSpec]] = {}

    @contextlib.contextmanager
    def transaction(self) -> Iterator["TelemetryTransaction"]:
        """Begin a transaction; it commits when its block ends without an error."""
        with self._db.write() as connection:
            tx = TelemetryTransaction(connection, self._contexts)
            yield tx
            tx.flush()
        # positions given in a transaction that failed must not be remembered
        self._contexts.update(tx.new_contexts)

    def report_key(self, device: str) -> PublicKey | None:
        """Return the report key of an accepted device."""
        return self._devices.report_key(device)

    def is_known(self, device: str) -> bool:
        """Tell whether there is such a device, in whatever state."""
        return self._devices.device_state(device) is not None

    def column_specs(self, bundle: str) -> Mapping[str, ColumnSpec] | None:
        """Return how the columns of a published bundle are counted."""
        specs = self._specs.get(bundle)
        if specs is None:
            with self._db.read() as connection:
                raw = connection.scalar(
                    select(releases.c.baseline).where(releases.c.bundle == bundle)
                )
            if raw is None:
                return None
            baseline = from_msgpack(bytes(raw), Baseline, limit=MAX_BASELINE_BYTES)
            specs = {name: column.spec for name, column in baseline.columns.items()}
            self._specs[bundle] = specs
        return specs


class TelemetryTransaction:
    """`fleet.ingest.Transaction` on one connection."""

    def __init__(self, connection: Connection, known: Mapping[ContextKey, int]) -> None:
        self._connection = connection
        self._known = known
        self.new_contexts: dict[ContextKey, int] = {}
        self._cursors: dict[tuple[str, str], Rows] = {}
        self._gathered: dict[str, list[Rows]] = {
            "predictions": [], "windows": [], "errors": [], "losses": []
        }  # fmt: skip
        self._life: dict[str, Rows] = {}
        self._voices: dict[str, Voice] = {}
        self._spoke: set[str] = set()  # devices of which something new was heard
        self._refused: dict[tuple[str, str], Rows] = {}

    def cursor(self, device: str, boot: str) -> int:
        """Return the highest seq stored of a boot without a gap, 0 for none."""
        return int(self._cursor(device, boot)["upto"])

    def cursors(self, device: str, limit: int) -> dict[str, int]:
        """Return the cursors of the device's `limit` latest boots."""
        table = ingest_cursors.c
        rows = self._connection.execute(
            select(table.boot, table.upto)
            .where(table.device == device)
            .order_by(table.updated_at.desc())
            .limit(limit)
        )
        stored = {row.boot: row.upto for row in rows}
        moved = {boot: row["upto"] for (d, boot), row in self._cursors.items() if d == device}
        return stored | {boot: upto for boot, upto in moved.items() if upto}

    def append(self, run: Run, now: float) -> None:
        """Store the records of a run and move its cursor to ``run.upto``."""
        row = self._cursor(run.device, run.boot)
        row.update(upto=run.upto, skipped=row["skipped"] + run.skipped, updated_at=now)
        row["moved"] = True
        for seq, item in run.items:
            where: Rows = {"device": run.device, "boot": run.boot, "seq": seq}
            match item:
                case Prediction():
                    context = self._context(run.contexts[item.ctx])
                    self._gathered["predictions"].append(where | _prediction(item, context))
                case SketchWindow():
                    context = self._context(run.contexts[item.ctx])
                    self._gathered["windows"].append(where | _window(item, context, now))
                case Errors():
                    for place, sketch in enumerate(item.sketches):
                        context = self._context(item.contexts[sketch.ctx])
                        row = error_row(sketch, context, now)
                        self._gathered["errors"].append(where | {"place": place} | row)
                case Loss():
                    self._gathered["losses"].append(where | _loss(item, now))

    def reported_version(self, device: str) -> int:
        """Return the version of the stored `reported`, 0 for none."""
        query = select(reported.c.version).where(reported.c.device == device)
        return self._connection.scalar(query) or 0

    def put_reported(self, device: str, value: Reported, now: float) -> None:
        """Replace the device's reported state."""
        row = {
            "device": device,
            "version": value.version,
            "slots": to_json(value.slots).decode(),
            "desired_version": value.desired_version,
            "stored_at": now,
        }
        self._connection.execute(upsert(self._connection, reported, ["device"]), [row])
        self._connection.execute(
            update(devices)
            .where(devices.c.device == device)
            .values(inventory=to_json(value.inventory).decode(), hw_class=hw_class(value.inventory))
        )

    def assignment(self, assignment_id: str) -> AssignmentRecord | None:
        """Return the fleet's record of an assignment."""
        rows = self._connection.execute(
            select(assignments.c.device, steps.c.state)
            .join(steps, steps.c.assignment == assignments.c.assignment)
            .where(assignments.c.assignment == assignment_id)
            .order_by(steps.c.position)
        ).all()
        if not rows:
            return None
        return AssignmentRecord(assignment_id, rows[0].device, tuple(row.state for row in rows))

    def put_steps(self, report: AssignmentReport, new: Sequence[Step], now: float) -> None:
        """Append steps to an assignment and take over the report's other fields."""
        position = steps.c.position
        last = self._connection.scalar(
            select(func.max(position)).where(steps.c.assignment == report.assignment_id)
        )
        rows = [
            {"assignment": report.assignment_id, "position": at, "state": step.state,
             "at": step.at, "stored_at": now}
            for at, step in enumerate(new, (-1 if last is None else last) + 1)
        ]  # fmt: skip
        values: Rows = {
            "variant": report.variant,
            "phase": report.phase,
            "code": report.code,
            "message": report.message,
            "effect": report.effect,
            "live": _json(report.live),
            "trials": _json(report.trials or None),
            "shadow": _json(report.shadow),
            "updated_at": now,
        }
        if rows:
            self._connection.execute(insert(steps), rows)
            values["state"] = new[-1].state
            if new[-1].state in ASSIGNMENT_ENDS:
                values["ended_at"] = now
        self._connection.execute(
            update(assignments)
            .where(assignments.c.assignment == report.assignment_id)
            .values(values)
        )

    def put_sign_of_life(self, up: Up, body: Hello | Health | None, now: float) -> None:
        """Note that the device was heard, and what a hello or health said."""
        row = self._life.setdefault(up.dev, {"device": up.dev})
        row.update(last_seen=now, device_ts=up.ts, boot=up.boot)
        match body:
            case Hello():
                row.update(
                    agent="".join(filter(str.isprintable, body.agent[:128])),
                    desired_version=_bounded(body.desired_version),
                    outbox_records=_bounded(body.outbox_records),
                    outbox_bytes=_bounded(body.outbox_bytes),
                )
            case Health():
                row.update(
                    outbox_records=_bounded(body.outbox_records),
                    outbox_bytes=_bounded(body.outbox_bytes),
                    dropped_records=_bounded(body.dropped_records),
                    serve_restarts=_bounded(body.serve_restarts),
                    trust="".join(filter(str.isprintable, body.trust[:128])),
                )

    def voice(self, device: str) -> Voice:
        """Return what was heard of a device."""
        known = self._voices.get(device)
        if known is None:
            query = select(voices.c.body).where(voices.c.device == device)
            body = self._connection.scalar(query.with_for_update())
            known = Voice() if body is None else from_msgpack(bytes(body), Voice)
            self._voices[device] = known
        return known

    def put_voice(self, device: str, voice: Voice) -> None:
        """Note what was heard of a device."""
        self._voices[device] = voice
        self._spoke.add(device)

    def put_result(self, device: str, result: Result, now: float) -> None:
        """Store what came of a command; a second result of the same id changes nothing."""
        self._connection.execute(
            update(commands)
            .where(
                commands.c.command == result.id,
                commands.c.device == device,
                commands.c.finished_at.is_(None),
            )
            .values(finished_at=now, ok=int(result.ok), output=result.output)
        )

    def count_refused(self, device: str, reason: str, count: int, now: float) -> None:
        """Count messages or records that were refused; `device` is empty if unknown."""
        row = self._refused.setdefault(
            (device, reason),
            {"device": device, "reason": reason, "count": 0, "first_at": now, "last_at": now},
        )
        row["count"] += count

    def flush(self) -> None:
        """Write what was gathered."""
        moved = [
            {key: value for key, value in row.items() if key != "moved"}
            for row in self._cursors.values()
            if row.get("moved")
        ]
        self._insert(predictions, self._gathered["predictions"])
        self._insert(windows, self._gathered["windows"])
        self._insert(error_windows, self._gathered["errors"])
        self._insert(losses, self._gathered["losses"])
        if moved:
            statement = upsert(self._connection, ingest_cursors, ["device", "boot"])
            self._connection.execute(statement, moved)
        if self._spoke:
            spoken = [
                {"device": device, "body": to_msgpack(self._voices[device])}
                for device in sorted(self._spoke)
            ]
            self._connection.execute(upsert(self._connection, voices, ["device"]), spoken)
        for row in self._life.values():  # their columns differ
            statement = upsert(self._connection, liveness, ["device"], columns=list(row))
            self._connection.execute(statement, [row])
        if self._refused:
            statement = upsert(
                self._connection,
                refused,
                ["device", "reason"],
                columns=["count", "last_at"],
                add=["count"],
            )
            self._connection.execute(statement, list(self._refused.values()))

    def _insert(self, table: Table, rows: list[Rows]) -> None:
        if rows:
            self._connection.execute(insert(table), rows)

    def _cursor(self, device: str, boot: str) -> Rows:
        row = self._cursors.get((device, boot))
        if row is None:
            table = ingest_cursors.c
            found = self._connection.execute(
                select(table.upto, table.skipped)
                .where(table.device == device, table.boot == boot)
                .with_for_update()  # of two processes with one slot, one waits (PostgreSQL)
            ).one_or_none()
            row = {
                "device": device,
                "boot": boot,
                "upto": 0 if found is None else found.upto,
                "skipped": 0 if found is None else found.skipped,
                "updated_at": 0.0,
            }
            self._cursors[device, boot] = row
        return row

    def _context(self, context: Context) -> int:
        key = (
            context.slot,
            context.model,
            context.model_version,
            context.bundle,
            context.variant,
        )
        position = self._known.get(key) or self.new_contexts.get(key)
        if position is None:
            names = ("slot", "model", "model_version", "bundle", "variant")
            values = dict(zip(names, key, strict=True))
            table = contexts.c
            same = [table[name] == value for name, value in values.items()]
            position = self._connection.scalar(select(table.context).where(*same))
            if position is None:
                made = self._connection.execute(
                    insert(contexts).values(values).returning(table.context)
                )
                position = made.scalar_one()
            self.new_contexts[key] = position
        return position


def _prediction(item: Prediction, context: int) -> Rows:
    return {
        "context": context,
        "request": item.id,
        "at": item.at,
        "prediction": item.prediction,
        # SQLite keeps no NaN
        "confidence": item.confidence if math.isfinite(item.confidence) else None,
        "latency_us": item.latency_us,
        "features": to_msgpack(item.features),
        "aside": None if item.aside is None else to_msgpack(item.aside),
    }


def _window(item: SketchWindow, context: int, now: float) -> Rows:
    return {
        "context": context,
        "start": item.start,
        "length_s": item.length_s,
        "n": item.n,
        "errors": item.errors,
        "columns": to_msgpack(item.columns),
        "covers": to_json(item.covers).decode(),
        "stored_at": now,
    }


def _loss(item: Loss, now: float) -> Rows:
    return {
        "lost_boot": item.boot,
        "at_most": item.at_most,
        "reason": item.reason,
        "stored_at": now,
    }


def _bounded(number: int) -> int:
    return max(0, min(number, (1 << 63) - 1))


def _json(value: object) -> str | None:
    return None if value is None else to_json(value).decode()
