"""What operators may do, as methods: each checks, acts, and leaves a line in the audit trail.

All of them block on the database or the disk; an event loop calls them in a thread.
"""

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, BinaryIO, Final

import msgspec

from fleet.actions import Action, act
from fleet.bundles import Bundles, Published
from fleet.catalog import Catalog
from fleet.dispatch import Dispatcher
from fleet.engine import Engine, candidates
from fleet.mqtt import Sender
from fleet.plan import Plan, Rollout
from fleet.registry import Registry
from fleet.rollout import draft
from fleet.store import Store
from fleet.store_releases import Release
from fleet.targeting import select
from skerry.canonical import from_json
from skerry.errors import ConflictError, UsageError
from skerry.ids import check_id
from skerry.manifest import Evaluation
from skerry.states import DeviceState
from skerry.wire import Cmd, Policy

__all__ = ["Commands"]

CMD_VALID: Final = timedelta(minutes=5)
MIN_WINDOW_S: Final = 1.0
MAX_WINDOW_S: Final = 86400.0


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
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._engine = engine
        self._sender = sender
        self._registry = registry
        self._bundles = bundles
        self._catalog = catalog
        self._fleet_url = fleet_url

    # --- releases ---------------------------------------------------------------------

    def publish(self, file: BinaryIO, metadata: bytes, *, actor: str, now: datetime) -> Release:
        """Take a signed bundle in; a second time changes nothing.

        Raises:
            FormatError: not a bundle, damaged, or too large; or not metadata.
            TrustError: not signed, or against a rule of the catalog.
            ConflictError: somebody released in between.
        """
        published = self._bundles.publish(file, metadata, now)
        release = self._keep(published, now)
        self._note(actor, "release.publish", published.target.path, {"bundle": release.bundle}, now)
        return release

    def reconcile(self, now: datetime) -> int:
        """Bring releases that only the catalog knows into the database; return how many.

        The catalog is written before the database: a crash in between leaves one behind.
        """
        known = {release.target.path for release in self._store.releases.all()}
        missing = [t for t in self._catalog.releases() if t.path not in known]
        for target in missing:
            bundle = self._bundles.open(target)
            self._keep(Published(target.path.split("/")[1], target, bundle, new=False), now)
        return len(missing)

    def _keep(self, published: Published, now: datetime) -> Release:
        bundle, manifest = published.bundle, published.bundle.manifest
        release = Release(
            target=published.target,
            manifest=manifest,
            evaluation=from_json(bundle.blobs[manifest.evaluation.digest], Evaluation),
            published_at=now.timestamp(),
        )
        known = self._store.releases.by_bundle(release.bundle)
        if known is not None:
            return known
        sizes = {digest: len(data) for digest, data in bundle.blobs.items()}
        self._store.releases.add(
            release, baseline=bundle.blobs[manifest.baseline.digest], sizes=sizes
        )
        return release

    # --- rollouts ---------------------------------------------------------------------

    def create_rollout(self, plan: Plan, *, actor: str, now: datetime) -> Rollout:
        """Make a rollout of a published release and submit it.

        Raises:
            NotFoundError: the release is not published.
            UsageError: the plan cannot be carried out.
        """
        release = self._store.releases.get(plan.target)
        version = plan.model_version.replace(".", "-")
        rollout_id = check_id(f"{plan.model[:32]}-{version[:16]}-{secrets.token_hex(3)}", "rollout")
        devices = select(plan.selector, candidates(self._store), rollout_id)
        rollout = draft(rollout_id, plan, devices, now.timestamp())
        self._store.rollouts.create(rollout, release.bundle)
        self._note(actor, "rollout.create", rollout_id, {"target": plan.target}, now)
        return self.act(rollout_id, Action.SUBMIT, actor=actor, now=now)

    def act(self, rollout_id: str, action: Action, *, actor: str, now: datetime) -> Rollout:
        """Pause, resume, abort, roll back, approve, deny, archive, or skip a stage.

        Raises:
            NotFoundError: no such rollout.
            InvalidTransition: it cannot go there from where it is.
            RefusedError: not this rollout, not now.
        """
        with self._store.rollouts.step(rollout_id) as step:
            decisions = act(step.rollout, action, step.assignments(), now.timestamp(), actor)
            changed = self._dispatcher.carry_out(step, decisions, now)
            rollout = step.rollout
        self._note(actor, f"rollout.{action}", rollout_id, {"state": rollout.state}, now)
        self._engine.send_desired(changed)
        return rollout

    # --- devices ----------------------------------------------------------------------

    def preauthorize(
        self,
        device: str,
        tags: Mapping[str, str],
        *,
        actor: str,
        now: datetime,
        again: bool = False,
    ) -> str:
        """Return a one-time enrolment token for a device.

        Raises:
            UsageError: a malformed id or tag.
            ConflictError: the device has enrolled, and `again` was not given.
            RefusedError: the device was decommissioned.
        """
        token = self._registry.preauthorize(
            device, tags=tags, fleet_url=self._fleet_url, now=now, again=again
        )
        self._note(actor, "device.preauthorize", device, {"tags": dict(tags)}, now)
        return token

    def move_device(self, device: str, state: DeviceState, *, actor: str, now: datetime) -> None:
        """Accept, reject or decommission a device.

        Raises:
            NotFoundError: no such device.
            InvalidTransition: it cannot go there from where it is.
        """
        self._registry.move(device, state, now)
        self._store.devices.forget_key(device)
        self._note(actor, f"device.{state}", device, {}, now)

    def command(
        self, device: str, verb: str, args: Mapping[str, str], *, actor: str, now: datetime
    ) -> str:
        """Send a command to a device, to be run at most once; return its id."""
        if not verb.isidentifier():
            raise UsageError(f"expected a verb such as restart_serve, got {verb[:40]!r}")
        command_id = f"c-{secrets.token_hex(8)}"
        expires = (now + CMD_VALID).timestamp()
        self._store.alerts.add_command(
            command_id, device, verb, args, now=now.timestamp(), expires_at=expires
        )
        self._note(actor, "device.command", device, {"id": command_id, "verb": verb}, now)
        self._sender.cmd(device, Cmd(command_id, verb, dict(args)), expires)
        return command_id

    # --- policy and alerts --------------------------------------------------------------

    def set_policy(self, changes: Mapping[str, Any], *, actor: str, now: datetime) -> Policy:
        """Change fields of the policy, and send it to every device.

        Args:
            changes: field -> value; `version`, if given, must be the present one.
            actor: who does it.
            now: aware UTC.

        Raises:
            UsageError: an unknown field or a wrong value.
            ConflictError: somebody else changed it first.
        """
        old = self._store.alerts.policy()
        known = {field for field in Policy.__struct_fields__ if field != "version"}
        unknown = sorted(set(changes) - known - {"version"})
        if unknown:
            raise UsageError(f"expected fields of {', '.join(sorted(known))}; got {unknown[0]}")
        if changes.get("version", old.version) != old.version:
            raise ConflictError(
                f"expected the present version {old.version}, got {changes['version']}: "
                "somebody else changed the policy; read it again"
            )
        merged = {**msgspec.to_builtins(old), **changes, "version": old.version + 1}
        try:
            policy = msgspec.convert(merged, Policy)
        except msgspec.ValidationError as error:
            raise UsageError(f"expected a policy: {error}") from None
        if not MIN_WINDOW_S <= policy.window_s <= MAX_WINDOW_S:
            raise UsageError(
                f"expected window_s of {MIN_WINDOW_S:g} to {MAX_WINDOW_S:g}, got {policy.window_s:g}"
            )
        if not 0.0 <= policy.sample_rate <= 1.0 or policy.spread_s < 0.0:
            raise UsageError("expected sample_rate of 0 to 1 and spread_s of at least 0")
        self._store.alerts.put_policy(policy, now.timestamp())
        self._note(actor, "policy.set", f"version {policy.version}", dict(changes), now)
        self._sender.policy(policy)
        return policy

    def acknowledge_alert(self, alert_id: str, *, actor: str, now: datetime) -> None:
        """Note that an operator has seen an alert.

        Raises:
            NotFoundError: no such alert.
            ConflictError: it is closed already.
        """
        alert = self._store.alerts.get_alert(alert_id)
        if alert.state == "acknowledged":
            return
        if not self._store.alerts.acknowledge(alert_id, actor, now.timestamp()):
            raise ConflictError(f"{alert_id} is closed: its cause is gone")
        self._note(actor, "alert.acknowledge", alert_id, {}, now)

    def _note(
        self, actor: str, action: str, subject: str, detail: Mapping[str, Any], now: datetime
    ) -> None:
        self._store.alerts.note(actor, action, subject, detail, now.timestamp())
