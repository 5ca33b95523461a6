"""The fleet's database in memory: transactions that commit as a whole or not at all."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from fleet.ingest import AssignmentRecord, Run
from fleet.plan import Rollout
from fleet.rollout import Opinion
from fleet.voices import Voice
from skerry.records import Prediction
from skerry.sketch import ColumnSpec
from skerry.states import AssignmentState
from skerry.wire import (
    AssignmentReport,
    Health,
    Hello,
    Probation,
    Reported,
    Result,
    SlotDesired,
    Step,
    Up,
)
from tests.fakes.signing import FakeKey

_NONE: Final = object()


class Task(msgspec.Struct, frozen=True):
    """One row of the assignments table."""

    assignment_id: str
    device: str
    slot: str
    rollout: str
    target: str
    bundle: str
    previous: str  # target before it
    probation: Probation
    path: tuple[str, ...]
    attempt: int
    notified_at: float
    returns: bool = False  # it undoes the rollout on this device
    code: str = ""

    @property
    def state(self) -> AssignmentState:
        return AssignmentState(self.path[-1])


class DesiredRow(msgspec.Struct, frozen=True):
    """What a device shall run, as the fleet's database has it."""

    version: int
    slots: dict[str, SlotDesired]


class Ledger:
    """All tables; also the store that the real `fleet.ingest.Ingest` writes to."""

    def __init__(self, keys: Mapping[str, FakeKey]) -> None:
        self.keys = keys
        self.cursor_of: dict[tuple[str, str], int] = {}
        self.rows: list[tuple[str, str, int, str]] = []  # device, boot, seq, request id
        self.reported: dict[str, Reported] = {}
        self.tasks: dict[str, Task] = {}
        self.latest: dict[tuple[str, str], str] = {}  # device, slot -> assignment in force
        self.in_rollout: dict[tuple[str, str], str] = {}  # rollout, device -> assignment
        self.return_of: dict[tuple[str, str], str] = {}  # rollout, device -> way back
        self.desired: dict[str, DesiredRow] = {}
        self.rollouts: dict[str, Rollout] = {}
        self.verdicts: dict[tuple[str, str], Opinion] = {}
        self.refused: dict[tuple[str, str], int] = {}
        self.voices: dict[str, Voice] = {}
        self.before_commit: Callable[[], None] = lambda: None  # may raise Crash
        self.after_commit: Callable[[], None] = lambda: None  # may raise Crash
        self._undo: list[tuple[dict[Any, Any], Any, Any]] = []
        self._rows_before = 0

    @contextmanager
    def transaction(self) -> Iterator["Ledger"]:
        self._undo.clear()
        self._rows_before = len(self.rows)
        try:
            yield self
            self.before_commit()
        except BaseException:
            for table, key, old in reversed(self._undo):
                if old is _NONE:
                    del table[key]
                else:
                    table[key] = old
            del self.rows[self._rows_before :]
            raise
        self.after_commit()

    def put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Set one value of one table, within a transaction."""
        self._undo.append((table, key, table.get(key, _NONE)))
        table[key] = value

    # --- what ingest asks of its store --------------------------------------------

    def report_key(self, device: str) -> Any:
        return self.keys.get(device)

    def is_known(self, device: str) -> bool:
        return device in self.keys

    def column_specs(self, bundle: str) -> Mapping[str, ColumnSpec] | None:
        return None

    def cursor(self, device: str, boot: str) -> int:
        return self.cursor_of.get((device, boot), 0)

    def cursors(self, device: str, limit: int) -> dict[str, int]:
        mine = {boot: seq for (owner, boot), seq in self.cursor_of.items() if owner == device}
        return dict(list(mine.items())[-limit:])

    def append(self, run: Run, now: float) -> None:
        for seq, item in run.items:
            name = item.id if isinstance(item, Prediction) else ""
            self.rows.append((run.device, run.boot, seq, name))
        self.put(self.cursor_of, (run.device, run.boot), run.upto)

    def reported_version(self, device: str) -> int:
        known = self.reported.get(device)
        return known.version if known else 0

    def put_reported(self, device: str, reported: Reported, now: float) -> None:
        self.put(self.reported, device, reported)

    def assignment(self, assignment_id: str) -> AssignmentRecord | None:
        task = self.tasks.get(assignment_id)
        return None if task is None else AssignmentRecord(assignment_id, task.device, task.path)

    def put_steps(self, report: AssignmentReport, steps: Sequence[Step], now: float) -> None:
        task = self.tasks[report.assignment_id]
        if steps or report.code:
            path = task.path + tuple(step.state for step in steps)
            code = report.code or task.code
            self.put(
                self.tasks, task.assignment_id, msgspec.structs.replace(task, path=path, code=code)
            )

    def put_sign_of_life(self, up: Up, body: Hello | Health | None, now: float) -> None:
        pass

    def voice(self, device: str) -> Voice:
        return self.voices.get(device, Voice())

    def put_voice(self, device: str, voice: Voice) -> None:
        self.put(self.voices, device, voice)

    def put_result(self, device: str, result: Result, now: float) -> None:
        pass

    def count_refused(self, device: str, reason: str, count: int, now: float) -> None:
        self.put(self.refused, (device, reason), self.refused.get((device, reason), 0) + count)
