"""What a signed message must still satisfy before it is stored: bounds, not trust.

A device that signed a message may still be wrong. Text is short and printable, numbers
fit the database, sketches add up and have the cells that their bundle's baseline gives:
one odd record is left out, and never stops the others of its batch or its transaction.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from skerry.errors import FormatError
from skerry.feedback import check_errors
from skerry.records import Aside, Context, Errors, Item, Loss, Prediction, SketchWindow, Skip
from skerry.sketch import (
    MAX_BINS,
    CategoricalCounts,
    CategoricalSpec,
    Column,
    ColumnSpec,
    NumericSpec,
    check_column,
)
from skerry.tensors import DTYPES, MAX_RANK
from skerry.trials import SHADOW_EDGES, ShadowReport, Trial
from skerry.wire import MAX_INPUT_BYTES, LiveStats, Reported, Result, Up

__all__ = ["check_envelope", "check_reported", "check_result", "sound_items"]

MAX_TEXT: Final = 128  # characters of an id, a name or a version
MAX_PLATFORM: Final = 100  # characters; hw_class adds a flag to it
MAX_MARK: Final = 64  # characters
MAX_MESSAGE: Final = 4096  # characters of a text for people
MAX_INT: Final = (1 << 63) - 1  # what both databases keep in a column
MAX_ROWS: Final = 1 << 40  # of one window: what a database adds up stays within 64 bits
MAX_WINDOW_S: Final = 1e9
MAX_COLUMNS: Final = 128
MAX_SLOTS: Final = 32
MAX_ASSIGNMENTS: Final = 64
MAX_STEPS: Final = 64
MAX_TRIALS: Final = 32
MAX_FEATURES: Final = 256
MAX_INPUTS: Final = 64
_BOOT: Final = re.compile(r"[0-9A-Za-z-]{1,64}")

Specs = Callable[[str], Mapping[str, ColumnSpec] | None]


def check_envelope(up: Up, kind: str) -> None:
    """Check the envelope of a verified message.

    Raises:
        FormatError: not of the kind its topic says, or numbers beyond their bounds.
    """
    if up.type != kind:
        raise FormatError(f"expected a {kind} on its topic, got a {up.type}")
    if _BOOT.fullmatch(up.boot) is None:
        raise FormatError("expected a boot of 1 to 64 letters, digits and hyphens")
    if len(up.mark) > MAX_MARK:
        raise FormatError(f"expected a mark of at most {MAX_MARK} characters")
    if not (0 <= up.seq <= MAX_INT and math.isfinite(up.ts) and math.isfinite(up.mono)):
        raise FormatError("expected a seq of at most 63 bits and finite times")


def sound_items(
    items: Sequence[tuple[int, Item]], contexts: Sequence[Context], specs: Specs
) -> list[tuple[int, Item]]:
    """Return the records that can be stored and counted on.

    Args:
        items: ``(seq, record)``.
        contexts: of the batch; a record names one by its position.
        specs: how the columns of a bundle are counted, None for an unknown bundle.
    """
    good_contexts = list(map(_is_sound_context, contexts))

    def sound(seq: int, item: Item) -> bool:
        if not 0 < seq <= MAX_INT:
            return False
        if isinstance(item, Skip):
            return True
        if isinstance(item, Loss):
            return _is_text(item.boot) and _is_text(item.reason) and _is_count(item.at_most)
        if isinstance(item, Errors):
            return _are_sound_errors(item)
        if not 0 <= item.ctx < len(contexts) or not good_contexts[item.ctx]:
            return False
        if isinstance(item, Prediction):
            return _is_sound_prediction(item)
        return _is_sound_window(item, specs(contexts[item.ctx].bundle))

    return [(seq, item) for seq, item in items if sound(seq, item)]


def check_reported(reported: Reported) -> bool:
    """Tell whether a reported state keeps its bounds."""
    if not 0 < reported.version <= MAX_INT or not _is_count(reported.desired_version):
        return False
    if len(reported.slots) > MAX_SLOTS or not _is_plain(reported.inventory.platform):
        return False
    if len(reported.assignments) > MAX_ASSIGNMENTS:
        return False
    refs = all(
        all(map(_is_text, (slot, ref.model, ref.model_version, ref.bundle, ref.variant)))
        and math.isfinite(ref.since)
        for slot, ref in reported.slots.items()
    )
    return refs and all(
        len(report.path) <= MAX_STEPS
        and all(math.isfinite(step.at) for step in report.path)
        and all(_is_text(t or "-") for t in (report.variant, report.phase, report.effect))
        and _is_text(report.code or "-")
        and (report.live is None or _is_sound_live(report.live))
        and len(report.trials) <= MAX_TRIALS
        and all(map(_is_sound_trial, report.trials))
        and (report.shadow is None or _is_sound_shadow(report.shadow))
        and len(report.message or "") <= MAX_MESSAGE
        and "\x00" not in (report.message or "")
        for report in reported.assignments
    )


def check_result(result: Result) -> bool:
    """Tell whether the result of a command keeps its bounds."""
    return _is_text(result.id) and "\x00" not in result.output


def _is_sound_prediction(item: Prediction) -> bool:
    return (
        _is_text(item.id)
        and math.isfinite(item.at)
        and -1 <= item.prediction <= MAX_INT
        and _is_count(item.latency_us)
        and len(item.features) <= MAX_FEATURES
        and (item.aside is None or _is_sound_aside(item.aside, len(item.features)))
    )


def _is_sound_aside(aside: Aside, features: int) -> bool:
    inputs = len(aside.inputs) <= MAX_INPUTS and all(
        _is_text(tensor.name)
        and tensor.datatype in DTYPES
        and len(tensor.shape) <= MAX_RANK
        and all(map(_is_count, tensor.shape))
        for tensor in aside.inputs
    )
    places = (*aside.withheld, *aside.hashed)
    return (
        inputs
        and sum(len(tensor.data) for tensor in aside.inputs) <= MAX_INPUT_BYTES
        and _is_count(aside.left_out_bytes)
        and len(places) == len(set(places))
        and all(0 <= place < features for place in places)
    )


def _is_sound_window(item: SketchWindow, specs: Mapping[str, ColumnSpec] | None) -> bool:
    if not (0 <= item.n <= MAX_ROWS and 0 <= item.errors <= MAX_ROWS):
        return False
    if len(item.columns) > MAX_COLUMNS:
        return False
    if not (math.isfinite(item.start) and math.isfinite(item.length_s) and item.length_s > 0):
        return False
    try:
        for name, column in item.columns.items():
            if not _is_text(name) or not 0 <= column.n <= MAX_ROWS:
                return False
            spec = None if specs is None else specs.get(name)
            check_column(column, spec or _own_spec(column))
    except FormatError:
        return False
    return True


def _is_sound_context(c: Context) -> bool:
    return all(map(_is_text, (c.slot, c.model, c.model_version, c.bundle, c.variant)))


def _are_sound_errors(item: Errors) -> bool:
    if not all(map(_is_sound_context, item.contexts)):
        return False
    for sketch in item.sketches:
        times = math.isfinite(sketch.start) and 0 < sketch.length_s <= MAX_WINDOW_S
        if not (times and 0 <= sketch.ctx < len(item.contexts) and 0 < sketch.n <= MAX_INT):
            return False
        try:
            check_errors(sketch)
        except FormatError:
            return False
    return True


def _own_spec(column: Column) -> ColumnSpec:
    """Return a spec with as many cells as the column has, to check all but their number."""
    if isinstance(column, CategoricalCounts):
        return CategoricalSpec(values=[""] * len(column.counts))
    return NumericSpec(edges=[0.0] * (min(len(column.bins), MAX_BINS + 1) + 1))


def _is_sound_live(live: LiveStats) -> bool:
    times = (live.p50_us or 0.0, live.p99_us or 0.0, live.seconds)
    return all(map(math.isfinite, times)) and _is_count(live.answered) and _is_count(live.errors)


def _is_sound_trial(trial: Trial) -> bool:
    numbers = (trial.disagree, trial.max_diff, trial.run_us)
    return (
        _is_text(trial.variant)
        and _is_text(trial.code)
        and _is_count(trial.rows)
        and all(math.isfinite(number) and number >= 0 for number in numbers)
    )


def _is_sound_shadow(shadow: ShadowReport) -> bool:
    counts = (shadow.rows, shadow.agree, shadow.errors, shadow.skipped)
    if not (all(map(_is_count, counts)) and shadow.agree <= shadow.rows):
        return False
    if not _is_text(shadow.verdict) or not math.isfinite(shadow.seconds):
        return False
    try:
        if shadow.latency_us is not None:
            check_column(shadow.latency_us, NumericSpec(SHADOW_EDGES, scale=1))
    except FormatError:
        return False
    return True


def _is_plain(text: str) -> bool:
    return len(text) <= MAX_PLATFORM and text.isprintable()


def _is_text(text: str) -> bool:
    return 0 < len(text) <= MAX_TEXT and text.isprintable()


def _is_count(number: int) -> bool:
    return 0 <= number <= MAX_INT
