"""The simulated fleet service: the real ingest and the real rollout rules over a ledger.

It dies when a `Crash` comes through a commit, and starts again with nothing but the ledger.
"""

import itertools
from collections.abc import Callable
from random import Random

import msgspec

from fleet.ingest import Ingest, Message
from fleet.plan import Assignment, Plan, Rollout
from fleet.rollout import (
    RETURN_PROBATION,
    Action,
    AssignmentTo,
    Decision,
    Notify,
    RequestAnalysis,
    RollBack,
    StageTo,
    act,
    apply,
    apply_all,
    decide,
    draft,
    join,
)
from fleet.targeting import ordered
from skerry.canonical import to_msgpack
from skerry.errors import RefusedError
from skerry.states import (
    ASSIGNMENT,
    ASSIGNMENT_ENDS,
    AnalysisState,
    AssignmentState,
    StageState,
    advance,
)
from skerry.trust import DirectorTarget
from skerry.wire import Ack, Desired, DownType, Hello, Probation, SlotDesired, seal_down
from tests.fakes.clock import Clock
from tests.fakes.disk import Crash
from tests.fakes.link import Link
from tests.fakes.rollouts import Say
from tests.fakes.signing import FakeSigner
from tests.flows.catalog import ReleaseTruth
from tests.flows.ledger import DesiredRow, Ledger, Task

FLEET_ID = "sim"
SHARDS = 4
TICK_S = 2.0
RESEND_S = 12.0
RESTART_S = 4.0
SUCCESS = (AssignmentState.COMMITTED, AssignmentState.ALREADY_INSTALLED)


class Fleet:
    """One fleet process after another, over one ledger."""

    def __init__(
        self,
        clock: Clock,
        link: Link,
        rng: Random,
        ledger: Ledger,
        releases: dict[str, ReleaseTruth],
        note: Callable[[str], None],
    ) -> None:
        self.ledger = ledger
        self.signer = FakeSigner("fleet")
        self.releases = releases  # by target path
        self.members: list[str] = []  # devices enrolled, from the registry
        self.up = False
        self.crashes = 0
        self.ticks = 0  # that it lived through
        self.sent: dict[str, set[str]] = {}  # device -> bundles it was ever told to run
        self.patience: dict[str, int] = {}  # (not durable) looks at a stage before its verdict
        self._clock, self._link, self._rng, self._note = clock, link, rng, note
        self._life = itertools.count(1)
        self._unacked: list[Message] = []  # the broker's copy, until PUBACK
        self._drain_planned = False
        self.life = 0
        self.start()

    # --- the process --------------------------------------------------------------

    def start(self) -> None:
        self.up, self.life = True, next(self._life)
        self._ingest = Ingest(
            self.ledger, self, fleet_id=FLEET_ID, shards=SHARDS, credit=4
        )  # fmt: skip
        self._resent: dict[str, float] = {}
        self._drain_planned = False
        self._link.listen("fleet", self.receive)
        self._plan_drain()
        self.soon(TICK_S, "fleet ticks", self.tick)

    def die(self, why: str) -> None:
        self._note(f"fleet dies {why}")
        self.up = False
        self.crashes += 1
        self._link.listen("fleet", None)
        self._clock.after(RESTART_S * self._rng.random(), "fleet starts", self.start)

    def soon(self, seconds: float, label: str, call: Callable[[], None]) -> None:
        life = self.life

        def run() -> None:
            if self.up and life == self.life:
                try:
                    call()
                except Crash as crash:
                    self.die(str(crash))

        self._clock.after(seconds, label, run)

    # --- ingest -------------------------------------------------------------------

    def receive(self, topic: str, payload: bytes) -> None:
        self._unacked.append(Message(topic, payload))
        self._plan_drain()

    def _plan_drain(self) -> None:
        if self._unacked and not self._drain_planned:
            self._drain_planned = True
            self.soon(0.05, "fleet ingests", self._drain)

    def _drain(self) -> None:
        self._drain_planned = False
        batch = self._unacked[:64]
        self._ingest.take(batch, self._clock.now)
        del self._unacked[: len(batch)]  # PUBACK
        self._plan_drain()

    def ack(self, device: str, ack: Ack) -> None:
        self._send(device, "ack", ack)

    def hello(self, device: str, hello: Hello) -> None:
        row = self.ledger.desired.get(device)
        if row is not None and row.version != hello.desired_version:
            self._publish(device)

    def _send(self, device: str, kind: DownType, body: Ack | Desired, version: int = 0) -> bytes:
        topic = f"skerry/v1/{FLEET_ID}/dn/{device}/{kind}"
        data = seal_down(self.signer, dev=device, type=kind, body=body, version=version)  # type: ignore[arg-type]
        self._link.send(device, topic, data)
        return data

    def _publish(self, device: str) -> None:
        row = self.ledger.desired[device]
        targets = []
        for slot, want in row.slots.items():
            released = self.releases[want.target].released
            targets.append(
                DirectorTarget(
                    path=want.target, length=released.length, sha256=released.sha256,
                    device=device, slot=slot, rollout=want.rollout_id, nonce=want.assignment_id,
                )
            )  # fmt: skip
            self.sent.setdefault(device, set()).add(want.bundle)
        director = {"targets.json": to_msgpack(targets), "version": b"%d" % row.version}
        data = self._send(device, "desired", Desired(row.slots, director), row.version)
        self._link.retain(f"desired/{device}", data)
        self._resent[device] = self._clock.now

    # --- rollouts -----------------------------------------------------------------

    def submit(self, plan: Plan) -> None:
        """An operator creates and submits a rollout for all devices."""
        rollout_id = f"r-{len(self.ledger.rollouts) + 1:02}"
        rollout = draft(rollout_id, plan, ordered(self.members, rollout_id), self._clock.now)
        made = act(rollout, Action.SUBMIT, {}, self._clock.now, "anna")
        with self.ledger.transaction() as tx:
            tx.put(tx.rollouts, rollout_id, apply_all(rollout, made))

    def operate(self, rollout_id: str, action: Action) -> None:
        """An operator does something to a rollout; the fleet may refuse."""
        rollout = self.ledger.rollouts[rollout_id]
        try:
            made = act(rollout, action, self.assignments(rollout), self._clock.now, "anna")
        except RefusedError:
            return
        self._note(f"operator: {action} {rollout_id}")
        self._carry_out(rollout_id, made)

    def tick(self) -> None:
        self.soon(TICK_S, "fleet ticks", self.tick)
        now = self._clock.now
        for rollout_id in self.ledger.rollouts:
            rollout = self._join(rollout_id)
            view = self.assignments(rollout)
            verdicts = {
                stage: verdict
                for (owner, stage), verdict in self.ledger.verdicts.items()
                if owner == rollout_id
            }
            made = decide(rollout, view, verdicts, now)
            if made:
                self._carry_out(rollout_id, made)
        for device, row in self.ledger.desired.items():
            known = self.ledger.reported.get(device)
            behind = known is None or known.desired_version < row.version
            if behind and now - self._resent.get(device, 0.0) >= RESEND_S:
                self._publish(device)
        self.ticks += 1

    def _join(self, rollout_id: str) -> Rollout:
        """Take in the devices that were enrolled after the rollout began."""
        rollout = join(known := self.ledger.rollouts[rollout_id], self.members)
        if rollout is not known:
            with self.ledger.transaction() as tx:
                tx.put(tx.rollouts, rollout_id, rollout)
        return rollout

    def assignments(self, rollout: Rollout) -> dict[str, Assignment]:
        """What `decide` sees of the ledger."""
        view: dict[str, Assignment] = {}
        for device in rollout.devices:
            key = (rollout.rollout_id, device)
            task_id = self.ledger.in_rollout.get(key)
            if task_id is None:
                continue
            task = self.ledger.tasks[task_id]
            back = self.ledger.tasks.get(self.ledger.return_of.get(key, ""))
            holder = self.ledger.tasks[self.ledger.latest[device, task.slot]]
            view[device] = Assignment(
                task_id, device, task.state, task.attempt, task.notified_at, task.previous,
                code=task.code, back=None if back is None else back.state, back_at=back.notified_at if back else 0.0,
                current=holder.rollout == rollout.rollout_id,
            )  # fmt: skip
        return view

    def _carry_out(self, rollout_id: str, decisions: list[Decision]) -> None:
        changed: dict[str, None] = {}
        with self.ledger.transaction() as tx:
            rollout = tx.rollouts[rollout_id]
            for decision in decisions:
                rollout = apply(rollout, decision)
                self._apply(tx, rollout, decision, changed)
            tx.put(tx.rollouts, rollout_id, rollout)
            for device in changed:
                self._renew(tx, device)
        for decision in decisions:
            self._note(f"{rollout_id}: {decision}")
        for device in changed:
            self._publish(device)

    def _apply(
        self, tx: Ledger, rollout: Rollout, decision: Decision, changed: dict[str, None]
    ) -> None:
        plan, rollout_id = rollout.plan, rollout.rollout_id
        match decision:
            case Notify(device=device, attempt=attempt):
                again = tx.in_rollout.get((rollout_id, device))
                previous = tx.tasks[again].previous if again else self._committed(device, plan.slot)
                task = self._assign(tx, rollout, device, plan.target, plan.probation, attempt)
                task = msgspec.structs.replace(task, previous=previous)
                tx.put(tx.tasks, task.assignment_id, task)
                tx.put(tx.in_rollout, (rollout_id, device), task.assignment_id)
                if (rollout_id, device) in tx.return_of:
                    tx.put(tx.return_of, (rollout_id, device), "")
                changed[device] = None
            case RollBack(device=device, target=target):
                task = self._assign(tx, rollout, device, target, RETURN_PROBATION, 1)
                path = task.path if target else (*task.path, "committed")
                task = msgspec.structs.replace(task, returns=True, path=path)
                tx.put(tx.tasks, task.assignment_id, task)
                tx.put(tx.return_of, (rollout_id, device), task.assignment_id)
                changed[device] = None
            case AssignmentTo(device=device, state=state):
                self._end(tx, tx.in_rollout[rollout_id, device], state)
            case StageTo(stage=stage, state=StageState.ANALYZING):
                if (rollout_id, stage) in tx.verdicts:
                    tx.put(tx.verdicts, (rollout_id, stage), Say(AnalysisState.PENDING))
                self.patience[rollout_id] = self._rng.choice((0, 1, 3))
            case RequestAnalysis(stage=stage):
                tx.put(tx.verdicts, (rollout_id, stage), self._analyse(rollout))
            case _:
                pass

    def _assign(
        self, tx: Ledger, rollout: Rollout, device: str, target: str, probation: Probation, n: int
    ) -> Task:
        slot = rollout.plan.slot
        old = tx.tasks.get(tx.latest.get((device, slot), ""))
        if old is not None and old.state not in ASSIGNMENT_ENDS:
            self._end(tx, old.assignment_id, AssignmentState.SUPERSEDED)
        task = Task(
            f"a-{len(tx.tasks) + 1:05}", device, slot, rollout.rollout_id, target,
            self.releases[target].bundle if target else "", "", probation,
            ("queued", "notified"), n, self._clock.now,
        )  # fmt: skip
        tx.put(tx.tasks, task.assignment_id, task)
        tx.put(tx.latest, (device, slot), task.assignment_id)
        return task

    def _end(self, tx: Ledger, assignment_id: str, state: AssignmentState) -> None:
        task = tx.tasks[assignment_id]
        advance(ASSIGNMENT, task.state, state)
        tx.put(
            tx.tasks, assignment_id, msgspec.structs.replace(task, path=(*task.path, state.value))
        )

    def _renew(self, tx: Ledger, device: str) -> None:
        """The device's next desired version, from the assignments in force."""
        row = tx.desired.get(device)
        slots: dict[str, SlotDesired] = {}
        for (owner, slot), assignment_id in tx.latest.items():
            task = tx.tasks[assignment_id]
            if owner == device and task.target:
                slots[slot] = SlotDesired(
                    assignment_id, task.rollout, task.target, task.bundle, task.attempt,
                    task.probation, deadline_s=90.0,
                )  # fmt: skip
        version = row.version + 1 if row else 1
        tx.put(tx.desired, device, DesiredRow(version, slots))

    def _committed(self, device: str, slot: str) -> str:
        """The target that the device's slot last committed, empty for none."""
        mine = [t for t in self.ledger.tasks.values() if (t.device, t.slot) == (device, slot)]
        return next((task.target for task in reversed(mine) if task.state in SUCCESS), "")

    def _analyse(self, rollout: Rollout) -> Say:
        looks = self.patience.get(rollout.rollout_id, 0)
        self.patience[rollout.rollout_id] = looks - 1
        if looks > 0:
            return Say(AnalysisState.INCONCLUSIVE, f"{looks} windows missing", insufficient=True)
        return Say(self.releases[rollout.plan.target].verdict())

    # --- for the world around it ----------------------------------------------------

    def arm(self, point: str) -> None:
        """Have the process die at a point of its next transaction; with "" never."""
        self._note(f"fleet will die {point}")

        def crash() -> None:
            self.arm("")
            raise Crash(point.replace("_", " "))

        self.ledger.before_commit = crash if point == "before_commit" else lambda: None
        self.ledger.after_commit = crash if point == "after_commit" else lambda: None

    def is_settled(self) -> bool:
        """Tell whether every device was heard to have the present desired."""
        return not self._unacked and all(
            (known := self.ledger.reported.get(device)) is not None
            and known.desired_version == row.version
            for device, row in self.ledger.desired.items()
        )
