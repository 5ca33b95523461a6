"""What ingest asks of its surroundings: a store, a way to answer, and their values.

`Store` is small enough that a simulation can be one; `fleet.store_telemetry` is the real
one, on the database.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fleet.voices import Voice
from skerry.keys import PublicKey
from skerry.records import Context, Item
from skerry.sketch import ColumnSpec
from skerry.wire import Ack, AssignmentReport, Health, Hello, Reported, Result, Step, Up

__all__ = ["AssignmentRecord", "Message", "Replies", "Run", "Store", "Transaction"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the broker delivered it."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one boot that are new: ``(seq, item)`` ascending, up to `upto`.

    `skipped` counts the seqs that the device dropped before they were ever stored.
    """

    device: str
    boot: str
    upto: int
    contexts: list[Context]
    items: list[tuple[int, Item]]
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class AssignmentRecord:
    """The fleet's own record of one assignment: whose it is, and its steps so far."""

    assignment_id: str
    device: str
    path: tuple[str, ...]  # states since it was queued, the last one is the present


class Transaction(Protocol):
    """What one transaction of the store offers to ingest."""

    def cursor(self, device: str, boot: str) -> int:
        """Return the highest seq stored of a boot without a gap, 0 for none."""
        ...

    def cursors(self, device: str, limit: int) -> dict[str, int]:
        """Return the cursors of the device's `limit` latest boots."""
        ...

    def append(self, run: Run, now: float) -> None:
        """Store the records of a run and move its cursor to ``run.upto``."""
        ...

    def reported_version(self, device: str) -> int:
        """Return the version of the stored `reported`, 0 for none."""
        ...

    def put_reported(self, device: str, reported: Reported, now: float) -> None:
        """Replace the device's reported state."""
        ...

    def assignment(self, assignment_id: str) -> AssignmentRecord | None:
        """Return the fleet's record of an assignment."""
        ...

    def put_steps(self, report: AssignmentReport, steps: Sequence[Step], now: float) -> None:
        """Append steps to an assignment and take over the report's other fields."""
        ...

    def put_sign_of_life(self, up: Up, body: Hello | Health | None, now: float) -> None:
        """Note that the device was heard, and what a hello or health said."""
        ...

    def voice(self, device: str) -> Voice:
        """Return what was heard of a device."""
        ...

    def put_voice(self, device: str, voice: Voice) -> None:
        """Note what was heard of a device."""
        ...

    def put_result(self, device: str, result: Result, now: float) -> None:
        """Store what came of a command; a second result of the same id changes nothing."""
        ...

    def count_refused(self, device: str, reason: str, count: int, now: float) -> None:
        """Count messages or records that were refused; `device` is empty if unknown."""
        ...


class Store(Protocol):
    """Where ingest stores; the transaction commits when its block ends without an error."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Begin a transaction."""
        ...

    def report_key(self, device: str) -> PublicKey | None:
        """Return the report key of an accepted device."""
        ...

    def is_known(self, device: str) -> bool:
        """Tell whether there is such a device, in whatever state."""
        ...

    def column_specs(self, bundle: str) -> Mapping[str, ColumnSpec] | None:
        """Return how the columns of a known bundle are counted."""
        ...


class Replies(Protocol):
    """How ingest answers, after the commit."""

    def ack(self, device: str, ack: Ack) -> None:
        """Send an application ack."""
        ...

    def hello(self, device: str, hello: Hello) -> None:
        """A device said hello: it gets `desired` if it does not hold the present one."""
        ...
