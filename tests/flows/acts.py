"""What takes a simulated device a while: verify, download, stage, activate, roll back.

Each act happens at one moment, and its outcome is the next fact for the update machine.
"""

from typing import TYPE_CHECKING

from agent.device_state import Doing
from agent.facts import (
    Activate,
    Activated,
    Download,
    Downloaded,
    EffectItem,
    Event,
    Failed,
    Rejected,
    RollBack,
    RolledBack,
    SmokeFailed,
    Stage,
    Staged,
    Verified,
    Verify,
)
from skerry.canonical import from_msgpack
from skerry.trust import DirectorTarget
from tests.flows.catalog import VARIANTS

if TYPE_CHECKING:
    from tests.flows.device import Device


def outcome_of(device: "Device", effect: EffectItem) -> Event | None:
    """Carry out an effect; return what came of it, None if it was called off meanwhile."""
    match effect:
        case Verify(slot=slot, assignment_id=key, want=want, director=director):
            if device.rng.random() < device.bad_network:
                return Failed(slot, key, "unreachable", "the fleet did not answer")
            targets = from_msgpack(director["targets.json"], list[DirectorTarget])
            assigned = next(t for t in targets if t.slot == slot)
            truth = device.by_path.get(want.target)
            if truth is None:
                return Rejected(slot, key, "unknown_target", f"no {want.target} in the catalog")
            seen = {"director/targets": int(director["version"]), "catalog/targets": 1}
            return Verified(slot, key, assigned, truth.released, seen)
        case Download(slot=slot, assignment_id=key, release=release):
            if device.rng.random() < device.bad_network:
                return Failed(slot, key, "unreachable", "the fleet did not answer")
            device.bundles[release.ref.bundle] = None
            return Downloaded(slot, key, list(VARIANTS))
        case Stage(slot=slot, assignment_id=key, release=release, variant=variant):
            manner = device.by_bundle[release.ref.bundle].manner
            if manner == "smoke" or (manner == "first_variant" and variant == VARIANTS[0]):
                return SmokeFailed(slot, key, variant, "golden_set", "12 of 40 disagree")
            if release.ref.bundle not in device.bundles:
                return Failed(slot, key, "gone", "the bundle is not here")
            device.smoked[release.ref.bundle] = None
            hold = "consent" if device.leave.refuses(key) else ""
            return Staged(slot, key, variant, hold, hold)
        case Activate(slot=slot, assignment_id=key, release=release):
            if not device.is_under_way(slot, key, Doing.ACTIVATING):
                return None  # the installer was told to stop meanwhile
            if release.ref.bundle not in device.bundles:
                return Failed(slot, key, "gone", "the bundle is not here")
            device.witness.activated(device, slot, release.ref.bundle)
            device.witness.permitted(device, key)
            device.swap(slot, release.ref.bundle)
            return Activated(slot, key)
        case RollBack(slot=slot, assignment_id=key, release=release):
            if not device.is_under_way(slot, key, Doing.ROLLING_BACK):
                return None
            device.swap(slot, release.ref.bundle if release else None)
            return RolledBack(slot, key)
    raise AssertionError(effect)
