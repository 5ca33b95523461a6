"""What people at the device say to updates: approve one, or put all of them off."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from agent.config import Layout
from agent.device_state import State, name_of
from agent.identity import load_identity
from agent.permission import read_consent, write_consent
from agent.state import read_state
from skerry.errors import NotFoundError, UsageError

__all__ = ["approve", "defer"]

MAX_HOURS: Final = 168.0


def approve(layout: Layout, slots: Sequence[str], *, at_once: bool) -> list[str]:
    """Approve what is under way; it counts for these assignments alone, and ends a deferral of them.

    Args:
        layout: of the state directory.
        slots: names; empty for all that have an assignment under way.
        at_once: also outside of the maintenance windows.

    Returns:
        A line about each.

    Raises:
        NotFoundError: no agent was enrolled here, or nothing is under way.
    """
    load_identity(layout.identity)
    state = read_state(layout.database)
    known = state.slots if state else {}
    unknown = [name for name in slots if name not in known]
    if unknown:
        have = ", ".join(sorted(known)) or "none yet"
        raise NotFoundError(f"expected a slot of this device ({have}), got {unknown[0]!r}")
    consent, lines = read_consent(layout.consent), []
    for name in slots or sorted(known):
        work = known[name].work
        if work is None or work.ending is not None:
            continue
        kind = "at_once" if at_once else "approved"
        names = [*(n for n in getattr(consent, kind) if n != name_of(work.want))]
        consent = msgspec.structs.replace(consent, **{kind: [*names, name_of(work.want)]})
        when = "now" if at_once else "as soon as a window is open"
        lines.append(f"slot {name}: {work.want.target} may be activated {when}")
    if not lines:
        raise NotFoundError("expected an update under way, and there is none; nothing was approved")
    write_consent(layout.consent, consent)
    return lines


def defer(layout: Layout, hours: float) -> str:
    """Put off every activation that is not approved by then; a later call replaces this one.

    Args:
        layout: of the state directory.
        hours: from now, at most 168; 0 ends it.

    Returns:
        A line about it.

    Raises:
        NotFoundError: no agent was enrolled here.
        UsageError: not so many hours.
    """
    if not 0.0 <= hours <= MAX_HOURS:
        raise UsageError(f"expected 0 to {MAX_HOURS:.0f} hours, got {hours:g}")
    load_identity(layout.identity)
    until = _now(read_state(layout.database)) + 3600.0 * hours if hours else 0.0
    # what was approved before is put off as well
    consent = msgspec.structs.replace(
        read_consent(layout.consent), approved=[], at_once=[], deferred_until=until
    )
    write_consent(layout.consent, consent)
    if not hours:
        return "nothing is deferred any more"
    return f"no update is activated before {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M UTC}"


def _now(state: State | None) -> float:
    return max(time.time(), state.floor.time if state else 0.0)
