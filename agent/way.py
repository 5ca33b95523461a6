"""The way of one assignment through the update machine, fact by fact (rules 3 to 6 and 9).

Each function takes in one outcome of what a slot is busy with; `HANDLERS` says which and when.
What comes to all slots at once is in `agent.nets`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from agent.device_state import Doing, Ending, Slot, State, Work
from agent.facts import (
    Activated,
    Downloaded,
    Failed,
    Held,
    Noted,
    ProbationObserved,
    Rejected,
    Release,
    RolledBack,
    Shadowed,
    SmokeFailed,
    Staged,
    Unfit,
    Verified,
)
from agent.probation import judge
from agent.turn import Turn
from skerry.errors import TrustError
from skerry.states import AssignmentState, Effect
from skerry.trust import check_assignment, check_floor, parse_target
from skerry.wire import ReleaseRef

__all__ = ["HANDLERS", "release_floor"]

# not an attack but an operator's mistake, and no failure of the release
_UNFIT_CODES: Final = frozenset({"wrong_hardware", "old_agent"})
MAX_PATH: Final = 64  # steps; what waits longer goes back and forth unsaid
_A = AssignmentState


def release_floor(state: State, slot: str) -> int:
    """Return the release counter below which a slot takes no release, 0 for none."""
    return state.floor.releases.get(slot, 0)


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
    if work.release is not None:
        # it has waited, and still holds: the device permits it now
        turn.enter(slot, work, _A.ACTIVATING)
        return
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
    work = msgspec.structs.replace(work, trials=[*work.trials, *event.trials])
    turn.stop(slot, work, Ending(_A.FAILED, event.code, event.message))


def _on_downloaded(turn: Turn, slot: Slot, work: Work, event: Downloaded) -> None:
    if not event.variants:
        return
    # every file was held against its digest as it came in
    work = msgspec.structs.replace(work, variants=event.variants)
    turn.enter(slot, work, _A.DOWNLOADED, _A.VERIFIED)


def _on_shadowed(turn: Turn, slot: Slot, work: Work, event: Shadowed) -> None:
    work = msgspec.structs.replace(work, shadow=event.report)
    turn.put(msgspec.structs.replace(slot, work=work))
    turn.report()


def _on_smoke_failed(turn: Turn, slot: Slot, work: Work, event: SmokeFailed) -> None:
    if event.variant not in work.variants:
        return
    rest = [variant for variant in work.variants if variant != event.variant]
    work = msgspec.structs.replace(work, trials=[*work.trials, *event.trials])
    if rest:
        work = msgspec.structs.replace(work, variants=rest)
        slot = msgspec.structs.replace(slot, work=work)
        turn.put(slot)
        turn.act(slot)
    else:
        turn.stop(slot, work, Ending(_A.FAILED, event.code, event.message))


def _on_staged(turn: Turn, slot: Slot, work: Work, event: Staged) -> None:
    if work.release is None or event.variant not in work.variants:
        return
    ref = msgspec.structs.replace(work.release.ref, variant=event.variant, since=turn.now)
    release = msgspec.structs.replace(work.release, ref=ref)
    work = msgspec.structs.replace(work, release=release, trials=[*work.trials, *event.trials])
    if event.hold:
        turn.enter(slot, work, _A.STAGED, _HOLDS[event.hold])
        _say(turn, slot, event.code, event.message)
    else:
        turn.enter(slot, work, _A.STAGED, _A.ACTIVATING)


def _on_held(turn: Turn, slot: Slot, work: Work, event: Held) -> None:
    if work.state is not _HOLDS[event.hold] and len(work.path) < MAX_PATH:
        turn.enter(slot, work, _HOLDS[event.hold])
    _say(turn, slot, event.code, event.message)


def _on_noted(turn: Turn, slot: Slot, work: Work, event: Noted) -> None:
    turn.note(slot, work, event.code, event.message)


def _say(turn: Turn, slot: Slot, code: str, message: str) -> None:
    slot = turn.state.slots[slot.name]
    assert slot.work is not None
    turn.note(slot, slot.work, code, message)


_HOLDS: Final = {"window": _A.WAITING_WINDOW, "consent": _A.WAITING_CONSENT}


def _on_activated(turn: Turn, slot: Slot, work: Work, event: Activated) -> None:
    work = msgspec.structs.replace(work, before=event.before)
    turn.enter(slot, work, _A.PROBATION)


def _on_activation_failed(turn: Turn, slot: Slot, work: Work, event: Failed) -> None:
    turn.stop(slot, work, Ending(_A.ROLLED_BACK, event.code, event.message))


def _on_observed(turn: Turn, slot: Slot, work: Work, event: ProbationObserved) -> None:
    verdict = judge(work.want.probation, event.live, turn.now - work.since, work.before)
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
HANDLERS: Final[dict[tuple[Doing, type], _Handler]] = {
    (Doing.VERIFYING, Noted): _on_noted,
    (Doing.DOWNLOADING, Noted): _on_noted,
    (Doing.STAGING, Noted): _on_noted,
    (Doing.VERIFYING, Verified): _on_verified,
    (Doing.VERIFYING, Rejected): _on_rejected,
    (Doing.VERIFYING, Failed): _on_failed,
    (Doing.DOWNLOADING, Downloaded): _on_downloaded,
    (Doing.DOWNLOADING, Rejected): _on_rejected,
    (Doing.DOWNLOADING, Unfit): _on_unfit,
    (Doing.DOWNLOADING, Failed): _on_failed,
    (Doing.STAGING, Staged): _on_staged,
    (Doing.STAGING, SmokeFailed): _on_smoke_failed,
    (Doing.STAGING, Shadowed): _on_shadowed,
    (Doing.STAGING, Failed): _on_failed,
    (Doing.WAITING, Held): _on_held,
    (Doing.WAITING, Noted): _on_noted,
    (Doing.WAITING, Verified): _on_verified,
    (Doing.WAITING, Rejected): _on_rejected,
    (Doing.ACTIVATING, Activated): _on_activated,
    (Doing.ACTIVATING, Failed): _on_activation_failed,
    (Doing.PROBATION, ProbationObserved): _on_observed,
    (Doing.ROLLING_BACK, RolledBack): _on_rolled_back,
}
