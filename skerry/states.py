"""The state machines that fleet, agent and console agree on, each as a table.

A table maps a state to the states that may follow it. `advance` is the only way to
take a step: an unlisted pair raises. The diagrams in the docs are drawn from these
tables (``tools/draw_states.py``).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

from skerry.errors import InvalidTransition

__all__ = [
    "ANALYSIS",
    "ASSIGNMENT",
    "ASSIGNMENT_ENDS",
    "ASSIGNMENT_FAILURES",
    "ASSIGNMENT_WAITS",
    "DEVICE",
    "ROLLOUT",
    "ROLLOUT_ENDS",
    "STAGE",
    "AnalysisState",
    "AssignmentState",
    "DeviceState",
    "Effect",
    "PauseReason",
    "RolloutState",
    "StageState",
    "advance",
]


class RolloutState(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    AWAITING_APPROVAL = "awaiting_approval"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    ABORTED = "aborted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    DENIED = "denied"
    ARCHIVED = "archived"


class PauseReason(StrEnum):
    """Why a rollout is paused; a paused rollout always has one."""

    MANUAL = "manual"
    STAGE_GATE = "stage_gate"
    APPROVAL = "approval"
    INCONCLUSIVE = "inconclusive"
    FAILURE_THRESHOLD = "failure_threshold"
    INSUFFICIENT_DATA = "insufficient_data"
    WINDOW_CLOSED = "window_closed"


class StageState(StrEnum):
    """Where one stage of a rollout stands."""

    PENDING = "pending"
    ACTIVE = "active"
    BAKING = "baking"
    ANALYZING = "analyzing"
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


class AssignmentState(StrEnum):
    """Where one device stands in one rollout."""

    QUEUED = "queued"
    NOTIFIED = "notified"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    VERIFIED = "verified"
    STAGED = "staged"
    WAITING_WINDOW = "waiting_window"
    WAITING_CONSENT = "waiting_consent"
    ACTIVATING = "activating"
    PROBATION = "probation"
    COMMITTED = "committed"
    ALREADY_INSTALLED = "already_installed"
    INCOMPATIBLE = "incompatible"
    REJECTED = "rejected"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"
    DECOMMISSIONED = "decommissioned"


class Effect(StrEnum):
    """What a failed assignment left behind on the device."""

    NO_STATE_CHANGE = "no_state_change"
    ROLLED_BACK = "rolled_back"
    STATE_UNKNOWN = "state_unknown"


class AnalysisState(StrEnum):
    """The verdict of a metric analysis."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class DeviceState(StrEnum):
    """Where a device stands in its enrolment."""

    PREAUTHORIZED = "preauthorized"
    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DECOMMISSIONED = "decommissioned"


State = TypeVar("State", bound=StrEnum)
Table = Mapping[State, frozenset[State]]

_R = RolloutState
ROLLOUT: Final[Table[RolloutState]] = {
    _R.DRAFT: frozenset({_R.AWAITING_APPROVAL, _R.SCHEDULED, _R.ABORTED}),
    _R.AWAITING_APPROVAL: frozenset({_R.SCHEDULED, _R.DENIED, _R.ABORTED}),
    _R.SCHEDULED: frozenset({_R.RUNNING, _R.ABORTED}),
    _R.RUNNING: frozenset({_R.PAUSED, _R.COMPLETED, _R.ABORTED, _R.ROLLING_BACK}),
    _R.PAUSED: frozenset({_R.RUNNING, _R.ABORTED, _R.ROLLING_BACK}),
    _R.COMPLETED: frozenset({_R.ROLLING_BACK, _R.ARCHIVED}),
    _R.ABORTED: frozenset({_R.ROLLING_BACK, _R.ARCHIVED}),
    _R.ROLLING_BACK: frozenset({_R.ROLLED_BACK}),
    _R.ROLLED_BACK: frozenset({_R.ARCHIVED}),
    _R.DENIED: frozenset({_R.ARCHIVED}),
    _R.ARCHIVED: frozenset(),
}
ROLLOUT_ENDS: Final = frozenset({_R.COMPLETED, _R.ABORTED, _R.ROLLED_BACK, _R.DENIED, _R.ARCHIVED})

_S = StageState
STAGE: Final[Table[StageState]] = {
    _S.PENDING: frozenset({_S.ACTIVE, _S.SKIPPED}),
    _S.ACTIVE: frozenset({_S.BAKING, _S.FAILED, _S.INCONCLUSIVE, _S.SKIPPED}),
    _S.BAKING: frozenset({_S.ANALYZING, _S.FAILED, _S.INCONCLUSIVE, _S.SKIPPED}),
    _S.ANALYZING: frozenset({_S.PASSED, _S.FAILED, _S.INCONCLUSIVE, _S.SKIPPED}),
    # a stage that did not have enough data may be looked at again after a resume
    _S.INCONCLUSIVE: frozenset({_S.ACTIVE, _S.BAKING, _S.ANALYZING, _S.FAILED, _S.SKIPPED}),
    _S.PASSED: frozenset(),
    _S.FAILED: frozenset(),
    _S.SKIPPED: frozenset(),
}

_A = AssignmentState
_STOPPED = frozenset(
    {_A.FAILED, _A.REJECTED, _A.TIMED_OUT, _A.CANCELED, _A.SUPERSEDED, _A.DECOMMISSIONED}
)
_UNDONE = _STOPPED | {_A.ROLLED_BACK}
ASSIGNMENT: Final[Table[AssignmentState]] = {
    _A.QUEUED: frozenset({_A.NOTIFIED, _A.CANCELED, _A.SUPERSEDED, _A.DECOMMISSIONED}),
    _A.NOTIFIED: _STOPPED | {_A.DOWNLOADING, _A.ALREADY_INSTALLED, _A.INCOMPATIBLE},
    _A.DOWNLOADING: _STOPPED | {_A.DOWNLOADED},
    _A.DOWNLOADED: _STOPPED | {_A.VERIFIED, _A.INCOMPATIBLE},
    _A.VERIFIED: _STOPPED | {_A.STAGED, _A.INCOMPATIBLE},
    _A.STAGED: _STOPPED | {_A.WAITING_WINDOW, _A.WAITING_CONSENT, _A.ACTIVATING},
    _A.WAITING_WINDOW: _STOPPED | {_A.WAITING_CONSENT, _A.ACTIVATING},
    _A.WAITING_CONSENT: _STOPPED | {_A.WAITING_WINDOW, _A.ACTIVATING},
    _A.ACTIVATING: _UNDONE | {_A.PROBATION},
    _A.PROBATION: _UNDONE | {_A.COMMITTED},
    # a committed assignment is undone only by the fleet's rollback of its rollout
    _A.COMMITTED: frozenset({_A.ROLLED_BACK, _A.DECOMMISSIONED}),
    _A.ALREADY_INSTALLED: frozenset({_A.DECOMMISSIONED}),
    **{
        end: frozenset[AssignmentState]()
        for end in (
            _A.INCOMPATIBLE,
            _A.REJECTED,
            _A.FAILED,
            _A.ROLLED_BACK,
            _A.TIMED_OUT,
            _A.CANCELED,
            _A.SUPERSEDED,
            _A.DECOMMISSIONED,
        )
    },
}
ASSIGNMENT_ENDS: Final = frozenset(
    {
        _A.COMMITTED,
        _A.ALREADY_INSTALLED,
        _A.INCOMPATIBLE,
        _A.REJECTED,
        _A.FAILED,
        _A.ROLLED_BACK,
        _A.TIMED_OUT,
        _A.CANCELED,
        _A.SUPERSEDED,
        _A.DECOMMISSIONED,
    }
)
# the device is ready and will go on by itself: no failure, and no part of any time limit
ASSIGNMENT_WAITS: Final = frozenset({_A.WAITING_WINDOW, _A.WAITING_CONSENT})
ASSIGNMENT_FAILURES: Final = frozenset({_A.FAILED, _A.REJECTED, _A.ROLLED_BACK, _A.TIMED_OUT})

_V = AnalysisState
ANALYSIS: Final[Table[AnalysisState]] = {
    _V.PENDING: frozenset({_V.RUNNING, _V.ERROR}),
    _V.RUNNING: frozenset({_V.SUCCESSFUL, _V.FAILED, _V.INCONCLUSIVE, _V.ERROR}),
    _V.SUCCESSFUL: frozenset(),
    _V.FAILED: frozenset(),
    _V.INCONCLUSIVE: frozenset({_V.RUNNING}),
    _V.ERROR: frozenset({_V.RUNNING}),
}

_D = DeviceState
DEVICE: Final[Table[DeviceState]] = {
    _D.PREAUTHORIZED: frozenset({_D.PENDING, _D.ACCEPTED, _D.REJECTED, _D.DECOMMISSIONED}),
    _D.PENDING: frozenset({_D.ACCEPTED, _D.REJECTED, _D.DECOMMISSIONED}),
    # back to pending: two machines speak with its identity
    _D.ACCEPTED: frozenset({_D.PENDING, _D.REJECTED, _D.DECOMMISSIONED}),
    _D.REJECTED: frozenset({_D.ACCEPTED, _D.DECOMMISSIONED}),
    _D.DECOMMISSIONED: frozenset(),
}


def advance(table: Table[State], current: State, new: State) -> State:
    """Return the new state if the table lists the step.

    Raises:
        InvalidTransition: it does not.
    """
    if new not in table[current]:
        allowed = ", ".join(sorted(table[current])) or "nothing: it is an end"
        kind = type(current).__name__.removesuffix("State").lower()
        raise InvalidTransition(f"{kind}: {current} may be followed by {allowed}; got {new}")
    return new
