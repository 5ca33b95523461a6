"""Sketch windows in the database, as the analyses read them, and what they concluded."""

from typing import Any, Final

from sqlalchemy import delete, exists, func, select

from fleet.database import Database, upsert
from fleet.drift import DriftReport
from fleet.schema import contexts, drift_reports, error_windows, predictions, windows
from fleet.windows import DeviceWindow
from skerry.canonical import from_json, from_msgpack, to_json
from skerry.sketch import Column, merge_columns

__all__ = ["WindowStore"]

Columns = dict[str, Column]
LATEST: Final = 1000  # windows: enough to know how long they are


class WindowStore:
    """Reads windows; forgets old ones; keeps the latest drift report of each model."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def windows(
        self,
        model: str,
        since: float,
        *,
        until: float | None = None,
        device: str | None = None,
    ) -> list[DeviceWindow]:
        """Return the windows of a model that began at `since` or later, before `until`.

        A process that was killed leaves the rest of its window to its successor: parts
        of one window are merged.

        Args:
            model: of any version.
            since: Unix seconds.
            until: Unix seconds.
            device: only of this one.
        """
        w, c = windows.c, contexts.c
        query = (
            select(w.device, c.bundle, w.start, w.length_s, w.n, w.errors, w.columns)
            .join(contexts, c.context == w.context)
            .where(c.model == model, w.start >= since)
            .order_by(w.start)
        )
        if until is not None:
            query = query.where(w.start < until)
        if device is not None:
            query = query.where(w.device == device)
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        found: dict[tuple[Any, ...], DeviceWindow] = {}
        for device, bundle, start, length_s, n, errors, packed in rows:
            columns = from_msgpack(bytes(packed), Columns)
            key = (device, bundle, start, length_s)
            part = found.get(key)
            if part is not None:
                n, errors = n + part.n, errors + part.errors
                columns = merge_columns(dict(part.columns), columns)
            found[key] = DeviceWindow(device, bundle, start, length_s, n, errors, columns)
        return list(found.values())

    def models_since(self, since: float) -> list[str]:
        """Return the models that had windows since a time (Unix seconds)."""
        # of each context one window is enough, and the index has it
        recent = exists().where(windows.c.context == contexts.c.context, windows.c.start >= since)
        query = select(contexts.c.model).where(recent).distinct()
        with self._db.read() as connection:
            return sorted(connection.scalars(query))

    def longest_window_s(self, model: str, since: float) -> float:
        """Return the length of the longest of a model's latest windows, 0 for none.

        Of each bundle and variant the latest thousand are looked at, none before `since`.
        """
        longest = 0.0
        with self._db.read() as connection:
            of_model = select(contexts.c.context).where(contexts.c.model == model)
            for context in connection.scalars(of_model).all():
                latest = (
                    select(windows.c.length_s)
                    .where(windows.c.context == context, windows.c.start >= since)
                    .order_by(windows.c.start.desc())
                    .limit(LATEST)
                    .subquery()
                )
                length_s = connection.scalar(select(func.max(latest.c.length_s)))
                longest = max(longest, length_s or 0.0)
        return longest

    def put_drift_report(self, model: str, report: DriftReport) -> None:
        """Keep the latest report of a model."""
        row = {"model": model, "body": to_json(report).decode(), "at": report.at}
        with self._db.write() as connection:
            connection.execute(upsert(connection, drift_reports, ["model"]), [row])

    def drift_report(self, model: str) -> DriftReport | None:
        """Return the latest report of a model."""
        with self._db.read() as connection:
            body = connection.scalar(
                select(drift_reports.c.body).where(drift_reports.c.model == model)
            )
        return None if body is None else from_json(body.encode(), DriftReport)

    def prune(self, *, predictions_before: float, windows_before: float, limit: int) -> int:
        """Forget old predictions and windows, at most `limit` rows of each; return how many."""
        p, w, e = predictions.c, windows.c, error_windows.c
        with self._db.write() as connection:
            old = select(p.n).where(p.at < predictions_before).order_by(p.at).limit(limit)
            gone = connection.execute(delete(predictions).where(p.n.in_(old))).rowcount
            for table, start in ((windows, w.start), (error_windows, e.start)):
                starts = list(
                    connection.scalars(
                        select(start).where(start < windows_before).order_by(start).limit(limit)
                    )
                )
                if starts:
                    gone += connection.execute(
                        delete(table).where(start <= starts[-1], start < windows_before)
                    ).rowcount
        return gone
