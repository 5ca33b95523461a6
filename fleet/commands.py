"""What operators may do, as methods: each checks, acts, and leaves a line in the audit trail.

All of them block on the database or the disk; an event loop calls them in a thread.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import IO, Any, BinaryIO, Final

import msgspec

from fleet.actions import Action, act
from fleet.bundles import MAX_BUNDLE_BYTES, Bundles, Published
from fleet.catalog import Catalog
from fleet.dispatch import Dispatcher
from fleet.engine import Engine, candidates
from fleet.mqtt import Sender
from fleet.plan import Plan, Rollout
from fleet.quarantine import Quarantine
from fleet.registry import Registry
from fleet.rollout import draft
from fleet.store import Store
from fleet.store_releases import Release
from fleet.targeting import select
from skerry.bundle import Bundle, read_bundle
from skerry.canonical import from_json
from skerry.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    UsageError,
)
from skerry.ids import check_id
from skerry.manifest import Evaluation, parse_baseline
from skerry.states import DeviceState
from skerry.trust import parse_target
from skerry.wire import Cmd, Policy, policy_fault

__all__ = ["Commands", "DeviceToken"]

log = logging.getLogger(__name__)

CMD_VALID: Final = timedelta(minutes=5)
MAX_ARGS: Final = 16
MAX_WORD: Final = 64  # characters of a verb, or of an argument's name
MAX_VALUE: Final = 1024


class DeviceToken(msgspec.Struct, frozen=True):
    """A one-time enrolment token; the fleet itself keeps only its hash."""

    device_id: str
    token: str


class Commands:
    """The operators' actions on one fleet."""

    def __init__(
        self,
        *,
        store: Store,
        dispatcher: Dispatcher,
        engine: Engine,
        sender: Sender,
        registry: Registry,
        bundles: Bundles,
        catalog: Catalog,
        fleet_url: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._engine = engine
        self._sender = sender
        self._registry = registry
        self._bundles = bundles
        self._catalog = catalog
        self._fleet_url = fleet_url
        self._clock = clock
        self.quarantine: Final = Quarantine(registry, store, clock)

    # --- releases ---------------------------------------------------------------------

    def publish(self, bundle: BinaryIO, metadata: bytes, actor: str) -> Published:
        """Take a signed bundle in; a second time changes nothing.

        Raises:
            FormatError: not a bundle, damaged, or too large; or not metadata.
            TrustError: not signed, or against a rule of the catalog.
            ConflictError: somebody released in between.
        """
        now = self._clock()
        # before the catalog names it for ever: what the fleet itself reads of it is readable
        _read_inside(read_bundle(bundle, limit_bytes=MAX_BUNDLE_BYTES))
        bundle.seek(0)
        published = self._bundles.publish(bundle, metadata, now)
        self._keep(published, now)
        detail = {"bundle": published.bundle.digest, "new": published.new}
        self._note(actor, "release.publish", published.target.path, detail)
        return published

    def export(self, model: str, version: str, out: BinaryIO) -> str:
        """Write the bundle file of a version, or of the ``latest``; return its file name.

        Raises:
            NotFoundError: no such version is published.
        """
        found = [
            release
            for release in self._store.releases.of_model(model)
            if version in ("latest", release.manifest.model_version)
        ]
        if not found:
            raise NotFoundError(f"expected a published version {version!r} of {model!r}, none is")
        release = max(found, key=lambda r: (r.published_at, r.target.release_counter))
        self._bundles.export(release.bundle, out)
        return f"{model}-{release.manifest.model_version}.skerry"

    def patch_size(self, digest: str) -> int:
        """Return the bytes of a patch that a release lists; see `Bundles.patch_size`."""
        return self._bundles.patch_size(digest)

    def add_patch(self, digest: str, file: IO[bytes], actor: str) -> bool:
        """Take in a patch that a release lists; see `Bundles.add_patch`."""
        new = self._bundles.add_patch(digest, file)
        if new:
            self._note(actor, "patch.publish", digest, {})
        return new

    def reconcile(self) -> int:
        """Bring releases that only the catalog knows into the database; return how many.

        The catalog is written before the database: a crash in between leaves one behind.
        """
        known = {release.target.path for release in self._store.releases.all()}
        brought = 0
        for target in self._catalog.releases():
            if target.path in known:
                continue
            try:
                bundle = self._bundles.open(target)
                publisher = parse_target(target.path).publisher
                self._keep(Published(publisher, target, bundle, new=False), self._clock())
                brought += 1
            except SkerryError:
                log.exception("%s is in the catalog and cannot be read here", target.path)
        return brought

    def _keep(self, published: Published, now: datetime) -> None:
        bundle = published.bundle
        if self._store.releases.by_bundle(bundle.digest) is not None:
            return
        evaluation, baseline = _read_inside(bundle)
        release = Release(published.target, bundle.manifest, evaluation, now.timestamp())
        sizes = {digest: len(data) for digest, data in bundle.blobs.items()}
        self._store.releases.add(release, baseline=baseline, sizes=sizes)

    # --- rollouts ---------------------------------------------------------------------

    def create_rollout(self, plan: Plan, actor: str) -> str:
        """Make a rollout of a published release, submit it, and return its id.

        Raises:
            NotFoundError: the release is not published.
            UsageError: the plan cannot be carried out.
            RefusedError: a device runs the release in another slot.
        """
        release = self._store.releases.get(plan.target)
        version = plan.model_version.replace(".", "-")
        rollout_id = check_id(f"{plan.model[:32]}-{version[:16]}-{secrets.token_hex(3)}", "rollout")
        devices = select(plan.selector, candidates(self._store), rollout_id)
        rollout = draft(rollout_id, plan, devices, self._clock().timestamp())
        elsewhere = self._store.rollouts.in_other_slots(plan.target, plan.slot)
        twice = sorted(elsewhere.keys() & set(devices))
        if twice:
            raise RefusedError(
                f"expected a release once on a device, and {plan.target} has slot "
                f"{elsewhere[twice[0]]} of {twice[0]}"
                + (f" and of {len(twice) - 1} more" if len(twice) > 1 else "")
                + f": roll it back there first, or leave these devices out of slot {plan.slot}"
            )
        self._store.rollouts.create(rollout, release.bundle)
        self._note(actor, "rollout.create", rollout_id, {"target": plan.target})
        self.act(rollout_id, Action.SUBMIT, actor)
        return rollout_id

    def pause(self, rollout_id: str, actor: str) -> None:
        """Hold a rollout: no new device is told."""
        self.act(rollout_id, Action.PAUSE, actor)

    def resume(self, rollout_id: str, actor: str) -> None:
        """Go on with a paused rollout."""
        self.act(rollout_id, Action.RESUME, actor)

    def abort(self, rollout_id: str, actor: str) -> None:
        """End a rollout; what is committed stays."""
        self.act(rollout_id, Action.ABORT, actor)

    def rollback(self, rollout_id: str, actor: str) -> None:
        """Take every device of a rollout back."""
        self.act(rollout_id, Action.ROLL_BACK, actor)

    def act(self, rollout_id: str, action: Action, actor: str) -> Rollout:
        """Do something to a rollout, and return it as it is then.

        Raises:
            NotFoundError: no such rollout.
            InvalidTransition: it cannot go there from where it is.
            RefusedError: not this rollout, not now.
        """
        now = self._clock()
        with self._store.rollouts.step(rollout_id) as step:
            decisions = act(step.rollout, action, step.assignments(), now.timestamp(), actor)
            changed = self._dispatcher.carry_out(step, decisions, now)
            rollout = step.rollout
        self._note(actor, f"rollout.{action}", rollout_id, {"state": rollout.state})
        self._engine.send_desired(changed)
        return rollout

    # --- devices ----------------------------------------------------------------------

    def preauthorize(
        self, device_id: str, tags: Mapping[str, str], actor: str, *, again: bool = False
    ) -> DeviceToken:
        """Allow a device to enrol, and return its one-time token.

        Raises:
            UsageError: a malformed id or tag.
            ConflictError: the device has enrolled, and `again` was not given.
            RefusedError: the device was decommissioned.
        """
        token = self._registry.preauthorize(
            device_id, tags=tags, fleet_url=self._fleet_url, now=self._clock(), again=again
        )
        self._note(actor, "device.preauthorize", device_id, {"tags": dict(tags)})
        return DeviceToken(device_id, token)

    def move_device(self, device: str, state: DeviceState, actor: str) -> None:
        """Accept, reject or decommission a device.

        Raises:
            NotFoundError: no such device.
            InvalidTransition: it cannot go there from where it is.
        """
        now = self._clock()
        self._registry.move(device, state, now)
        self._store.devices.forget_key(device)
        self.quarantine.look(now)
        self._note(actor, f"device.{state}", device, {})

    def command(self, device: str, verb: str, args: Mapping[str, str], actor: str) -> str:
        """Send a command to a device, to be run at most once; return its id."""
        if not (verb.isascii() and verb.isidentifier() and len(verb) <= MAX_WORD):
            raise UsageError(f"expected a verb such as inventory, got {verb[:40]!r}")
        if len(args) > MAX_ARGS or any(
            len(key) > MAX_WORD or len(value) > MAX_VALUE for key, value in args.items()
        ):
            raise UsageError(
                f"expected at most {MAX_ARGS} arguments of {MAX_VALUE} characters each"
            )
        now = self._clock()
        command_id = f"c-{secrets.token_hex(8)}"
        expires = (now + CMD_VALID).timestamp()
        self._store.alerts.add_command(
            command_id, device, verb, args, now=now.timestamp(), expires_at=expires
        )
        self._note(actor, "device.command", device, {"id": command_id, "verb": verb})
        self._sender.cmd(device, Cmd(command_id, verb, dict(args)), expires)
        return command_id

    # --- policy and alerts --------------------------------------------------------------

    def policy(self) -> Policy:
        """Return the policy that holds."""
        return self._store.alerts.policy()

    def set_policy(self, policy: Policy, actor: str) -> Policy:
        """Put a policy in force, send it to every device, and return it with its version.

        Raises:
            UsageError: a value out of bounds.
            ConflictError: somebody else changed it at the same moment.
        """
        if fault := policy_fault(policy):
            raise UsageError(fault)
        version = self._store.alerts.policy().version + 1
        policy = msgspec.structs.replace(policy, version=version)
        self._store.alerts.put_policy(policy, self._clock().timestamp())
        self._note(actor, "policy.set", f"version {version}", msgspec.to_builtins(policy))
        self._sender.policy(policy)
        return policy

    def acknowledge_alert(self, alert_id: str, actor: str) -> None:
        """Note that an operator has seen an alert.

        Raises:
            NotFoundError: no such alert.
            ConflictError: it is closed already.
        """
        alert = self._store.alerts.get_alert(alert_id)
        if alert.state == "acknowledged":
            return
        if not self._store.alerts.acknowledge(alert_id, actor, self._clock().timestamp()):
            raise ConflictError(f"{alert_id} is closed: its cause is gone")
        self._note(actor, "alert.acknowledge", alert_id, {})

    def _note(self, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        self._store.alerts.note(actor, action, subject, detail, self._clock().timestamp())


def _read_inside(bundle: Bundle) -> tuple[Evaluation, bytes]:
    """Return a bundle's evaluation and its baseline file, both checked.

    Raises:
        FormatError: one of them is not what the manifest promises.
    """
    manifest = bundle.manifest
    for reference in (manifest.evaluation, manifest.baseline):
        if reference.digest not in bundle.blobs:
            raise FormatError(f"the manifest names {reference.digest}, which no layer is")
    baseline = bundle.blobs[manifest.baseline.digest]
    parse_baseline(baseline)
    return from_json(bundle.blobs[manifest.evaluation.digest], Evaluation), baseline
