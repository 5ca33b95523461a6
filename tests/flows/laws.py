"""What must hold after every event of the simulated world, whatever went wrong.

The laws keep their own small record of the truth, taken from what devices made durable and
from what the fleet committed, and compare it with what either side believes.
"""

from collections.abc import Callable

from agent.device_state import State
from skerry.records import Item, Prediction
from skerry.states import ASSIGNMENT_ENDS, ROLLOUT_ENDS, AssignmentState, RolloutState, StageState
from skerry.wire import Reported
from tests.flows.catalog import ReleaseTruth
from tests.flows.central import SUCCESS, Fleet
from tests.flows.device import Device

_OVER = (ROLLOUT_ENDS | {RolloutState.ROLLING_BACK}) - {RolloutState.DENIED}


_STOPPED = _OVER - {RolloutState.COMPLETED}


class LawBroken(AssertionError):  # noqa: N818 - a finding, not a mistake of the caller
    """A law does not hold; the first word names it."""

    def __init__(self, law: str, message: str) -> None:
        super().__init__(f"{law}: {message}")
        self.law = law
        self.message = message


class DeviceTruth:
    """What one device did, as its disk has it."""

    def __init__(self) -> None:
        self.desired_version = 0
        self.floor: dict[str, int] = {}  # slot -> highest release counter ever committed
        self.current: dict[str, str] = {}  # slot -> bundle
        self.previous: dict[str, str] = {}
        self.committed: set[str] = set()  # assignments whose commit is on the disk
        self.said: dict[int, dict[str, object]] = {}  # version of reported -> slots and paths
        self.ended: set[str] = set()  # assignments, with their attempt
        self.under_way: dict[str, str] = {}  # slot -> assignment, with its attempt


class Laws:
    """The laws, and what they remember."""

    def __init__(self, releases: dict[str, ReleaseTruth], note: Callable[[str], None]) -> None:
        self._by_bundle = {truth.bundle: truth for truth in releases.values()}
        self._of: dict[str, DeviceTruth] = {}
        self._rows_seen = 0
        self._stored: set[tuple[str, str, int]] = set()
        self._stored_ids: set[str] = set()
        self._notified: dict[str, int] = {}  # rollout that is over -> devices it had notified
        self._over: set[str] = set()  # rollouts that were over at the last look
        self._note = note
        self.fleet: Fleet

    # --- told by devices as it happens -----------------------------------------------

    def saved(self, device: Device, state: State) -> None:
        truth = self._of.setdefault(device.name, DeviceTruth())
        if state.desired_version < truth.desired_version:
            raise LawBroken(
                "desired_version_sinks",
                f"{device.name} went from {truth.desired_version} to {state.desired_version}",
            )
        truth.desired_version = state.desired_version
        for ended in state.ended:
            report = ended.report
            if report.state == "committed":
                if "probation" not in [step.state for step in report.path]:
                    raise LawBroken("commit_without_probation", f"{device.name}: {report}")
                truth.committed.add(report.assignment_id)
        for name, slot in state.slots.items():
            begun = slot.begun if slot.work else ""
            if begun != truth.under_way.get(name, ""):
                truth.ended.add(truth.under_way.get(name, ""))
                truth.under_way[name] = begun
                if begun and begun in truth.ended:
                    raise LawBroken("begun_twice", f"{device.name}: {begun} in {name}")
            bundle = slot.current.ref.bundle if slot.current else ""
            if bundle and bundle != truth.current.get(name):
                counter = self._by_bundle[bundle].released.release_counter
                truth.previous[name] = truth.current.get(name, "")
                truth.current[name] = bundle
                truth.floor[name] = max(counter, truth.floor.get(name, 0))

    def activated(self, device: Device, slot: str, bundle: str) -> None:
        truth = self._of.setdefault(device.name, DeviceTruth())
        released = self._by_bundle[bundle].released
        running = self._by_bundle.get(truth.current.get(slot, ""))
        wanted = {truth.current.get(slot), truth.previous.get(slot)}
        wanted |= set(running.released.may_fall_back_to) if running else set()
        if released.release_counter < truth.floor.get(slot, 0) and bundle not in wanted:
            raise LawBroken(
                "below_floor",
                f"{device.name} activates {released.path}, counter {released.release_counter}, "
                f"floor {truth.floor[slot]}",
            )
        if bundle not in self.fleet.sent.get(device.name, ()):
            raise LawBroken("not_assigned", f"{device.name} activates {released.path}")

    def permitted(self, device: Device, assignment_id: str) -> None:
        if assignment_id in device.leave.held:
            raise LawBroken("not_permitted", f"{device.name} activates {assignment_id}")

    def said(self, device: Device, body: Reported) -> None:
        truth = self._of.setdefault(device.name, DeviceTruth())
        words: dict[str, object] = {f"slot {name}": ref for name, ref in body.slots.items()}
        words |= {report.assignment_id: report for report in body.assignments}
        before = truth.said.setdefault(body.version, words)
        for key in before.keys() & words.keys():
            if before[key] != words[key]:
                raise LawBroken(
                    "says_two_things",
                    f"{device.name} reported version {body.version} with {key} as "
                    f"{before[key]} and as {words[key]}",
                )
        truth.said.pop(body.version - 8, None)

    def forgot(self, device: Device, boot: str, records: dict[int, Item]) -> None:
        self._take_rows()
        for seq, item in records.items():
            if not self._is_stored(device, boot, seq, isinstance(item, Prediction)):
                raise LawBroken("forgotten_unstored", f"{device.name} forgot {boot} {seq}")

    def _is_stored(self, device: Device, boot: str, seq: int, is_row: bool) -> bool:
        if is_row and not device.every_row:
            return seq <= self.fleet.ledger.cursor(device.name, boot)
        return (device.name, boot, seq) in self._stored

    # --- after every event -------------------------------------------------------------

    def check_device(self, device: Device) -> None:
        if not device.up:
            return
        state = device.machine.state
        for name, slot in state.slots.items():
            known = {slot.current.ref.bundle} if slot.current else set()
            if slot.work and slot.work.release:
                known.add(slot.work.release.ref.bundle)
            runs = device.running.get(name)
            if runs is None and slot.current is not None:
                raise LawBroken("nothing_serves", f"{device.name} serves nothing in {name}")
            if runs is None:
                continue
            if runs not in known:
                raise LawBroken(
                    "runs_unknown",
                    f"{device.name} runs {self._by_bundle[runs].released.path}, its state knows "
                    f"{sorted(self._by_bundle[bundle].released.path for bundle in known)}",
                )
            if runs not in device.bundles or runs not in device.smoked:
                raise LawBroken("runs_missing", f"{device.name} runs a bundle it does not have")

    def check_fleet(self, fleet: Fleet) -> None:
        if forks := [voice.fork for voice in fleet.ledger.voices.values() if voice.fork]:
            raise LawBroken("one_machine_taken_for_two", forks[0])
        self._take_rows()
        ledger = fleet.ledger
        for rollout_id, rollout in ledger.rollouts.items():
            notified = [d for d in rollout.devices if (rollout_id, d) in ledger.in_rollout]
            opened = {device for stage in rollout.stages for device in stage.devices}
            if not opened.issuperset(notified):
                raise LawBroken("outside_stage", f"{rollout_id} notified {notified} of {opened}")
            first, planned = rollout.stages[0], rollout.plan.stages[0]
            if planned.count is not None:
                early = set(rollout.devices[: rollout.selected])
                if len(first.devices) > planned.count or not early.issuperset(first.devices):
                    raise LawBroken("canary_too_big", f"{rollout_id}: {first.devices}")
                done = first.state in (StageState.PASSED, StageState.SKIPPED)
                if not done and len(notified) > planned.count:
                    raise LawBroken("canary_too_big", f"{rollout_id} notified {notified}")
            if rollout.state in _OVER:
                before = self._notified.setdefault(rollout_id, len(notified))
                if len(notified) > before:
                    raise LawBroken("goes_on_when_over", f"{rollout_id} notified {notified}")
        for task in ledger.tasks.values():
            if task.target and "committed" in task.path and not task.code:
                truth = self._of.get(task.device)
                if "probation" not in task.path:
                    raise LawBroken("commit_without_probation", f"{task}")
                if truth is None or task.assignment_id not in truth.committed:
                    raise LawBroken("commit_not_durable", f"{task}")

    def check_tick(self, fleet: Fleet) -> None:
        """After the fleet has looked at all rollouts: those that are over have stopped."""
        ledger = fleet.ledger
        for rollout_id in sorted(self._over):
            rollout = ledger.rollouts[rollout_id]
            undone = rollout.state is RolloutState.ROLLED_BACK
            for device in rollout.devices:
                task = ledger.tasks.get(ledger.in_rollout.get((rollout_id, device), ""))
                if task is None:
                    continue
                holder = ledger.tasks[ledger.latest[device, task.slot]]
                stands = undone and holder is task and task.target != task.previous
                if task.state not in ASSIGNMENT_ENDS or (
                    stands and task.state is AssignmentState.COMMITTED
                ):
                    raise LawBroken("goes_on_when_over", f"{rollout_id}, {rollout.state}: {task}")
        self._over = {name for name, r in ledger.rollouts.items() if r.state in _STOPPED}

    def _take_rows(self) -> None:
        rows = self.fleet.ledger.rows
        for device, boot, seq, request_id in rows[self._rows_seen :]:
            if (device, boot, seq) in self._stored or request_id in self._stored_ids:
                raise LawBroken("stored_twice", f"{device} {boot} {seq} {request_id}")
            self._stored.add((device, boot, seq))
            if request_id:
                self._stored_ids.add(request_id)
        self._rows_seen = len(rows)

    # --- when everything has come to rest --------------------------------------------

    def check_rest(self, fleet: Fleet, devices: list[Device], fell_back: set[str]) -> None:
        """Nothing is lost, nothing is open, and both sides agree."""
        self._take_rows()
        for device in devices:
            missing = [
                name
                for name, (boot, seq) in device.answered.items()
                if (boot, seq) not in device.lost and not self._is_stored(device, boot, seq, True)
            ]
            if missing:
                raise LawBroken("lost", f"{device.name}: {missing[:3]} of {len(missing)}")
            self._check_agreement(fleet, device, device.name in fell_back)

    def _check_agreement(self, fleet: Fleet, device: Device, fell_back: bool) -> None:
        ledger, state = fleet.ledger, device.machine.state
        row, told = ledger.desired.get(device.name), ledger.reported.get(device.name)
        if row is None:
            return
        if told is None or (told.version, told.desired_version, state.desired_version) != (
            state.reported_version, row.version, row.version,
        ):  # fmt: skip
            raise LawBroken("reported_is_not_desired", f"{device.name}: {row.version} {told}")
        for slot, want in row.slots.items():
            task, runs = ledger.tasks[want.assignment_id], device.running.get(slot)
            heard = told.slots.get(slot)
            if (heard.bundle if heard else None) != runs:
                raise LawBroken("reported_is_not_real", f"{device.name} runs {runs}, said {heard}")
            arrived = task.state in SUCCESS
            if arrived and runs != want.bundle and not fell_back:
                raise LawBroken(
                    "reported_is_not_desired",
                    f"{device.name} runs {runs} in {slot}, desired {want.bundle}, {task}",
                )
