"""How a device updates: the one file that explains the agent.

`step` takes the saved state and one past fact and gives the next state and the effects
to carry out. It does nothing itself: `Machine` saves the state, then hands the effects
to an installer, whose outcomes come back as events. The rules, in order:

1.  Save the state, then act. Every effect may be carried out twice: after a restart
    `Machine.resume` repeats those of the saved state.
2.  A `desired` applies only if its version is higher than the last one that did (versions
    begin anew when a root revokes the key that signed them), and an assignment is begun
    once, whatever happens to it.
3.  Nothing is fetched before director and catalog are verified and `skerry.trust` has no
    objection. Metadata floors rise with what was verified, a slot's release floor at commit,
    the floor of time with the fleet's answer to a nonce; all are saved with the state.
4.  A variant that fails its smoke run gives way to the next that fits the device.
5.  What was committed goes on serving until the candidate has answered live requests in
    probation, within limits. Too little traffic by the end of the time is no success.
6.  Anything wrong from activation on returns the slot to what was committed; before it,
    nothing has changed.
7.  A newer assignment supersedes the one under way, a missing one cancels it; where the
    candidate already serves, the slot returns first.
8.  A fact about an assignment that is no longer under way, or that comes twice, is ignored.
9.  A staged candidate is activated when the device permits it: with its consent, in its
    maintenance window. What has waited is verified again. Waiting is no failure, and takes no
    part of the deadline. What this slot ran before does not wait.
10. A candidate under which serve, or the whole agent, ends too often returns. A committed release
    that does not start gives way to the one before, then to the last known to be good.
11. People at the device, and the fleet by a command, may take a slot back to what it ran before.

    verifying -> downloading -> staging (-> waiting) -> activating -> probation -> (committed)
        |             |            |          |             |             |
        +------ rejected, incompatible, ------+             +-> rolling_back -> (rolled_back,
                failed, timed_out,                              timed_out, canceled, superseded)
                canceled, superseded

The rules of one assignment's way are in `agent.way` (3 to 6, 9), those for all slots in
`agent.nets` (10, and the deadline).
"""

from typing import Final, Protocol

import msgspec

from agent.device_state import Ending, Slot, State, doing, name_of, pending
from agent.facts import (
    Acknowledged,
    ClockJumped,
    DesiredArrived,
    EffectItem,
    Event,
    FleetTimeHeard,
    Refreshed,
    Restarted,
    ServeCrashed,
    ServeUnable,
    Steadied,
    TakenBack,
    Ticked,
)
from agent.nets import on_everywhere
from agent.taking_back import on_taken_back
from agent.turn import Turn
from agent.way import HANDLERS
from skerry.states import AssignmentState

__all__ = ["Installer", "Journal", "Machine", "accepts_version", "step"]

MAX_VERSION: Final = 1 << 62
_A = AssignmentState


class Journal(Protocol):
    """Where the state is kept."""

    def save(self, state: State) -> None:
        """Make the state durable before returning; raise if that cannot be done."""
        ...


class Installer(Protocol):
    """Who acts. Outcomes come back through `Machine.handle`."""

    def carry_out(self, effect: EffectItem) -> None:
        """Begin to carry out an effect, again if need be; never raises."""
        ...


class Machine:
    """Drives the update machine: step, save, then act."""

    def __init__(self, state: State, journal: Journal, installer: Installer) -> None:
        self.state = state
        self._journal = journal
        self._installer = installer

    def handle(self, event: Event, now: float) -> None:
        """Take one fact in.

        Args:
            event: what happened.
            now: Unix seconds.

        Raises:
            Exception: what the journal raised; nothing happened, hand the event in again.
        """
        state, effects = step(self.state, event, now)
        if state != self.state:
            self._journal.save(state)
            self.state = state
        for effect in effects:
            self._installer.carry_out(effect)

    def resume(self) -> None:
        """Repeat the effects of the saved state, after a restart (`Restarted` comes before)."""
        for effect in pending(self.state):
            self._installer.carry_out(effect)


# --- the rules, each a function ---------------------------------------------------------


def accepts_version(stored: int, arrived: int) -> bool:
    """Tell whether a version applies: newer than the last one that did, and one to count on from."""
    return stored < arrived <= MAX_VERSION


# --- the machine --------------------------------------------------------------------------


def step(state: State, event: Event, now: float) -> tuple[State, list[EffectItem]]:
    """Take one fact in: the next state, and what to do once it is saved.

    Total: a fact that does not fit the state changes nothing (rule 8).

    Args:
        state: as it was saved.
        event: what happened.
        now: Unix seconds.
    """
    turn = Turn(state, now)
    match event:
        case DesiredArrived():
            _on_desired(turn, event)
        case Acknowledged(version=version):
            _on_acknowledged(turn, version)
        case FleetTimeHeard(at=at, key_id=key_id):
            turn.told_time(at, key_id)
        case Refreshed(metadata=metadata, keys=keys, until=until):
            turn.verified(metadata, keys, until)
        case Ticked() | ServeCrashed() | ServeUnable() | Restarted() | ClockJumped() | Steadied():
            on_everywhere(turn, event)
        case TakenBack():
            on_taken_back(turn, event)
        case _:
            slot = state.slots.get(event.slot)
            if slot and slot.work and slot.work.want.assignment_id == event.assignment_id:
                handler = HANDLERS.get((doing(slot), type(event)))
                if handler is not None:
                    handler(turn, slot, slot.work, event)
    return turn.finish()


def _on_desired(turn: Turn, event: DesiredArrived) -> None:
    if not accepts_version(turn.state.desired_version, event.version):
        return
    turn.change(
        desired_version=event.version,
        desired_key=event.key_id,
        director=event.desired.director,
    )
    turn.report()
    for name, want in sorted(event.desired.slots.items()):
        slot = turn.state.slots.get(name, Slot(name))
        if name_of(want) == slot.begun:
            turn.put(msgspec.structs.replace(slot, next=None))
        elif slot.work is None:
            turn.begin(slot, want)
        elif slot.work.ending is not None:
            turn.put(msgspec.structs.replace(slot, next=want))
        else:
            message = f"superseded by assignment {want.assignment_id}"
            turn.stop(slot, slot.work, Ending(_A.SUPERSEDED, "superseded", message), then=want)
    for name, slot in sorted(turn.state.slots.items()):
        if name not in event.desired.slots and slot.work is not None:
            if slot.work.ending is not None:
                turn.put(msgspec.structs.replace(slot, next=None))
            else:
                turn.stop(slot, slot.work, Ending(_A.CANCELED, "canceled", "no longer desired"))


def _on_acknowledged(turn: Turn, version: int) -> None:
    state = turn.state
    if accepts_version(state.reported_version, version):
        # the fleet knows of reports that this state does not: it was lost once
        turn.change(reported_version=version, acked_version=version)
        turn.report()
    elif state.acked_version < version <= state.reported_version:
        kept = [ended for ended in state.ended if ended.version > version]
        turn.change(acked_version=version, ended=kept)
