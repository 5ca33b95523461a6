"""Ingest: what devices say becomes stored truth, once, and only then is answered.

The rules, in order, for every message that the broker hands over:

1. It is refused, counted by reason and never stored if its topic is foreign, its device
   unknown or beyond its rate, its signature not that device's, or its form not the promised one.
2. Messages that arrive together are stored in one transaction, with their cursors.
3. Records are stored once: of a batch, only what lies above the cursor of its
   ``(device, boot)``; a batch that would leave a gap is not stored at all.
4. `reported` replaces only an older one; the path of an assignment is replayed step by
   step on the fleet's own record, and an unlisted step is refused.
5. Of what a device says of itself, only what is new is a sign of life; what can come only from
   two machines with one identity is refused, and told (`fleet.voices`).
6. Answers leave after the commit, never before: a device forgets what `ack` names.

A batch that left a gap is answered too, with the cursor where it stands, so that the
device goes back. Pure: no clock, no socket, no database; see `Store` and `Replies`.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fleet.ingest_ports import AssignmentRecord, Message, Replies, Run, Store, Transaction
from fleet.intake import check_envelope, check_reported, check_result, sound_items
from fleet.rate import Rate
from fleet.voices import Said, Verdict, hear
from skerry.canonical import to_msgpack
from skerry.errors import FormatError, InvalidTransition, TrustError
from skerry.records import Item, Skip, width
from skerry.states import ASSIGNMENT, ASSIGNMENT_ENDS, AssignmentState, advance
from skerry.topics import UpTopic, parse_up
from skerry.wire import (
    Ack,
    AssignmentReport,
    Batch,
    Health,
    Hello,
    Reported,
    Result,
    Step,
    Up,
    UpBody,
    open_up,
)

__all__ = [
    "AssignmentRecord",
    "Ingest",
    "Message",
    "Replies",
    "Run",
    "Store",
    "Transaction",
    "above_cursor",
    "replay",
]

MAX_BOOTS_IN_ACK: Final = 32
MAX_SEQ: Final = 1 << 62
MAX_LEAP: Final = 1 << 32  # of versions: a device counts on from what the fleet has
MARK_BYTES: Final = 8
CONTENT_BYTES: Final = 16
MAX_NONCE_BYTES: Final = 32  # of a hello, echoed in its ack


@dataclass(slots=True)
class _Answers:
    """What has to be said once the transaction is committed."""

    upto: dict[str, dict[str, int]] = field(default_factory=dict)
    reported: dict[str, int] = field(default_factory=dict)
    results: dict[str, list[str]] = field(default_factory=dict)
    hellos: dict[str, Hello] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    forks: dict[str, str] = field(default_factory=dict)
    strangers: dict[str, str] = field(default_factory=dict)

    def devices(self) -> list[str]:
        return sorted({*self.upto, *self.reported, *self.results})


class Ingest:
    """Takes messages, stores them once, answers after the commit."""

    def __init__(
        self,
        store: Store,
        replies: Replies,
        *,
        fleet_id: str,
        shards: int,
        credit: int = 8,
        rate: Rate | None = None,
        on_fork: Callable[[str, str], None] = lambda _device, _why: None,
        on_stranger: Callable[[str, str], None] = lambda _device, _why: None,
        mark: Callable[[], str] = lambda: secrets.token_hex(MARK_BYTES),
    ) -> None:
        """Prepare ingest.

        Args:
            store: where to.
            replies: how devices are answered.
            fleet_id: of this fleet.
            shards: of this fleet.
            credit: how many batches a device may have under way.
            rate: how much a device may say.
            on_fork: called, after the commit, with a device of which there are two, and why.
            on_stranger: called in the same way with one of which there may be two.
            mark: makes a new one, see `fleet.voices`.
        """
        self._store = store
        self._replies = replies
        self._fleet_id = fleet_id
        self._shards = shards
        self._credit = credit
        self._rate = rate or Rate()
        self._on_fork, self._on_stranger = on_fork, on_stranger
        self._mark = mark

    def take(self, messages: Sequence[Message], now: float) -> None:
        """Store messages in one transaction, then answer.

        If this raises, nothing was stored and nothing was answered: hand the same
        messages in again. When it returns, all of them are done with, refused ones
        included.

        Args:
            messages: in the order of their arrival.
            now: Unix seconds.
        """
        refused: dict[tuple[str, str], int] = {}
        opened: list[tuple[Up, UpBody]] = []
        for message in messages:
            try:
                opened.append(self._open(message, now))
            except _Refused as refusal:
                _count(refused, refusal.device, refusal.reason)
        answers = _Answers()
        with self._store.transaction() as tx:
            for up, body in opened:
                self._apply(tx, up, body, answers, refused, now)
            for (device, reason), count in sorted(refused.items()):
                tx.count_refused(device, reason, count, now)
        self._answer(answers, now)

    def _open(self, message: Message, now: float) -> tuple[Up, UpBody]:
        topic = self._parse_topic(message.topic)
        key = self._store.report_key(topic.device)
        if key is None:
            if self._store.is_known(topic.device):
                raise _Refused(topic.device, "not_accepted")
            raise _Refused("", "unknown_device")
        if not self._rate.allows(topic.device, len(message.payload), now):
            raise _Refused(topic.device, "too_fast")
        try:
            up, body = open_up(message.payload, key, device=topic.device)
            check_envelope(up, topic.kind)
            return up, body
        except TrustError as error:
            raise _Refused(topic.device, error.code) from None
        except FormatError:
            raise _Refused(topic.device, "malformed") from None

    def _parse_topic(self, topic: str) -> UpTopic:
        try:
            parsed = parse_up(topic, self._shards)
        except FormatError:
            raise _Refused("", "foreign_topic") from None
        if parsed.fleet != self._fleet_id:
            raise _Refused("", "foreign_fleet")
        return parsed

    def _apply(
        self,
        tx: Transaction,
        up: Up,
        body: UpBody,
        answers: _Answers,
        refused: dict[tuple[str, str], int],
        now: float,
    ) -> None:
        device = up.dev

        def refuse(reason: str, count: int = 1) -> None:
            _count(refused, device, reason, count)

        repeated = (device, "repeated")
        before = refused.get(repeated, 0)
        verdict = Verdict.FRESH
        if not isinstance(body, Batch):  # whose records others number
            verdict = self._hear(tx, up, answers)
        if verdict is Verdict.FORK:
            refuse("forked")
            return
        match body:
            case Batch():
                upto = self._append(tx, up, body, refuse, now)
                answers.upto.setdefault(device, {})[up.boot] = upto
                if refused.get(repeated, 0) == before:
                    tx.put_sign_of_life(up, None, now)
            case Reported():
                answers.reported[device] = self._report(tx, device, body, refuse, now)
                if refused.get(repeated, 0) == before and verdict is Verdict.FRESH:
                    tx.put_sign_of_life(up, None, now)
            case Result():
                if check_result(body):
                    tx.put_result(device, body, now)
                    answers.results.setdefault(device, []).append(body.id)
                else:
                    refuse("malformed_result")
            case Hello() | Health() if verdict is Verdict.REPEATED:
                refuse("repeated")
            case Hello():
                if verdict is Verdict.FRESH:
                    tx.put_sign_of_life(up, body, now)
                else:
                    refuse("late")  # answered all the same, so that it can show that it is alive
                known = tx.cursors(device, MAX_BOOTS_IN_ACK)
                answers.upto.setdefault(device, {}).update(known)
                answers.reported[device] = tx.reported_version(device)
                answers.hellos[device] = body
            case Health():
                if verdict is Verdict.FRESH:
                    tx.put_sign_of_life(up, body, now)
                else:
                    refuse("late")

    def _hear(self, tx: Transaction, up: Up, answers: _Answers) -> Verdict:
        known = tx.voice(up.dev)
        # of what was understood, not of the bytes: a broker can pack the same thing anew
        content = hashlib.sha256(to_msgpack(up)).digest()[:CONTENT_BYTES]
        said = Said(up.boot, up.seq, content, up.mark, up.type == "hello")
        voice, verdict = hear(known, said, self._mark())
        if voice != known:
            tx.put_voice(up.dev, voice)
        answers.marks[up.dev] = voice.mark
        if voice.fork:
            answers.forks[up.dev] = voice.fork
        elif voice.strangers > known.strangers:
            answers.strangers[up.dev] = f"boot {known.present} spoke while boot {up.boot} was there"
        return verdict

    def _append(
        self, tx: Transaction, up: Up, batch: Batch, refuse: Callable[..., None], now: float
    ) -> int:
        if not (batch.first > 0 and max(batch.last, batch.dropped_before) <= MAX_SEQ):
            refuse("malformed")
            return tx.cursor(up.dev, up.boot)
        cursor = tx.cursor(up.dev, up.boot)
        run = above_cursor(batch, cursor, device=up.dev, boot=up.boot)
        if run is None:
            if batch.first <= batch.last <= cursor:
                refuse("repeated")  # its ack was lost, or somebody replays it: no sign of life
            return cursor
        items = sound_items(run.items, batch.contexts, self._store.column_specs)
        if len(items) < len(run.items):
            # signed by the device, but nothing to count on: its number is used up all
            # the same, or the device would send it for ever
            refuse("unsound_record", len(run.items) - len(items))
        tx.append(Run(run.device, run.boot, run.upto, run.contexts, items, run.skipped), now)
        return run.upto

    def _report(
        self,
        tx: Transaction,
        device: str,
        reported: Reported,
        refuse: Callable[..., None],
        now: float,
    ) -> int:
        stored = tx.reported_version(device)
        if reported.version <= stored:
            refuse("repeated")
            return stored
        if not check_reported(reported) or reported.version > stored + MAX_LEAP:
            refuse("malformed_reported")
            return stored
        for report in reported.assignments:
            record = tx.assignment(report.assignment_id)
            if record is None or record.device != device:
                refuse("unknown_assignment")
                continue
            try:
                steps = replay(record.path, report)
            except InvalidTransition:
                # the fleet may have ended it while the device went on: that is no offence
                over = record.path[-1] in ASSIGNMENT_ENDS
                refuse("step_after_end" if over else "unlisted_step")
                continue
            if not steps and report.state != record.path[-1]:
                continue  # the fleet ended it meanwhile: why it did must not be overwritten
            tx.put_steps(report, steps, now)
        tx.put_reported(device, reported, now)
        return reported.version

    def _answer(self, answers: _Answers, now: float) -> None:
        for device, why in answers.forks.items():
            self._on_fork(device, why)
        for device, why in answers.strangers.items():
            self._on_stranger(device, why)
        for device in answers.devices():
            self._replies.ack(
                device,
                Ack(
                    upto=answers.upto.get(device, {}),
                    reported=answers.reported.get(device, 0),
                    results=answers.results.get(device, []),
                    credit=self._credit,
                    now=now,
                    mark=answers.marks.get(device, ""),
                    nonce=_nonce(answers.hellos.get(device)),
                ),
            )
        for device, hello in answers.hellos.items():
            if device not in answers.forks:
                self._replies.hello(device, hello)


def _nonce(hello: Hello | None) -> bytes:
    return hello.nonce if hello is not None and len(hello.nonce) <= MAX_NONCE_BYTES else b""


def above_cursor(batch: Batch, cursor: int, *, device: str, boot: str) -> Run | None:
    """Return what of a batch is new, or None if it holds nothing new or leaves a gap.

    Args:
        batch: a run of records numbered from `first`; a `Skip` is a number used up.
        cursor: the highest seq stored of this boot without a gap.
        device: of the envelope.
        boot: of the envelope.
    """
    start = max(cursor, batch.dropped_before - 1)
    upto = max(batch.last, start)
    if batch.first > start + 1 or upto <= cursor:
        return None
    new: list[tuple[int, Item]] = []
    seq = batch.first
    for item in batch.items:
        if seq > cursor and not isinstance(item, Skip):
            new.append((seq, item))
        seq += width(item)
    received = max(0, batch.last - max(cursor, batch.first - 1))
    return Run(device, boot, upto, batch.contexts, new, skipped=upto - cursor - received)


def replay(known: Sequence[str], report: AssignmentReport) -> list[Step]:
    """Return the steps of a report that the fleet's record does not have yet.

    Raises:
        InvalidTransition: a step does not follow the one before it, or the report's
            path does not end in its state.
    """
    mine = [state for state in known if state not in _BEFORE_DEVICE]
    theirs = [step for step in report.path if step.state not in _BEFORE_DEVICE]
    same = 0
    while same < min(len(mine), len(theirs)) and mine[same] == theirs[same].state:
        same += 1
    new = theirs[same:]
    current = _state(known[-1])
    for step in new:
        current = advance(ASSIGNMENT, current, _state(step.state))
    if new and report.state != current:
        raise InvalidTransition(f"expected a path that ends in {report.state}, got {current}")
    return new


# the fleet takes these two steps itself; a device may repeat them in its path
_BEFORE_DEVICE: Final = frozenset({AssignmentState.QUEUED, AssignmentState.NOTIFIED})


def _state(text: str) -> AssignmentState:
    try:
        return AssignmentState(text)
    except ValueError:
        raise InvalidTransition(f"expected an assignment state, got {text[:40]!r}") from None


class _Refused(Exception):  # noqa: N818 - a way out of `_open`, never seen outside
    def __init__(self, device: str, reason: str) -> None:
        super().__init__(reason)
        self.device = device
        self.reason = reason


def _count(refused: dict[tuple[str, str], int], device: str, reason: str, count: int = 1) -> None:
    refused[device, reason] = refused.get((device, reason), 0) + count
