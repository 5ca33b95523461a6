"""What happens to a device's slots, and what is done about it: events and effects as data.

An event is a past fact, an effect an act that may be carried out twice. Both name their
slot and assignment, so that a late outcome is known for what it is.
"""

import msgspec

from skerry.trials import ShadowReport, Trial
from skerry.trust import CatalogTarget, DirectorTarget, PatchRef
from skerry.wire import Desired, LiveStats, Probation, ReleaseRef, SlotDesired

__all__ = [
    "Acknowledged",
    "Activate",
    "Activated",
    "ClockJumped",
    "DesiredArrived",
    "Discard",
    "Download",
    "Downloaded",
    "EffectItem",
    "Event",
    "Failed",
    "FleetTimeHeard",
    "Held",
    "Noted",
    "Observe",
    "ProbationObserved",
    "Refreshed",
    "Rejected",
    "Release",
    "Report",
    "Restarted",
    "Restore",
    "RollBack",
    "RolledBack",
    "ServeCrashed",
    "ServeUnable",
    "Shadowed",
    "SmokeFailed",
    "Stage",
    "Staged",
    "Steadied",
    "TakenBack",
    "Ticked",
    "Unfit",
    "Verified",
    "Verify",
    "Wait",
]


class Release(msgspec.Struct, frozen=True, omit_defaults=True):
    """A verified release, as a slot holds it."""

    ref: ReleaseRef
    target: str  # the catalog's path
    length: int  # of the OCI manifest, bytes
    release_counter: int
    may_fall_back_to: list[str] = []
    patches: list[PatchRef] = []


# --- events: past facts -----------------------------------------------------------------


class DesiredArrived(msgspec.Struct, frozen=True, tag=True):
    """The fleet said what shall run; its signature is verified, its age is not."""

    version: int
    desired: Desired
    key_id: str = ""  # of the message key that signed it


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """The fleet has stored `reported` up to this version."""

    version: int


class FleetTimeHeard(msgspec.Struct, frozen=True, tag=True):
    """The fleet answered our nonce: it is so late, Unix seconds, by this message key."""

    at: float
    key_id: str = ""


class Refreshed(msgspec.Struct, frozen=True, tag=True):
    """Metadata was verified, for no assignment."""

    metadata: dict[str, int]  # versions seen, such as "catalog/timestamp"
    keys: list[str]  # ids of the message keys that the director root names
    until: dict[str, float] = {}  # by repository: when its timestamp expires


class Ticked(msgspec.Struct, frozen=True, tag=True):
    """Time has passed."""


class ServeCrashed(msgspec.Struct, frozen=True, tag=True):
    """The serving process ended by itself; it is being started again."""


class ServeUnable(msgspec.Struct, frozen=True, tag=True):
    """The serving process failed to start three times in a row, or a slot's files cannot be had."""

    message: str
    slot: str = ""  # whose fault it is, empty where nobody knows


class Restarted(msgspec.Struct, frozen=True, tag=True):
    """The agent has started, with a state that another one saved."""


class ClockJumped(msgspec.Struct, frozen=True, tag=True):
    """The device's time was put right by so many seconds; what was noted before goes by the old one."""

    by: float


class Steadied(msgspec.Struct, frozen=True, tag=True):
    """What is committed has served for a good while without a crash."""


class TakenBack(msgspec.Struct, frozen=True, tag=True):
    """A slot shall go back to what it ran before, if it still runs this bundle."""

    slot: str
    bundle: str
    by: str  # who wants it, for people


class Noted(msgspec.Struct, frozen=True, tag=True):
    """Why an assignment does not get on at the moment; nothing has failed."""

    slot: str
    assignment_id: str
    code: str  # empty: it gets on again
    message: str


class Verified(msgspec.Struct, frozen=True, tag=True):
    """Director and catalog metadata are valid by TUF; this is what they say."""

    slot: str
    assignment_id: str
    assigned: DirectorTarget
    released: CatalogTarget
    metadata: dict[str, int]  # versions seen, such as "catalog/timestamp"
    keys: list[str] = []  # ids of the message keys that the director root names
    until: dict[str, float] = {}  # by repository: when its timestamp expires


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """Metadata or content failed a check."""

    slot: str
    assignment_id: str
    code: str
    message: str


class Unfit(msgspec.Struct, frozen=True, tag=True):
    """The bundle has no variant for this device."""

    slot: str
    assignment_id: str
    message: str


class Downloaded(msgspec.Struct, frozen=True, tag=True):
    """The files of the best variant are here, by digest; `variants` fit, best first."""

    slot: str
    assignment_id: str
    variants: list[str]


class Staged(msgspec.Struct, frozen=True, tag=True):
    """This variant ran, agreed with the golden set, and is the best here."""

    slot: str
    assignment_id: str
    variant: str
    hold: str = ""  # what it has to wait for, as in `Held`
    code: str = ""
    message: str = ""
    trials: list[Trial] = []  # of every variant that was measured


class Held(msgspec.Struct, frozen=True, tag=True):
    """The device does not permit the activation yet."""

    slot: str
    assignment_id: str
    hold: str  # window or consent
    code: str
    message: str


class SmokeFailed(msgspec.Struct, frozen=True, tag=True):
    """This variant did not run, or did not agree with the golden set."""

    slot: str
    assignment_id: str
    variant: str
    code: str
    message: str
    trials: list[Trial] = []  # what was measured of it


class Shadowed(msgspec.Struct, frozen=True, tag=True):
    """What a variant did beside what serves, whatever comes of it."""

    slot: str
    assignment_id: str
    report: ShadowReport


class Activated(msgspec.Struct, frozen=True, tag=True):
    """The candidate is warm and takes live requests."""

    slot: str
    assignment_id: str
    before: LiveStats | None = None  # what the committed release did until then


class ProbationObserved(msgspec.Struct, frozen=True, tag=True):
    """What the candidate did so far on live requests."""

    slot: str
    assignment_id: str
    live: LiveStats


class RolledBack(msgspec.Struct, frozen=True, tag=True):
    """What was committed serves again."""

    slot: str
    assignment_id: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """An effect could not be carried out: no metadata, no download, no start."""

    slot: str
    assignment_id: str
    code: str
    message: str
    trials: list[Trial] = []  # what was measured before


Event = (
    DesiredArrived
    | Acknowledged
    | FleetTimeHeard
    | Refreshed
    | Ticked
    | ServeCrashed
    | ServeUnable
    | Restarted
    | ClockJumped
    | Steadied
    | TakenBack
    | Noted
    | Verified
    | Rejected
    | Unfit
    | Downloaded
    | Staged
    | Held
    | SmokeFailed
    | Shadowed
    | Activated
    | ProbationObserved
    | RolledBack
    | Failed
)

# --- effects: acts that may be repeated -----------------------------------------------------


class Verify(msgspec.Struct, frozen=True, tag=True):
    """Verify director and catalog: `Verified`, `Rejected` or `Failed`."""

    slot: str
    assignment_id: str
    want: SlotDesired
    director: dict[str, bytes]


class Download(msgspec.Struct, frozen=True, tag=True):
    """Fetch manifest and files of the best variant: `Downloaded`, `Unfit` or `Failed`."""

    slot: str
    assignment_id: str
    release: Release


class Stage(msgspec.Struct, frozen=True, tag=True):
    """Run variants in a watched child against the golden set: `Staged` or `SmokeFailed`."""

    slot: str
    assignment_id: str
    release: Release
    variant: str  # the first choice
    others: list[str] = []  # that may be better here


class Wait(msgspec.Struct, frozen=True, tag=True):
    """Wait until the device permits it, then verify again: `Held`, at last `Verified` or `Rejected`."""

    slot: str
    assignment_id: str
    want: SlotDesired


class Activate(msgspec.Struct, frozen=True, tag=True):
    """Let the candidate serve: `Activated` or `Failed`."""

    slot: str
    assignment_id: str
    release: Release


class Observe(msgspec.Struct, frozen=True, tag=True):
    """Watch the candidate on live traffic: `ProbationObserved`, again and again."""

    slot: str
    assignment_id: str
    probation: Probation


class RollBack(msgspec.Struct, frozen=True, tag=True):
    """Let the committed release serve again, or nothing if there is none: `RolledBack`."""

    slot: str
    assignment_id: str
    release: Release | None


class Restore(msgspec.Struct, frozen=True, tag=True):
    """Let an earlier release serve, outside of any assignment; nothing is answered."""

    slot: str
    release: Release


class Discard(msgspec.Struct, frozen=True, tag=True):
    """Stop what is no longer under way, and remove all bundles but these."""

    keep: list[str]


class Report(msgspec.Struct, frozen=True, tag=True):
    """Tell the fleet, until it acknowledges this version or a later one."""

    version: int


EffectItem = (
    Verify | Download | Stage | Wait | Activate | Observe | RollBack | Restore | Discard | Report
)
