"""The nets of the update machine: what comes to all slots at once, and catches what falls.

time        an assignment that takes too long ends; what it waits for leave does not count
crashes     of serve, or of the whole agent, while a candidate serves: too many roll it back
no start    serve cannot be started: the candidate returns; without one, the slot that
            changed last takes what it ran before, then the last release known to be good
"""

from typing import Final

import msgspec

from agent.device_state import CANDIDATE_SERVES, Doing, Ending, Slot, Work, doing
from agent.facts import (
    ClockJumped,
    Release,
    Restarted,
    Restore,
    ServeCrashed,
    ServeUnable,
    Steadied,
    Ticked,
)
from agent.turn import Turn
from skerry.states import AssignmentState

__all__ = ["Everywhere", "on_everywhere"]

GOOD_S: Final = 3600.0  # a release that was committed so long ago may be known to be good
JUST_NOW_S: Final = 5.0
SLOW: Final = "slow_retrieval"
_A = AssignmentState
Everywhere = Ticked | ServeCrashed | ServeUnable | Restarted | ClockJumped | Steadied


def on_everywhere(turn: Turn, event: Everywhere) -> None:
    """Take in a fact that is about no one assignment."""
    if isinstance(event, Steadied):
        _on_steadied(turn)
        return
    if isinstance(event, ClockJumped):
        _on_clock_jumped(turn, event.by)
        return
    for _, slot in sorted(turn.state.slots.items()):
        if slot.work is None or slot.work.ending is not None:
            continue
        match event:
            case Ticked():
                _on_ticked(turn, slot, slot.work)
            case ServeCrashed() if doing(slot) is Doing.PROBATION:
                _on_crashed(turn, slot, slot.work, "the serving process ended")
            case Restarted() if doing(slot) in CANDIDATE_SERVES:
                _on_crashed(turn, slot, slot.work, "the agent, or the device, ended")
            case ServeUnable(message=message, slot=whose) if doing(
                slot
            ) in CANDIDATE_SERVES and whose in {"", slot.name}:
                turn.stop(slot, slot.work, Ending(_A.ROLLED_BACK, "serve_failed", message))
    if isinstance(event, ServeUnable) and not turn.effects:
        _fall_back(turn, event.slot)


def _on_ticked(turn: Turn, slot: Slot, work: Work) -> None:
    if work.spent_s(turn.now) >= work.want.deadline_s:
        why = f": {work.note_message}" if work.note_message else ""
        message = f"no end within {work.want.deadline_s:.0f} s{why}"
        code = SLOW if work.note == SLOW else "deadline"
        turn.stop(slot, work, Ending(_A.TIMED_OUT, code, message))


def _on_crashed(turn: Turn, slot: Slot, work: Work, what: str) -> None:
    work = msgspec.structs.replace(work, crashes=work.crashes + 1)
    slot = msgspec.structs.replace(slot, work=work)
    turn.put(slot)
    if work.crashes > work.want.probation.max_crashes:
        message = f"{what} {work.crashes} times while the candidate served"
        turn.stop(slot, work, Ending(_A.ROLLED_BACK, "serve_crashed", message))


def _on_clock_jumped(turn: Turn, by: float) -> None:
    """Put the steps of what is under way right, so that no limit runs out for the clock's sake."""
    latest = turn.now - by + JUST_NOW_S  # by the old time; what came since then is right
    for _, slot in sorted(turn.state.slots.items()):
        if slot.work is None:
            continue
        path = [
            msgspec.structs.replace(step, at=step.at + by) if step.at <= latest else step
            for step in slot.work.path
        ]
        work = msgspec.structs.replace(slot.work, path=path)
        turn.put(msgspec.structs.replace(slot, work=work))
        turn.report()


def _on_steadied(turn: Turn) -> None:
    for _, slot in sorted(turn.state.slots.items()):
        current = slot.current
        if slot.work is not None or current is None or slot.good == current:
            continue
        if turn.now - current.ref.since >= GOOD_S:
            turn.put(msgspec.structs.replace(slot, good=slot.current))
            turn.discard()


def _fall_back(turn: Turn, whose: str) -> None:
    """Return the slot at fault, or the one that changed last: serve does not start."""
    found = [
        (slot, net)
        for slot in turn.state.slots.values()
        if whose in {"", slot.name} and (net := _net(slot)) is not None
    ]
    if not found:
        return
    slot, release = max(found, key=lambda pair: (_since(pair[0]), pair[0].name))
    turn.put(msgspec.structs.replace(slot, current=release, previous=None))
    turn.report()
    turn.effects.append(Restore(slot.name, release))


def _net(slot: Slot) -> Release | None:
    """Return what may take the place of a committed release that does not start."""
    if slot.current is None:
        return None
    failed = slot.current.ref.bundle
    nets = [net for net in (slot.previous, slot.good) if net and net.ref.bundle != failed]
    return nets[0] if nets else None


def _since(slot: Slot) -> float:
    return slot.current.ref.since if slot.current else 0.0
