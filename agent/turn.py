"""One step of the update machine in the making: changes of the state, and their effects.

The helpers that all rules share (`agent.update`): enter a state, end an assignment, begin
one, stop one. The assignment's path is checked against its table at every step.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from agent.device_state import (
    CANDIDATE_SERVES,
    Ended,
    Ending,
    Slot,
    State,
    Work,
    assignment_report,
    doing,
    effect_of,
    kept_bundles,
    name_of,
)
from agent.facts import Discard, EffectItem, Report
from skerry.states import ASSIGNMENT, AssignmentState, Effect, advance
from skerry.trust import Floor, SignedTime, standing_floor, standing_times
from skerry.wire import SlotDesired, Step

__all__ = ["Turn"]

MAX_ENDED: Final = 32  # last words kept until the fleet has them
TIME_STEP_S: Final = 3600.0  # the floor of time rises in steps, so that it is seldom written
MAX_MESSAGE: Final = 500  # characters
_A = AssignmentState


class Turn:
    """One step in the making: the state so far, and the effects so far.

    Args:
        state: as it was saved.
        now: Unix seconds.
    """

    def __init__(self, state: State, now: float) -> None:
        self.state = state
        self.now = now
        self.effects: list[EffectItem] = []
        self._reports = False
        self._discards = False

    def change(self, **fields: Any) -> None:
        """Replace fields of the state."""
        self.state = msgspec.structs.replace(self.state, **fields)

    def put(self, slot: Slot) -> None:
        """Replace one slot."""
        self.change(slots={**self.state.slots, slot.name: slot})

    def told_time(self, at: float, key_id: str) -> None:
        """Raise the floor of time, but never past what other keys have signed.

        So a message key alone can make what is here expire, but nothing that is signed later.

        Args:
            at: Unix seconds, told now.
            key_id: of the message key that signed it.
        """
        floor = self.state.floor
        bound = max(self.state.until.values(), default=0.0)
        at = min(at, bound)
        if at >= floor.time + TIME_STEP_S or floor.time < at == bound:
            self.change(floor=msgspec.structs.replace(floor, time=at, time_key=key_id))

    def raise_releases(self, releases: Mapping[str, int]) -> None:
        """Raise the floors of slots' releases; none ever sinks."""
        floor = self.state.floor
        releases = _highest(floor.releases, releases)
        self.change(floor=msgspec.structs.replace(floor, releases=releases))

    def verified(
        self, metadata: Mapping[str, int], keys: Collection[str], until: Mapping[str, float]
    ) -> None:
        """Raise the floors of metadata that was verified, and note how long it is fresh.

        Under a newer root a repository's floors begin anew, and under a newer root of the director
        also the time and the version of `desired`, unless the key that signed them stands.

        Args:
            metadata: versions seen.
            keys: ids of the message keys that the director root names.
            until: by repository, when its timestamp expires.
        """
        floor = self.state.floor
        root = metadata.get("director/root", 0)
        signed = [SignedTime(floor.time, floor.time_key)]
        if root > floor.metadata.get("director/root", root):
            signed = standing_times(signed, keys)
            if self.state.desired_key not in keys:
                self.change(desired_version=0, desired_key="")
        time = signed[0] if signed else SignedTime(0.0, "")
        self.change(
            floor=Floor(
                metadata=_highest(standing_floor(floor.metadata, metadata), metadata),
                releases=floor.releases,
                time=time.at,
                time_key=time.key_id,
            ),
            until={**self.state.until, **until},
        )

    def along(self, work: Work, *states: AssignmentState) -> Work:
        """Move an assignment along the table."""
        path = list(work.path)
        for new in states:
            path.append(Step(advance(ASSIGNMENT, AssignmentState(path[-1].state), new), self.now))
        return msgspec.structs.replace(work, path=path, note="", note_message="")

    def note(self, slot: Slot, work: Work, code: str, message: str) -> None:
        """Say why an assignment does not get on, if that is news."""
        message = message[:MAX_MESSAGE]
        if (code, message) != (work.note, work.note_message):
            work = msgspec.structs.replace(work, note=code, note_message=message)
            self.put(msgspec.structs.replace(slot, work=work))
            self._reports = True

    def enter(self, slot: Slot, work: Work, *states: AssignmentState) -> None:
        """Move an assignment along the table, and act on where it stands now."""
        slot = msgspec.structs.replace(slot, work=self.along(work, *states))
        self.put(slot)
        self._reports = True
        self.act(slot)

    def act(self, slot: Slot) -> None:
        """Carry out what the slot is busy with now."""
        effect = effect_of(self.state, slot)
        if effect is not None:
            self.effects.append(effect)

    def end(
        self, slot: Slot, work: Work, ending: Ending, effect: Effect | None, **report: Any
    ) -> Slot:
        """Close an assignment: its last word is kept until the fleet has it."""
        phase = work.state
        closed = msgspec.structs.replace(self.along(work, ending.state), ending=None)
        word = msgspec.structs.replace(
            assignment_report(slot, closed),
            phase=phase.value if ending.code else None,
            code=ending.code or None,
            message=ending.message[:MAX_MESSAGE] or None,
            effect=effect.value if effect else None,
            **report,
        )
        version = self.state.reported_version + 1
        self.change(ended=[*self.state.ended, Ended(version, word)][-MAX_ENDED:])
        slot = msgspec.structs.replace(slot, work=None)
        self.put(slot)
        self._reports = self._discards = True
        return slot

    def begin(self, slot: Slot, want: SlotDesired) -> None:
        """Begin an assignment, once."""
        work = Work(want, [Step(_A.NOTIFIED, self.now)])
        slot = msgspec.structs.replace(slot, work=work, next=None, begun=name_of(want))
        self.put(slot)
        self._reports = True
        self.act(slot)

    def stop(self, slot: Slot, work: Work, ending: Ending, then: SlotDesired | None = None) -> None:
        """End what is under way; where the candidate may serve, return first."""
        if doing(slot) in CANDIDATE_SERVES:
            work = msgspec.structs.replace(work, ending=ending)
            slot = msgspec.structs.replace(slot, work=work, next=then)
            self.put(slot)
            self._reports = True  # what serves is no longer the candidate
            self.act(slot)
        else:
            slot = self.end(slot, work, ending, Effect.NO_STATE_CHANGE)
            if then is not None:
                self.begin(slot, then)

    def discard(self) -> None:
        """Let go of bundles that are no longer kept."""
        self._discards = True

    def report(self) -> None:
        """Let the fleet know, in a new version of `reported`."""
        self._reports = True

    def finish(self) -> tuple[State, list[EffectItem]]:
        """Return the next state, and the effects in their order."""
        if self._discards:
            self.effects.append(Discard(kept_bundles(self.state)))
        if self._reports:
            self.change(reported_version=self.state.reported_version + 1)
            self.effects.append(Report(self.state.reported_version))
        return self.state, self.effects


def _highest(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {name: max(old.get(name, 0), new.get(name, 0)) for name in sorted({*old, *new})}
