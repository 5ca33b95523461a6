"""Labels that come later: ``POST /v2/models/{model}/feedback``, joined by request id.

    {"id": "a7", "label": "seven"}                        one prediction
    {"id": "b1", "label": [7, null, 3]}                   a batch's rows, null for none
    {"feedback": [{"id": "a7", "label": 7}, ...]}         many

The label is a number where the prediction is a value; else a class by its number or name. Each
one is answered by what became of it:

    joined      kept, so that it survives this process, and counted once
    duplicate   this prediction has this label already; nothing changes
    conflict    it has another one: the first label holds (409 for a single prediction)
    unknown     no such prediction is held, or no longer

All labels of a request are checked before any is taken. Without room for them the answer is
503, and the same request may be sent again: what was taken is a duplicate by then.
"""

import hashlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.held import Held, HeldPrediction, Holder, held_key
from agent.http import HttpError
from agent.http_types import Request, Response
from agent.labels import Label, Labels
from agent.segments import CountPlan
from agent.serve_protocol import FeedbackSettings, ServeSlot
from skerry.canonical import from_json, to_json, to_msgpack
from skerry.errors import FormatError, UnreachableError, UsageError
from skerry.feedback import SPANS
from skerry.manifest import Manifest
from skerry.records import Context
from skerry.sketch import NumericSpec

__all__ = ["Feedback", "JoinPlan", "read_label", "read_rows"]

MAX_ROWS: Final = 4096  # labels of one request
MAX_ID: Final = 140  # characters: a request's id, '#' and a row's number
MAX_PLANS: Final = 64  # releases whose predictions may still get labels
MANY_CLASSES: Final = 1 << 31  # where nobody says how many there are
STATUSES: Final = ("joined", "duplicate", "conflict", "unknown")
_LOG: Final = logging.getLogger("agent.serve")


class JoinPlan(msgspec.Struct, frozen=True):
    """How labels are read for the predictions of a release; kept as long as these are held."""

    context: Context
    classes: int  # 0: the predictions are values
    names: list[str]
    span: float = 1.0  # of the baseline's predictions, where they are values
    scale: int = 1


class _One(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    label: Any


class _Many(msgspec.Struct, forbid_unknown_fields=True):
    feedback: list[_One]


class _TooManyError(UsageError):
    """More labels than one request may have."""


@dataclass(slots=True)
class _Row:
    """One label of a request: of which prediction, and as it was read for it."""

    id: str
    label: float = 0.0
    plan: JoinPlan | None = None  # None: the prediction is unknown


_BODY: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ONE: Final = msgspec.json.Decoder(_One)
_MANY: Final = msgspec.json.Decoder(_Many)
_PLAIN: Final = (str, int, float, bool)


class Feedback:
    """Takes labels, joins them with the predictions that are held.

    Args:
        settings: whose predictions are held, and where.
        catch_up: takes over what another process, that serves beside this one, has recorded.
        beside: tells whether there is such a one.
    """

    def __init__(
        self,
        settings: FeedbackSettings,
        *,
        catch_up: Callable[[], None],
        beside: Callable[[], bool],
    ) -> None:
        self._slots = set(settings.slots)
        self._folder = Path(settings.folder)
        self._catch_up = catch_up
        self._plans: dict[bytes, JoinPlan] = {}
        self._held: Held | None = None
        self._unmarked: dict[bytes, float] = {}  # labels that others took, by key
        self.labels: Labels | None = None
        self.counts: Counter[str] = Counter()
        if self._slots and settings.folder:
            try:
                self._held = Held(
                    self._folder / "held",
                    predictions=settings.predictions,
                    hold_s=settings.hold_s,
                    beside=beside,
                )
            except OSError as error:  # predictions go on without
                _LOG.error("predictions are not held for labels: %s", error)

    def holder(self, slot: ServeSlot, manifest: Manifest, plan: CountPlan) -> Holder | None:
        """Return what holds the predictions of a slot, None where no labels are awaited."""
        if self._held is None or not self._wants(slot.slot):
            return None
        join = _join_plan(slot, manifest, plan)
        key = _context_key(join.context)
        self._plans[key] = join
        try:
            self._keep(key, join)
        except OSError as error:
            _LOG.error("predictions of %s are not held for labels: %s", slot.slot, error)
            return None
        return Holder(self._held, slot.model, key)

    def seen(self, label: Label) -> None:
        """Mark the prediction of a label that another process has taken."""
        if self._held is None:
            return
        self._held.stale()
        held = self._held.find(label.key, 0.0)
        if held is None:  # the index may not have it yet: it is marked when it is asked for
            self._unmarked[label.key] = _marked(label)
            if len(self._unmarked) > self._held.places:
                del self._unmarked[next(iter(self._unmarked))]
        elif held.label is None:
            self._held.mark(held, _marked(label))

    def tick(self, *, beside: bool) -> None:
        """Mark what is not marked yet; `beside` says that another process serves too."""
        held = self._held
        if held is None:
            return
        if beside:
            held.stale()
        if self._unmarked:
            held.refresh()
        for key, label in list(self._unmarked.items()):
            found = held.find(key, 0.0)
            if found is not None:
                if found.label is None:
                    held.mark(found, label)
                del self._unmarked[key]
        if not beside:
            self._unmarked.clear()  # what is not found is held no more

    def sync(self) -> None:
        """Make every mark so far durable against a power cut."""
        if self._held is not None:
            self._held.sync()

    def metrics(self) -> str:
        """Return lines for ``/metrics``."""
        if self._held is None:
            return ""
        name = "skerry_feedback_total"
        lines = [f"# HELP {name} Labels that came later.", f"# TYPE {name} counter"]
        lines += [f'{name}{{status="{status}"}} {self.counts[status]}' for status in STATUSES]
        return "\n".join(lines) + "\n"

    def __call__(self, slot: ServeSlot, request: Request) -> Response:
        """Take the labels of a request; a refusal is an `HttpError`."""
        held, labels = self._held, self.labels
        if held is None or labels is None or not self._wants(slot.slot):
            raise HttpError(
                400,
                f"labels are not awaited for {slot.slot}: name it in feedback_slots of the "
                "device's settings, and ask again with predictions made after that",
            )
        try:
            rows, single = read_rows(request.body)
            with held.alone():
                held.refresh()
                self._catch_up()
                now = time.time()
                read = [self._read(held, slot, id, label, now) for id, label in rows]
                results = [
                    {"id": row.id, "status": self._take(held, labels, slot, row, now)}
                    for row in read
                ]
        except UnreachableError as error:
            raise HttpError(503, str(error)) from None
        except UsageError as error:
            raise HttpError(413 if isinstance(error, _TooManyError) else 400, str(error)) from None
        except OSError as error:
            raise HttpError(503, f"the disk does not take labels: {error.strerror}") from None
        return _answer(held, results, single=single)

    def _read(self, held: Held, slot: ServeSlot, id: str, label: Any, now: float) -> _Row:
        found = held.find(held_key(slot.model, id), now)
        plan = None if found is None else self._plan(found.context)
        if plan is None:
            return _Row(id)
        try:
            return _Row(id, read_label(plan, label), plan)
        except UsageError as error:
            raise UsageError(f"the label of {id[:MAX_ID]!r}: {error}") from None

    def _take(self, held: Held, labels: Labels, slot: ServeSlot, row: _Row, now: float) -> str:
        key = held_key(slot.model, row.id)
        found = held.find(key, now) if row.plan is not None else None  # a request may say it twice
        if found is not None and found.label is None and key in self._unmarked:
            held.mark(found, self._unmarked[key])
            del self._unmarked[key]
            found = held.find(key, now)
        if found is None or row.plan is None:
            status = "unknown"
        elif found.label is not None:
            status = "duplicate" if found.label == row.label else "conflict"
        else:
            if not labels.add(_label(key, found, row.plan, row.label), time.monotonic()):
                raise HttpError(503, "there is no room to keep labels; send the same again later")
            held.mark(found, row.label)
            status = "joined"
        self.counts[status] += 1
        return status

    def _wants(self, slot: str) -> bool:
        return "*" in self._slots or slot in self._slots

    def _plan(self, key: bytes) -> JoinPlan | None:
        plan = self._plans.get(key)
        if plan is None:
            try:
                data = self._file(key).read_bytes()
                plan = self._plans[key] = from_json(data, JoinPlan)
            except (OSError, FormatError):
                return None  # of a release that is long gone
        return plan

    def _keep(self, key: bytes, plan: JoinPlan) -> None:
        """Keep a plan on disk for those who serve after this release."""
        part = self._folder / f"{key.hex()}.{os.getpid()}"
        with part.open("wb") as file:
            file.write(to_json(plan))
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._file(key))
        plans = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for old in plans[:-MAX_PLANS]:
            old.unlink(missing_ok=True)

    def _file(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.json"


def read_label(plan: JoinPlan, label: Any) -> float:
    """Return a label as a number: a value, or the position of a class.

    Raises:
        UsageError: it is no label for predictions of that release.
    """
    if not plan.classes:
        try:
            value = float(label) if type(label) in (int, float) else math.nan
        except OverflowError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"expected a finite number, got {str(label)[:80]!r}")
        return value
    if type(label) is str:
        if label in plan.names:
            return float(plan.names.index(label))
        some = ", ".join(plan.names[:10]) or "numbers; the model names none"
        raise UsageError(f"expected a class of {some}; got {label[:80]!r}")
    if type(label) is bool and plan.classes == 2:
        return float(label)
    if type(label) is int and 0 <= label < plan.classes:
        return float(label)
    raise UsageError(
        f"expected the name or the number of a class, below {plan.classes}; got {str(label)[:80]!r}"
    )


def read_rows(body: bytes) -> tuple[list[tuple[str, Any]], bool]:
    """Return the labels of a request by id, and whether it is about a single prediction.

    Raises:
        UsageError: no labels in JSON, or too many.
    """
    try:
        keys = _BODY.decode(body)
        many = "feedback" in keys
        given = _MANY.decode(body).feedback if many else [_ONE.decode(body)]
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise UsageError(
            f'expected {{"id": …, "label": …}} or {{"feedback": [those]}} in JSON: {error}'
        ) from None
    rows: list[tuple[str, Any]] = []
    for one in given:
        rows += _rows_of(one)
        if len(rows) > MAX_ROWS:
            raise _TooManyError(f"expected at most {MAX_ROWS} labels in a request; send several")
    if not rows:
        raise UsageError("expected at least one label, got none")
    return rows, not many and type(given[0].label) is not list


def _rows_of(one: _One) -> Iterator[tuple[str, Any]]:
    if not 0 < len(one.id) <= MAX_ID:
        raise UsageError(f"expected an id of 1 to {MAX_ID} characters, got {one.id[:20]!r}…")
    if type(one.label) is not list:
        if type(one.label) not in _PLAIN:
            raise UsageError(
                f"expected a label for {one.id!r}: a number, a class, or a list of those"
            )
        yield one.id, one.label
        return
    if "#" in one.id:
        raise UsageError(f"expected one label for the row {one.id!r}, got a list")
    for place, label in enumerate(one.label):
        if label is None:
            continue
        if type(label) not in _PLAIN:
            raise UsageError(f"expected numbers, classes or null in the list of {one.id!r}")
        # a batch of one row has no row numbers
        yield (one.id if len(one.label) == 1 else f"{one.id}#{place}"), label


def _answer(held: Held, results: list[dict[str, str]], *, single: bool) -> Response:
    counts = Counter(result["status"] for result in results)
    body: dict[str, Any] = {"results": results}
    body |= {status: counts[status] for status in STATUSES}
    if counts["unknown"]:
        body["held"] = {"predictions": held.places, "seconds": held.hold_s}
    if single and counts["conflict"]:
        body["error"] = "this prediction has another label; the first one holds"
    return Response(409 if "error" in body else 200, [msgspec.json.encode(body)])


def _label(key: bytes, found: HeldPrediction, plan: JoinPlan, label: float) -> Label:
    head = (key, plan.context, found.start, found.length_s, plan.classes)
    if plan.classes:
        return Label(*head, predicted=found.prediction, label=int(label))
    return Label(
        *head,
        predicted=-1,
        label=-1,
        value=found.confidence,
        truth=label,
        span=plan.span,
        scale=plan.scale,
    )


def _marked(label: Label) -> float:
    return float(label.label) if label.classes else label.truth


def _join_plan(slot: ServeSlot, manifest: Manifest, plan: CountPlan) -> JoinPlan:
    context = Context(slot.slot, slot.model, slot.model_version, slot.bundle, slot.variant)
    reading = manifest.prediction
    output = next(o for o in manifest.outputs if o.name == reading.output)
    names = output.class_names
    if reading.kind in ("value", "mean"):
        spec = plan.columns.get("confidence")
        span, scale = 1.0, 1_000_000
        if isinstance(spec, NumericSpec):
            span, scale = spec.edges[-1] - spec.edges[0], spec.scale
        return JoinPlan(context, 0, [], min(max(span, SPANS[0]), SPANS[1]), scale)
    if reading.kind == "threshold":
        return JoinPlan(context, 2, names if len(names) == 2 else [])
    axes = output.shape[1:]
    count = math.prod(axes) if all(size > 0 for size in axes) else MANY_CLASSES
    return JoinPlan(context, len(names) or count, names)


def _context_key(context: Context) -> bytes:
    return hashlib.blake2b(to_msgpack(context), digest_size=8).digest()
