"""What operators ask of the fleet's database, read in one snapshot each."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, func, select

from fleet import schema
from fleet.api.views import (
    Accounting,
    AlertView,
    AssignmentView,
    DeviceView,
    IdPage,
    ReleaseView,
    RolloutSummary,
    RolloutView,
    SlotView,
    StageView,
    StepView,
    Totals,
    VerdictView,
)
from fleet.database import Database
from fleet.dispatch import RETURN_STAGE
from fleet.hardware import Seen, hardware, known_of
from fleet.labels import LabelReport, label_report
from fleet.plan import Rollout
from fleet.rollout_rows import StoredVerdict
from skerry.canonical import from_json
from skerry.errors import NotFoundError, UsageError

__all__ = ["SEEN_LATELY_S", "Queries"]

SEEN_LATELY_S: Final = 90.0  # a device heard of within this time counts as connected
SERVED: Final = frozenset({"probation", "committed"})
MAX_PAGE: Final = 50_000
AnyRow = Any  # a row of any query; its columns become typed views here


class Queries:
    """Reads for the API and the console; nothing here writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- devices ------------------------------------------------------------------

    def devices(self, now: float, device: str | None = None) -> list[DeviceView]:
        """Return every device, or the one named, in order of id.

        Raises:
            NotFoundError: there is no device of that name.
        """
        t, live, told, want = schema.devices, schema.liveness, schema.reported, schema.desired
        query = (
            select(
                t, live.c.last_seen, live.c.agent, live.c.outbox_records, live.c.dropped_records,
                live.c.trust,
                told.c.version.label("reported_version"), told.c.slots,
                told.c.desired_version.label("applied"), want.c.version.label("desired_version"),
            )
            .select_from(
                t.outerjoin(live, live.c.device == t.c.device)
                .outerjoin(told, told.c.device == t.c.device)
                .outerjoin(want, want.c.device == t.c.device)
            )
            .order_by(t.c.device)
        )  # fmt: skip
        if device is not None:
            query = query.where(t.c.device == device)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        if device is not None and not rows:
            raise NotFoundError(f"there is no device {device}; list them with: skerry devices list")
        return [_device(row, now) for row in rows]

    def tags(self, device: str) -> dict[str, str]:
        """Return a device's tags; none where there is no such device."""
        query = select(schema.devices.c.tags).where(schema.devices.c.device == device)
        with self._database.read() as connection:
            found = connection.execute(query).scalar()
        return from_json((found or "{}").encode(), dict[str, str])

    # --- models ---------------------------------------------------------------------

    def releases(self, model: str | None = None) -> list[ReleaseView]:
        """Return published versions, newest first."""
        query = select(schema.releases).order_by(schema.releases.c.published_at.desc())
        if model is not None:
            query = query.where(schema.releases.c.model == model)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            known = hardware(connection, [row.bundle for row in rows])
        return [_release(row, known) for row in rows]

    def baseline(self, bundle: str) -> bytes:
        """Return the baseline of a bundle, as `manifest.Baseline` in MessagePack.

        Raises:
            NotFoundError: no such release.
        """
        query = select(schema.releases.c.baseline).where(schema.releases.c.bundle == bundle)
        with self._database.read() as connection:
            found = connection.execute(query).scalar()
        if found is None:
            raise NotFoundError(f"there is no release with bundle {bundle}")
        return bytes(found)

    # --- rollouts -------------------------------------------------------------------

    def rollouts(self) -> list[RolloutSummary]:
        """Return every rollout, newest first."""
        t = schema.rollouts
        query = select(
            t.c.rollout, t.c.model, t.c.model_version, t.c.state, t.c.pause_reason, t.c.reason,
            t.c.created_at, t.c.updated_at,
        ).order_by(t.c.created_at.desc())  # fmt: skip
        with self._database.read() as connection:
            return [RolloutSummary(*row) for row in connection.execute(query)]

    def rollout(self, rollout_id: str) -> RolloutView:
        """Return one rollout with its stages and assignments.

        Raises:
            NotFoundError: there is none of that id.
        """
        t = schema.rollouts
        with self._database.read() as connection:
            row = connection.execute(select(t).where(t.c.rollout == rollout_id)).one_or_none()
            if row is None:
                raise NotFoundError(
                    f"there is no rollout {rollout_id}; list them with: skerry rollout list"
                )
            body = from_json(row.body.encode(), Rollout)
            assignments = _assignments(connection, rollout_id)
            verdicts = _verdicts(connection, rollout_id)
        return RolloutView(
            rollout_id=row.rollout,
            model=row.model,
            model_version=row.model_version,
            bundle=row.bundle,
            state=row.state,
            pause_reason=row.pause_reason,
            reason=row.reason,
            created_at=row.created_at,
            updated_at=row.updated_at,
            revision=row.revision,
            plan=_whole(body.plan),
            stages=[
                StageView(
                    name=stage.name,
                    state=stage.state,
                    reason=stage.reason,
                    devices=list(stage.devices),
                    counts=_counts(stage.name, assignments),
                    verdict=verdicts.get(stage.name),
                )
                for stage in body.stages
            ],
            assignments=assignments,
            devices_served=sorted(
                {
                    a.device
                    for a in assignments
                    if a.stage != RETURN_STAGE and SERVED & {step.state for step in a.steps}
                }
            ),
        )

    # --- drift and alerts ---------------------------------------------------------------

    def drift(self, model: str) -> dict[str, Any]:
        """Return the latest drift report of a model, empty before the first one."""
        t = schema.drift_reports
        with self._database.read() as connection:
            found = connection.execute(select(t.c.body).where(t.c.model == model)).scalar()
        empty: dict[str, Any] = {"at": None, "devices": [], "groups": []}
        return json.loads(found) if found else empty

    def labels(self, model: str, since: float) -> LabelReport:
        """Return how right a model's releases were in windows since a time (Unix seconds)."""
        with self._database.read() as connection:
            return label_report(connection, model, since)

    def alerts(self) -> list[AlertView]:
        """Return every alert, newest first."""
        query = select(schema.alerts).order_by(schema.alerts.c.raised_at.desc())
        with self._database.read() as connection:
            return [_alert(row) for row in connection.execute(query)]

    def change_mark(self) -> str:
        """Return a text that differs whenever something that operators watch has changed."""
        columns = (
            func.max(schema.rollouts.c.updated_at),
            func.max(schema.assignments.c.updated_at),
            func.max(schema.reported.c.stored_at),
            func.max(schema.alerts.c.updated_at),
            func.max(schema.drift_reports.c.at),
        )
        with self._database.read() as connection:
            marks = [connection.execute(select(column)).scalar() for column in columns]
        return "-".join(f"{mark or 0:.3f}" for mark in marks)

    # --- what was stored --------------------------------------------------------------

    def window_counts(self, model: str, model_version: str, min_n: int) -> dict[str, int]:
        """Return how many full windows of a version each device has sent."""
        w, c = schema.windows, schema.contexts
        of_version = select(c.c.context).where(
            c.c.model == model, c.c.model_version == model_version
        )
        query = (
            select(w.c.device, func.count())
            .where(w.c.context.in_(of_version), w.c.n >= min_n)
            .group_by(w.c.device)
        )
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def latest_windows(self, device: str, model: str, limit: int) -> list[AnyRow]:
        """Return a device's latest windows of a model: bundle, start, n and columns."""
        w, c = schema.windows, schema.contexts
        query = (
            select(c.c.bundle, c.c.model_version, w.c.start, w.c.n, w.c.columns)
            .join(c, c.c.context == w.c.context)
            .where(w.c.device == device, c.c.model == model)
            .order_by(w.c.start.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return list(connection.execute(query).all())

    def prediction_ids(self, cursor: str, limit: int) -> IdPage:
        """Return a page of request ids; `cursor` is empty for the first.

        Raises:
            UsageError: a cursor that no page gave.
        """
        if cursor and not cursor.isdigit():
            raise UsageError(f"expected a cursor of an earlier page, got {cursor[:40]!r}")
        limit = max(1, min(limit, MAX_PAGE))
        t = schema.predictions
        query = select(t.c.n, t.c.request).where(t.c.n > int(cursor or 0)).order_by(t.c.n)
        with self._database.read() as connection:
            rows = connection.execute(query.limit(limit)).all()
        last = str(rows[-1].n) if len(rows) == limit else None
        return IdPage([row.request for row in rows], last)

    def totals(self) -> Totals:
        """Return what was ever stored, lost and refused; quick, however much it is."""
        r = schema.refused
        with self._database.read() as connection:
            # numbered in the order of storing, so that what is pruned still counts
            stored = connection.execute(select(func.max(schema.predictions.c.n))).scalar() or 0
            lost = connection.execute(select(func.sum(schema.losses.c.at_most))).scalar() or 0
            refused = connection.execute(
                select(r.c.reason, func.sum(r.c.count)).group_by(r.c.reason)
            )
            return Totals(stored, int(lost), {reason: int(count) for reason, count in refused})

    def accounting(self) -> Accounting:
        """Return an exact account of what is stored; it reads an index of every prediction."""
        p, w = schema.predictions, schema.windows
        totals = self.totals()
        with self._database.read() as connection:
            per_device: dict[str, int] = {
                row[0]: row[1]
                for row in connection.execute(select(p.c.device, func.count()).group_by(p.c.device))
            }
            distinct = select(p.c.device, p.c.request).distinct().subquery()
            ids = connection.execute(select(func.count()).select_from(distinct)).scalar_one()
            sketched = connection.execute(select(func.sum(w.c.n))).scalar() or 0
        return Accounting(
            rows=sum(per_device.values()),
            distinct_ids=ids,
            sketch_rows=int(sketched),
            per_device=per_device,
            lost_at_most=totals.lost_at_most,
            refused=totals.refused,
        )


def _whole(value: Any) -> Any:
    """Return a struct as JSON would have it, with the fields that storing leaves out."""
    if isinstance(value, msgspec.Struct):
        return {name: _whole(getattr(value, name)) for name in value.__struct_fields__}
    return [_whole(item) for item in value] if isinstance(value, tuple) else value


def _device(row: AnyRow, now: float) -> DeviceView:
    applied, desired = row.applied or 0, row.desired_version or 0
    return DeviceView(
        device_id=row.device,
        state=row.state,
        state_reason=row.state_reason,
        tags=json.loads(row.tags),
        hw_class=row.hw_class,
        inventory=json.loads(row.inventory),
        connected=row.last_seen is not None and now - row.last_seen < SEEN_LATELY_S,
        last_seen=row.last_seen,
        agent=row.agent or "",
        slots=from_json((row.slots or "{}").encode(), dict[str, SlotView]),
        desired_version=desired,
        reported_version=row.reported_version or 0,
        in_sync=applied == desired,
        outbox_records=row.outbox_records or 0,
        dropped_records=row.dropped_records or 0,
        trust=row.trust or "",
    )


def _release(row: AnyRow, known: Seen) -> ReleaseView:
    variants = json.loads(row.manifest)["variants"]
    return ReleaseView(
        model=row.model,
        model_version=row.model_version,
        publisher=row.publisher,
        target=row.target,
        bundle=row.bundle,
        release_counter=row.release_counter,
        published_at=row.published_at,
        may_fall_back_to=json.loads(row.may_fall_back_to),
        variants=variants,
        evaluation=json.loads(row.evaluation),
        hardware=known_of(row.bundle, variants, known),
    )


def _assignments(connection: Connection, rollout_id: str) -> list[AssignmentView]:
    t, s = schema.assignments, schema.steps
    steps: dict[str, list[StepView]] = defaultdict(list)
    query = (
        select(s.c.assignment, s.c.state, s.c.at)
        .join(t, t.c.assignment == s.c.assignment)
        .where(t.c.rollout == rollout_id)
        .order_by(s.c.assignment, s.c.position)
    )
    for assignment, state, at in connection.execute(query):
        steps[assignment].append(StepView(state, at))
    query = select(t).where(t.c.rollout == rollout_id).order_by(t.c.created_at, t.c.device)
    return [
        AssignmentView(
            assignment_id=row.assignment,
            device=row.device,
            stage=row.stage,
            attempt=row.attempt,
            state=row.state,
            target=row.target,
            variant=row.variant,
            phase=row.phase,
            code=row.code,
            message=row.message,
            effect=row.effect,
            live=json.loads(row.live) if row.live else None,
            trials=json.loads(row.trials) if row.trials else [],
            shadow=json.loads(row.shadow) if row.shadow else None,
            steps=steps[row.assignment],
        )
        for row in connection.execute(query)
    ]


def _verdicts(connection: Connection, rollout_id: str) -> dict[str, VerdictView]:
    t = schema.verdicts
    query = select(t).where(t.c.rollout == rollout_id).order_by(t.c.n)
    found = {}
    for row in connection.execute(query):  # the latest of each stage comes last
        stored = from_json(row.body.encode(), StoredVerdict)
        found[row.stage] = VerdictView(stored.at, stored.state, stored.reason, stored.body)
    return found


def _counts(stage: str, assignments: Sequence[AssignmentView]) -> dict[str, int]:
    latest = {a.device: a.state for a in assignments if a.stage == stage}
    return dict(sorted(Counter(latest.values()).items()))


def _alert(row: AnyRow) -> AlertView:
    body: dict[str, Any] = json.loads(row.body)
    return AlertView(
        alert_id=row.alert,
        kind=row.kind,
        subject=row.subject,
        state=row.state,
        severity=row.severity,
        message=row.message,
        devices=list(body.get("devices", [])),
        body=body,
        raised_at=row.raised_at,
        updated_at=row.updated_at,
        acknowledged_by=row.acknowledged_by,
        closed_at=row.closed_at,
    )
