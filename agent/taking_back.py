"""Somebody at the device, or the fleet by a command, takes a slot back to what it ran before.

A wish names the bundle to be left, so that it holds once however often it comes: a slot that runs
another bundle by then stays as it is. The fleet sees it in the next `reported`: a candidate ends as
``rolled_back`` with the code ``rolled_back_here``; a committed release is no longer among the slots.
Wishes of people at the device come by a file (`agent.wishes`).
"""

from typing import Final

import msgspec

from agent.device_state import CANDIDATE_SERVES, Ending, Slot, State, doing
from agent.facts import Release, Restore, TakenBack
from agent.turn import Turn
from skerry.errors import NotFoundError, RefusedError
from skerry.states import AssignmentState

__all__ = ["CODE", "on_taken_back", "wish_for"]

CODE: Final = "rolled_back_here"


def wish_for(state: State | None, slot: str, by: str) -> tuple[TakenBack, str]:
    """Return the wish to take a slot back, and a line that says what it comes to.

    Raises:
        NotFoundError: no such slot.
        RefusedError: there is nothing to go back to, or an update is under way.
    """
    slots = state.slots if state else {}
    found = slots.get(slot)
    if found is None:
        have = ", ".join(sorted(slots)) or "none yet"
        raise NotFoundError(f"expected a slot of this device ({have}), got {slot[:64]!r}")
    leaving, after = _way_back(found)
    return TakenBack(slot, leaving, by), f"slot {slot}: goes back to {after}"


def on_taken_back(turn: Turn, wish: TakenBack) -> None:
    """Carry a wish out where the slot still runs what is to be left (`agent.update`)."""
    slot = turn.state.slots.get(wish.slot)
    if slot is None:
        return
    try:
        leaving, _ = _way_back(slot)
    except RefusedError:
        return
    if leaving != wish.bundle:
        return
    if slot.work is not None:
        message = f"taken back by {wish.by}"
        turn.stop(slot, slot.work, Ending(AssignmentState.ROLLED_BACK, CODE, message))
        return
    before = slot.previous
    assert before is not None
    good = before if slot.good == slot.current else slot.good
    turn.put(msgspec.structs.replace(slot, current=before, previous=None, good=good))
    turn.report()
    turn.effects.append(Restore(slot.name, before))


def _way_back(slot: Slot) -> tuple[str, str]:
    """Return the bundle that would be left, and what would serve then."""
    work = slot.work
    if work is not None:
        if work.ending is not None:
            raise RefusedError(f"slot {slot.name} goes back already", "goes_back")
        if doing(slot) not in CANDIDATE_SERVES or work.release is None:
            raise RefusedError(
                f"expected slot {slot.name} to rest, and it is {doing(slot).value} "
                f"{work.want.target}, which does not serve yet; put it off with "
                "`skerry-agent defer`, or try again when it has ended",
                "under_way",
            )
        current = slot.current
        return work.release.ref.bundle, _named(current) if current else "nothing"
    if slot.current is None or slot.previous is None:
        what = "runs nothing" if slot.current is None else "has run nothing else before"
        raise RefusedError(
            f"expected a release that slot {slot.name} ran before, and it {what}; "
            "ask the fleet for a rollout of the version that you want",
            "nothing_before",
        )
    return slot.current.ref.bundle, _named(slot.previous)


def _named(release: Release) -> str:
    return f"{release.ref.model} {release.ref.model_version}"
