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

    verifying -> downloading -> staging -> activating -> probation -> (committed)
        |             |            |           |             |
        +------ rejected, incompatible,        +-> rolling_back -> (rolled_back, timed_out,
                failed, timed_out,                                  canceled, superseded)
                canceled, superseded
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from agent.device_state import CANDIDATE_SERVES, Doing, Ending, Slot, State, Work, doing, pending
from agent.facts import (
    Acknowledged,
    Activated,
    DesiredArrived,
    Downloaded,
    EffectItem,
    Event,
    Failed,
    FleetTimeHeard,
    ProbationObserved,
    Refreshed,
    Rejected,
    Release,
    Restore,
    RolledBack,
    ServeCrashed,
    ServeUnable,
    SmokeFailed,
    Staged,
    Ticked,
    Unfit,
    Verified,
)
from agent.probation import judge
from agent.turn import Turn, name_of
from skerry.errors import TrustError
from skerry.states import AssignmentState, Effect
from skerry.trust import check_assignment, check_floor, parse_target
from skerry.wire import ReleaseRef

__all__ = ["Installer", "Journal", "Machine", "accepts_version", "release_floor", "step"]

MAX_CRASHES: Final = 3  # of serve, in one probation
MAX_VERSION: Final = 1 << 62
# not an attack but an operator's mistake, and no failure of the release
_UNFIT_CODES: Final = frozenset({"wrong_hardware", "old_agent"})
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
        """Repeat the effects of the saved state, after a restart."""
        for effect in pending(self.state):
            self._installer.carry_out(effect)


# --- the rules, each a function ---------------------------------------------------------


def accepts_version(stored: int, arrived: int) -> bool:
    """Tell whether a version applies: newer than the last one that did, and one to count on from."""
    return stored < arrived <= MAX_VERSION


def release_floor(state: State, slot: str) -> int:
    """Return the release counter below which a slot takes no release, 0 for none."""
    return state.floor.releases.get(slot, 0)


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
        case Ticked() | ServeCrashed() | ServeUnable():
            _on_everywhere(turn, event)
        case _:
            slot = state.slots.get(event.slot)
            if slot and slot.work and slot.work.want.assignment_id == event.assignment_id:
                handler = _HANDLERS.get((doing(slot), type(event)))
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


def _on_everywhere(turn: Turn, event: Ticked | ServeCrashed | ServeUnable) -> None:
    for _, slot in sorted(turn.state.slots.items()):
        if slot.work is None or slot.work.ending is not None:
            continue
        match event:
            case Ticked():
                _on_ticked(turn, slot, slot.work)
            case ServeCrashed() if doing(slot) is Doing.PROBATION:
                _on_crashed(turn, slot, slot.work)
            case ServeUnable(message=message) if doing(slot) in CANDIDATE_SERVES:
                turn.stop(slot, slot.work, Ending(_A.ROLLED_BACK, "serve_failed", message))
    if isinstance(event, ServeUnable) and not turn.effects:
        _fall_back(turn)


def _on_ticked(turn: Turn, slot: Slot, work: Work) -> None:
    if turn.now - work.path[0].at >= work.want.deadline_s:
        message = f"no end within {work.want.deadline_s:.0f} s"
        turn.stop(slot, work, Ending(_A.TIMED_OUT, "deadline", message))


def _on_crashed(turn: Turn, slot: Slot, work: Work) -> None:
    work = msgspec.structs.replace(work, crashes=work.crashes + 1)
    slot = msgspec.structs.replace(slot, work=work)
    turn.put(slot)
    if work.crashes >= MAX_CRASHES:
        message = f"the serving process ended {work.crashes} times in probation"
        turn.stop(slot, work, Ending(_A.ROLLED_BACK, "serve_crashed", message))


def _fall_back(turn: Turn) -> None:
    """Return the slot that changed last: nothing is under way, and serve does not start."""
    slots = [slot for slot in turn.state.slots.values() if slot.current and slot.previous]
    if not slots:
        return
    slot = max(slots, key=lambda slot: (slot.current.ref.since if slot.current else 0.0, slot.name))
    release = slot.previous
    assert release is not None
    turn.put(msgspec.structs.replace(slot, current=release, previous=None))
    turn.report()
    turn.effects.append(Restore(slot.name, release))


def _on_verified(turn: Turn, slot: Slot, work: Work, event: Verified) -> None:
    try:
        _refuse(turn.state, slot, work, event)
    except TrustError as error:
        unfit = error.code in _UNFIT_CODES
        ending = Ending(_A.INCOMPATIBLE if unfit else _A.REJECTED, error.code, str(error))
        turn.end(slot, work, ending, Effect.NO_STATE_CHANGE)
        return
    turn.verified(event.metadata, event.keys, event.until)
    released = event.released
    bundle = "sha256:" + released.sha256
    if slot.current is not None and slot.current.ref.bundle == bundle:
        turn.end(slot, work, Ending(_A.ALREADY_INSTALLED, "", ""), None)
        return
    path = parse_target(released.path)
    release = Release(
        ref=ReleaseRef(path.model, path.model_version, bundle, variant=""),
        target=released.path,
        length=released.length,
        release_counter=released.release_counter,
        may_fall_back_to=released.may_fall_back_to,
        patches=released.patches,
    )  # fmt: skip
    turn.enter(slot, msgspec.structs.replace(work, release=release), _A.DOWNLOADING)


def _refuse(state: State, slot: Slot, work: Work, event: Verified) -> None:
    """Refuse what TUF lets pass and `skerry.trust` does not."""
    check_floor(state.floor.metadata, event.metadata)
    want = work.want
    if (event.released.path, "sha256:" + event.released.sha256) != (want.target, want.bundle):
        raise TrustError(
            f"expected {want.target} of {want.bundle}, the metadata says "
            f"{event.released.path} of sha256:{event.released.sha256}",
            "disagreement",
        )
    running = slot.current
    wanted_back = {release.ref.bundle for release in (running, slot.previous) if release}
    check_assignment(
        event.assigned,
        event.released,
        device=state.host.device_id,
        slot=slot.name,
        assignment_id=want.assignment_id,
        hw_class=state.host.hw_class,
        agent_version=state.host.agent,
        floor=release_floor(state, slot.name),
        fall_back_to=frozenset(wanted_back | set(running.may_fall_back_to if running else ())),
    )


def _on_rejected(turn: Turn, slot: Slot, work: Work, event: Rejected) -> None:
    turn.end(slot, work, Ending(_A.REJECTED, event.code, event.message), Effect.NO_STATE_CHANGE)


def _on_unfit(turn: Turn, slot: Slot, work: Work, event: Unfit) -> None:
    # the manifest is there, and says that the rest is of no use here
    work = turn.along(work, _A.DOWNLOADED)
    ending = Ending(_A.INCOMPATIBLE, "no_variant", event.message)
    turn.end(slot, work, ending, Effect.NO_STATE_CHANGE)


def _on_failed(turn: Turn, slot: Slot, work: Work, event: Failed) -> None:
    turn.stop(slot, work, Ending(_A.FAILED, event.code, event.message))


def _on_downloaded(turn: Turn, slot: Slot, work: Work, event: Downloaded) -> None:
    if not event.variants:
        return
    # every file was held against its digest as it came in
    work = msgspec.structs.replace(work, variants=event.variants)
    turn.enter(slot, work, _A.DOWNLOADED, _A.VERIFIED)


def _on_smoke_failed(turn: Turn, slot: Slot, work: Work, event: SmokeFailed) -> None:
    tried, *rest = work.variants
    if event.variant != tried:
        return
    if rest:
        work = msgspec.structs.replace(work, variants=rest)
        slot = msgspec.structs.replace(slot, work=work)
        turn.put(slot)
        turn.act(slot)
    else:
        turn.stop(slot, work, Ending(_A.FAILED, event.code, event.message))


def _on_staged(turn: Turn, slot: Slot, work: Work, event: Staged) -> None:
    if work.release is None or event.variant != work.variants[0]:
        return
    ref = msgspec.structs.replace(work.release.ref, variant=event.variant, since=turn.now)
    release = msgspec.structs.replace(work.release, ref=ref)
    work = msgspec.structs.replace(work, release=release)
    turn.enter(slot, work, _A.STAGED, _A.ACTIVATING)


def _on_activated(turn: Turn, slot: Slot, work: Work, event: Activated) -> None:
    turn.enter(slot, work, _A.PROBATION)


def _on_activation_failed(turn: Turn, slot: Slot, work: Work, event: Failed) -> None:
    turn.stop(slot, work, Ending(_A.ROLLED_BACK, event.code, event.message))


def _on_observed(turn: Turn, slot: Slot, work: Work, event: ProbationObserved) -> None:
    verdict = judge(work.want.probation, event.live, turn.now - work.since)
    if verdict is None:
        return
    code, message = verdict
    if code != "ok":
        turn.stop(slot, work, Ending(_A.ROLLED_BACK, code, message))
        return
    release = work.release
    assert release is not None
    turn.raise_releases({slot.name: release.release_counter})
    slot = msgspec.structs.replace(slot, current=release, previous=slot.current)
    turn.end(slot, work, Ending(_A.COMMITTED, "", ""), None, live=event.live)


def _on_rolled_back(turn: Turn, slot: Slot, work: Work, event: RolledBack) -> None:
    assert work.ending is not None
    then = slot.next
    slot = turn.end(slot, work, work.ending, Effect.ROLLED_BACK)
    if then is not None:
        turn.begin(slot, then)


_Handler = Callable[[Turn, Slot, Work, Any], None]
_HANDLERS: Final[dict[tuple[Doing, type], _Handler]] = {
    (Doing.VERIFYING, Verified): _on_verified,
    (Doing.VERIFYING, Rejected): _on_rejected,
    (Doing.VERIFYING, Failed): _on_failed,
    (Doing.DOWNLOADING, Downloaded): _on_downloaded,
    (Doing.DOWNLOADING, Rejected): _on_rejected,
    (Doing.DOWNLOADING, Unfit): _on_unfit,
    (Doing.DOWNLOADING, Failed): _on_failed,
    (Doing.STAGING, Staged): _on_staged,
    (Doing.STAGING, SmokeFailed): _on_smoke_failed,
    (Doing.ACTIVATING, Activated): _on_activated,
    (Doing.ACTIVATING, Failed): _on_activation_failed,
    (Doing.PROBATION, ProbationObserved): _on_observed,
    (Doing.ROLLING_BACK, RolledBack): _on_rolled_back,
}
