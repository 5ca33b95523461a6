"""The engine: looks at every open rollout a few times a second, and acts on what is decided.

    load   a rollout, its assignments, the verdicts                 one transaction
    decide `fleet.rollout.decide`, pure
    store  decisions, assignments, signed director metadata         the same transaction
    send   `desired`, from what is stored

A crash anywhere loses nothing: what was stored is sent at the next start, what was not is
decided again. Everything here blocks, and is called from one thread at a time.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from fleet.analysis import Verdict, analyse
from fleet.decisions import RequestAnalysis
from fleet.dispatch import Dispatcher
from fleet.plan import Rollout
from fleet.rollout import controls, decide, join
from fleet.rollout_rows import DesiredRow, StoredVerdict
from fleet.store import Store
from fleet.targeting import Candidate, select
from fleet.watch import DriftWatch
from fleet.windows import MAX_BEFORE, split
from skerry.errors import ConflictError, SkerryError
from skerry.states import AnalysisState, AssignmentState, DeviceState
from skerry.wire import Desired, Hello, Policy

__all__ = ["Engine", "Outlet", "candidates"]

log = logging.getLogger(__name__)

MAX_ROUNDS: Final = 8  # decisions of one rollout that follow from each other in one tick
ANALYSE_EVERY_S: Final = 0.9  # and stage
JOIN_EVERY_S: Final = 2.0
HOUSEKEEPING_EVERY_S: Final = 30.0
RESEND_EVERY_S: Final = 10.0
RESEND_AFTER_S: Final = 10.0
RESEND_AT_MOST: Final = 200  # devices at a time
SEEN_LATELY_S: Final = 60.0
RENEW_DESIRED_AFTER: Final = timedelta(days=1)
RENEW_AT_MOST: Final = 50  # devices at a time
PRUNE_AT_MOST: Final = 5000  # rows at a time


class Outlet(Protocol):
    """What the engine says to devices (`fleet.mqtt.Sender`)."""

    def desired(self, device: str, version: int, body: Desired) -> None:
        """Send, retained, what a device shall run."""
        ...

    def policy(self, policy: Policy) -> None:
        """Send, retained, what holds for every device."""
        ...


class Engine:
    """Drives rollouts, analyses, the drift watch, and what has to be renewed."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        outlet: Outlet,
        watch: DriftWatch,
        *,
        drift_every_s: float,
        keep_predictions_s: float,
        keep_windows_s: float,
        housekeeping: Sequence[Callable[[datetime], object]] = (),
    ) -> None:
        """Prepare an engine.

        Args:
            store: the fleet's.
            dispatcher: carries decisions out.
            outlet: sends.
            watch: looks for drift.
            drift_every_s: how often it looks.
            keep_predictions_s: older predictions are forgotten.
            keep_windows_s: older windows are forgotten.
            housekeeping: called every half minute, such as the catalog's renewal.
        """
        self._store = store
        self._dispatcher = dispatcher
        self._outlet = outlet
        self._watch = watch
        self._drift_every_s = drift_every_s
        self._keep_predictions_s = keep_predictions_s
        self._keep_windows_s = keep_windows_s
        self._housekeeping = housekeeping
        self._due: dict[str, float] = {}
        self._greeted = False  # somebody connected, and may have missed the policy
        self._signed_from = 0.0  # every device's metadata is signed anew if it is older than this

    def start(self) -> None:
        """Send everything again: the broker may have lost what it kept."""
        self._outlet.policy(self._store.alerts.policy())
        for row in self._store.rollouts.all_desired():
            if row.director:
                self._send(row)

    def renew_desired(self, now: datetime) -> None:
        """Sign every device's metadata anew, a few at a time: roots or keys have changed."""
        self._signed_from = now.timestamp()
        self._outlet.policy(self._store.alerts.policy())

    def tick(self, now: datetime) -> None:
        """Do what is due."""
        at = now.timestamp()
        joins = self._is_due("join", JOIN_EVERY_S, at)
        for rollout_id in self._store.rollouts.open_ids():
            try:
                if joins:
                    self._join(rollout_id, at)
                self._advance(rollout_id, now)
            except ConflictError:
                continue  # another process was faster; what it stored is seen next time
            except SkerryError:
                log.exception("rollout %s cannot go on", rollout_id)
        if self._is_due("drift", self._drift_every_s, at):
            self._watch.look(now)
        if self._is_due("resend", RESEND_EVERY_S, at):
            self._resend(at)
        if self._is_due("housekeeping", HOUSEKEEPING_EVERY_S, at):
            self._keep_house(now)

    def hello(self, device: str, hello: Hello, now: datetime) -> None:
        """Answer a device that has connected: it gets `desired` if it holds another."""
        self._greeted = self._greeted or not hello.again
        row = self._store.rollouts.desired(device)
        if row is None or row.version == hello.desired_version:
            return
        if row.version < hello.desired_version:
            # the database was restored from a backup: the device will not go back in versions
            log.warning("%s holds desired %d, newer than ours", device, hello.desired_version)
        if row.version < hello.desired_version or not row.director:  # changed while shut out
            with self._store.rollouts.change_desired(device) as change:
                self._dispatcher.sign_anew(change, hello.desired_version, now)
        self.send_desired([device])

    def send_desired(self, devices: Sequence[str]) -> None:
        """Send devices what is stored for them."""
        for device in devices:
            row = self._store.rollouts.desired(device)
            if row is not None and row.director:
                self._send(row)

    def _send(self, row: DesiredRow) -> None:
        self._outlet.desired(row.device, row.version, Desired(row.slots, row.director))

    def _advance(self, rollout_id: str, now: datetime) -> None:
        for _ in range(MAX_ROUNDS):
            with self._store.rollouts.step(rollout_id) as step:
                decisions = decide(
                    step.rollout,
                    step.assignments(),
                    step.verdicts(),
                    now.timestamp(),
                    step.absent(),
                )
                changed = self._dispatcher.carry_out(step, decisions, now)
            self.send_desired(changed)
            asked = [d.stage for d in decisions if isinstance(d, RequestAnalysis)]
            for stage in asked:
                self._analyse(rollout_id, stage, now)
            if not decisions or asked:
                return

    def _analyse(self, rollout_id: str, stage_name: str, now: datetime) -> None:
        at = now.timestamp()
        if not self._is_due(f"analysis/{rollout_id}/{stage_name}", ANALYSE_EVERY_S, at):
            return
        rollout = self._store.rollouts.get(rollout_id)
        stage = next(stage for stage in rollout.stages if stage.name == stage_name)
        try:
            verdict = self._compare(rollout, stage_name, at)
            stored = StoredVerdict(
                state=verdict.state,
                reason=verdict.reason,
                insufficient=verdict.insufficient,
                at=at,
                stage=stage_name,
                body=msgspec.to_builtins(verdict),
            )
        except (SkerryError, ArithmeticError, ValueError) as error:
            log.exception("the analysis of stage %s of %s failed", stage_name, rollout_id)
            reason = f"the analysis itself failed: {error}"
            stored = StoredVerdict(AnalysisState.ERROR, reason, True, at, stage_name)
        self._store.rollouts.add_verdict(rollout_id, stage.attempt, stored)

    def _compare(self, rollout: Rollout, stage_name: str, at: float) -> Verdict:
        store, rollout_id = self._store, rollout.rollout_id
        stage = next(s for s in rollout.stages if s.name == stage_name)
        plan = next(s.analysis for s in rollout.plan.stages if s.name == stage_name)
        assert plan is not None
        assignments = store.rollouts.assignments(rollout_id)
        canary = [
            device
            for device in stage.devices
            if device in assignments and assignments[device].state is AssignmentState.COMMITTED
        ]
        began = min((assignments[device].notified_at for device in canary), default=at)
        model = rollout.plan.model
        length_s = store.windows.longest_window_s(model, at - 86400.0)
        found = store.windows.windows(model, began - (MAX_BEFORE + 5) * length_s)
        release = store.releases.get(rollout.plan.target)
        baseline = store.releases.baseline(release.bundle)
        assert baseline is not None
        chosen, others = split(
            found,
            canary=canary,
            control=controls(rollout, assignments),
            bundle=release.bundle,
            min_n=plan.min_window_n,
        )
        return analyse(plan, baseline, chosen, others)

    def _resend(self, at: float) -> None:
        """Send again what may have been lost on its way: the broker may lose anything."""
        if self._greeted:
            self._greeted = False
            self._outlet.policy(self._store.alerts.policy())
        behind = self._store.rollouts.behind(
            seen_since=at - SEEN_LATELY_S, told_before=at - RESEND_AFTER_S, limit=RESEND_AT_MOST
        )
        self.send_desired(behind)

    def _join(self, rollout_id: str, at: float) -> None:
        rollout = self._store.rollouts.get(rollout_id)
        matching = select(rollout.plan.selector, candidates(self._store), rollout_id)
        if join(rollout, matching) is rollout:
            return
        plan = rollout.plan
        elsewhere = self._store.rollouts.in_other_slots(plan.target, plan.slot)
        matching = [device for device in matching if device not in elsewhere]
        with self._store.rollouts.step(rollout_id) as step:
            step.put_rollout(join(step.rollout, matching), at)

    def _keep_house(self, now: datetime) -> None:
        for work in self._housekeeping:
            try:
                work(now)
            except (SkerryError, OSError):
                log.exception("housekeeping failed; it is tried again")
        old = max((now - RENEW_DESIRED_AFTER).timestamp(), self._signed_from)
        for device in self._store.rollouts.desired_signed_before(old, RENEW_AT_MOST):
            with self._store.rollouts.change_desired(device) as change:
                self._dispatcher.sign_anew(change, 0, now)
            self.send_desired([device])
        at = now.timestamp()
        self._store.windows.prune(
            predictions_before=at - self._keep_predictions_s,
            windows_before=at - self._keep_windows_s,
            limit=PRUNE_AT_MOST,
        )

    def _is_due(self, what: str, every_s: float, at: float) -> bool:
        last = self._due.get(what)
        if last is not None and 0 <= at - last < every_s:
            return False
        self._due[what] = at
        return True


def candidates(store: Store) -> list[Candidate]:
    """Return the accepted devices, as selectors see them."""
    return [
        Candidate(
            device=view.device,
            tags=view.tags,
            hw_class=view.hw_class,
            platform=view.inventory.platform,
            agent=view.agent or view.inventory.agent,
        )
        for view in store.devices.views()
        if view.state == DeviceState.ACCEPTED
    ]
