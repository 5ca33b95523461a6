"""What operators look at every few seconds never reads through every row there is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from fleet.queries import Queries
from fleet.store import Store
from tests.fakes.backend import new_store

LOOKS: dict[str, Callable[[Store], object]] = {
    "totals": lambda store: Queries(store.database).totals(),
    "accounting": lambda store: Queries(store.database).accounting(),
    "window counts": lambda store: Queries(store.database).window_counts("reader", "1.0.0", 30),
    "latest windows": lambda store: Queries(store.database).latest_windows("dev-01", "reader", 5),
    "ids": lambda store: Queries(store.database).prediction_ids("17", 10),
    "labels": lambda store: Queries(store.database).labels("reader", 1000.0),
    "change mark": lambda store: Queries(store.database).change_mark(),
    "models": lambda store: store.windows.models_since(1000.0),
    "window length": lambda store: store.windows.longest_window_s("reader", 1000.0),
    "windows": lambda store: store.windows.windows("reader", 1000.0),
    "old": lambda store: store.windows.prune(predictions_before=1.0, windows_before=1.0, limit=10),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_reads_no_whole_table_of_telemetry(tmp_path: Path, look: str) -> None:
    store = new_store(tmp_path)
    with store.database.write() as connection:  # one context, so that every look goes on
        connection.execute(
            text("INSERT INTO contexts VALUES (1, 'reader', 'reader', '1.0.0', 'sha256:a', 'int8')")
        )
    plans: list[str] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "DELETE")):
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in cursor.fetchall())

    event.listen(store.database.engine, "before_cursor_execute", explain)
    LOOKS[look](store)
    store.close()
    assert plans
    whole = [
        plan
        for plan in plans
        if plan.startswith(("SCAN predictions", "SCAN windows", "SCAN error_windows"))
        and "COVERING INDEX" not in plan
    ]
    assert whole == []
