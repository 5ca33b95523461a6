"""One simulated world: a fleet, twenty devices, operators, clients, and everything that fails.

All of it follows from one seed. `World.run` plays the world through a stormy part, lets it come
to rest, and checks the laws after every event and once more at the end.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

from fleet.analysis import AnalysisPlan
from fleet.plan import Plan, StagePlan
from fleet.rollout import Action
from skerry.states import PauseReason, RolloutState
from skerry.wire import Probation
from tests.fakes.clock import EPOCH, Clock
from tests.fakes.link import Link, Weather
from tests.flows.catalog import Manner, ReleaseTruth, history
from tests.flows.central import Fleet
from tests.flows.device import Device
from tests.flows.laws import LawBroken, Laws
from tests.flows.ledger import Ledger

DEVICES: Final = 20
LATE: Final = 2  # of them, enrolled while rollouts run
STORM_S: Final = 140.0
PATIENCE_S: Final = 3600.0  # of virtual time, for everything to come to rest
PROBATION: Final = Probation(min_answered=3, min_seconds=2.0, timeout_s=30.0)
MANNERS: Final[list[Manner]] = [
    "good",
    "good",
    "worse",
    "errors",
    "crashes",
    "smoke",
    "first_variant",
]


class World:
    """A world made from a seed."""

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.events = 0
        self.faults = 0
        self._ticks = 0
        self._tell = tell
        self._rng = rng = Random(seed)
        self._clock = Clock()
        self._weather = Weather(
            lose=rng.choice((0.02, 0.1, 0.25)),
            duplicate=rng.choice((0.02, 0.1, 0.3)),
            straggle=rng.choice((0.02, 0.1)),
            straggle_s=rng.choice((3.0, 25.0)),
            corrupt=rng.choice((0.0, 0.02)),
            stale=0.3,
            forget=0.2,
        )
        self._link = Link(self._clock, rng, self._weather)
        manners: list[Manner] = ["good", *(rng.choice(MANNERS) for _ in range(3))]
        self._history = {"reader": history("reader", manners)}
        if rng.random() < 0.5:  # a second model beside it, with rollouts of its own
            self._history["sorter"] = history("sorter", ["good", rng.choice(MANNERS)])
        self._releases = {t.released.path: t for model in self._history.values() for t in model}
        self.laws = Laws(self._releases, self._note)
        names = [f"dev-{n:02}" for n in range(DEVICES)]
        ledger = Ledger({})
        self.fleet = Fleet(self._clock, self._link, rng, ledger, self._releases, self._note)
        self.laws.fleet = self.fleet
        self.devices = [self._make_device(name) for name in names]
        for device in self.devices:
            device.every_row = rng.random() < 0.8
        self.fleet.members += names[:-LATE]
        ledger.keys |= {device.name: device.signer for device in self.devices}  # type: ignore[operator]
        self._fell_back: set[str] = set()
        self._stormy = True
        self._plans = {model: self._make_plans(model) for model in self._history}

    def run(self) -> None:
        """Play the world to its end.

        Raises:
            LawBroken: with the law and what broke it.
        """
        for device in self.devices:
            self._traffic(device, 2.5 + 4.0 * self._rng.random())
        self._later(1.0, "operator looks", self._operate)
        self._later(3.0, "fault", self._fault)
        for device in self.devices[-LATE:]:
            self._later(
                80.0 * self._rng.random(),
                "fleet enrols",
                partial(self.fleet.members.append, device.name),
            )
        self._play(lambda: self._clock.now >= EPOCH + STORM_S)
        self._calm()
        if not self._play(self._is_at_rest, EPOCH + STORM_S + PATIENCE_S):
            busy = [device.name for device in self.devices if not device.idle()]
            states = {k: str(r.state) for k, r in self.fleet.ledger.rollouts.items()}
            raise LawBroken("no_rest", f"after {PATIENCE_S:.0f} s: {states}, busy: {busy}")
        self.laws.check_rest(self.fleet, self.devices, self._fell_back)

    def _play(self, over: Callable[[], bool], until: float = float("inf")) -> bool:
        while not over():
            if self._clock.now > until:
                return False
            moment = self._clock.next()
            if moment is None:
                return False
            label, call = moment
            self.events += 1
            if self._tell is not None:
                self._note(label)
            call()
            self._check(label)
        return True

    def _check(self, label: str) -> None:
        who = label.split(" ", 1)[0] if label.startswith("dev-") else label.rsplit(" ", 1)[-1]
        if who.startswith("dev-"):
            self.laws.check_device(self.devices[int(who[4:])])
        elif label.startswith("fleet") or label.startswith("operator"):
            self.laws.check_fleet(self.fleet)
            if self._ticks != self.fleet.ticks:
                self._ticks = self.fleet.ticks
                self.laws.check_tick(self.fleet)
        elif label == "fault":
            for device in self.devices:
                self.laws.check_device(device)

    def _make_device(self, name: str) -> Device:
        return Device(
            name, self._clock, self._link, self._rng, self.fleet.signer, self._releases,
            self.laws, self._note,
        )  # fmt: skip

    def _note(self, text: str) -> None:
        if self._tell is not None:
            self._tell(f"{self._clock.now - EPOCH:9.3f}  {text}")

    def _later(self, seconds: float, label: str, call: Callable[[], None]) -> None:
        self._clock.after(seconds, label, call)

    # --- clients -----------------------------------------------------------------------

    def _traffic(self, device: Device, every_s: float) -> None:
        def ask() -> None:
            if self._stormy or not self._are_rollouts_over():
                self._later(every_s * (0.5 + self._rng.random()), f"{device.name} is asked", ask)
            device.request("sorter" if self._rng.random() < sorted_share else "reader")

        sorted_share = 0.4 if "sorter" in self._history else 0.0
        self._later(every_s * self._rng.random(), f"{device.name} is asked", ask)

    # --- operators ---------------------------------------------------------------------

    def _make_plans(self, model: str) -> list[Plan]:
        """The first release to all, then others by canary, then perhaps an old one again."""
        rng = self._rng
        made: list[Plan] = []
        for truth in self._history[model]:
            stages: tuple[StagePlan, ...] = (StagePlan("all", success_threshold=0.5),)
            if made:
                stages = (
                    StagePlan(
                        "canary", count=3, bake_s=4.0, success_threshold=0.6, gate=rng.random() < 0.2,
                        failure_threshold=0.6, analysis=AnalysisPlan(max_wait_s=40.0),
                    ),
                    StagePlan("rest", success_threshold=0.5, failure_threshold=0.5),
                )  # fmt: skip
            made.append(self._plan(truth, stages))
        if len(made) > 3 and rng.random() < 0.7:
            # an operator's mistake: a release that nobody may go back to
            oldest = self._plan(self._history[model][0], made[1].stages)
            made.insert(rng.randrange(3, len(made) + 1), oldest)
        return made

    def _plan(self, truth: ReleaseTruth, stages: tuple[StagePlan, ...]) -> Plan:
        return Plan(
            truth.model, truth.model_version, "acme", truth.model, stages=stages, probation=PROBATION,
            on_failure=self._rng.choice(("rollback", "rollback", "pause")),
            assignment_timeout_s=60.0,
        )  # fmt: skip

    def _operate(self) -> None:
        if self._stormy or not self._are_rollouts_over():
            self._later(3.0, "operator looks", self._operate)
        if not self.fleet.up:
            return
        for model, plans in self._plans.items():
            hurry = self._rng.random() < 0.02
            if plans and (hurry or self._are_rollouts_over(model)) and self._stormy:
                submit = partial(self.fleet.submit, plans.pop(0))
                self.fleet.soon(0.0, "fleet is told", submit)
                return
        for rollout_id, rollout in self.fleet.ledger.rollouts.items():
            action = self._wish(rollout.state, rollout.pause_reason)
            if action is not None:
                self._tell_fleet(rollout_id, action)

    def _wish(self, state: RolloutState, why: PauseReason | None) -> Action | None:
        chance = self._rng.random()
        if state is RolloutState.PAUSED:
            if why in (PauseReason.MANUAL, PauseReason.STAGE_GATE):
                return Action.RESUME
            if why is PauseReason.FAILURE_THRESHOLD:
                return Action.ROLL_BACK if chance < 0.6 else Action.ABORT
            actions = (Action.RESUME, Action.ABORT, Action.ROLL_BACK, Action.SKIP_STAGE)
            return actions[int(chance * 4)] if self._stormy else Action.ABORT
        if state is RolloutState.RUNNING and self._stormy and chance < 0.04:
            return (Action.PAUSE, Action.PAUSE, Action.ABORT, Action.ROLL_BACK)[int(chance * 100)]
        return None

    def _tell_fleet(self, rollout_id: str, action: Action) -> None:
        self.fleet.soon(0.0, "fleet is told", lambda: self.fleet.operate(rollout_id, action))

    def _are_rollouts_over(self, model: str = "") -> bool:
        ended = (RolloutState.COMPLETED, RolloutState.ABORTED, RolloutState.ROLLED_BACK)
        return all(
            rollout.state in ended
            for rollout in self.fleet.ledger.rollouts.values()
            if rollout.plan.model == model or not model
        )

    # --- faults ------------------------------------------------------------------------

    def _fault(self) -> None:
        if not self._stormy:
            return
        self._later(self._rng.expovariate(1 / 2.5), "fault", self._fault)
        device = self._rng.choice(self.devices)
        self.faults += 1
        faults: tuple[Callable[[], None], ...] = (
            lambda: device.die("at once"),
            lambda: self._arm(device, "at_save"),
            lambda: self._arm(device, "after_save"),
            lambda: self._arm(device, "after_act"),
            device.crash_serve,
            lambda: self._cannot_serve(device),
            lambda: self._cut_off(device),
            lambda: self._fill_disk(device),
            lambda: self._spoil_network(device),
            lambda: self.fleet.arm("before_commit"),
            lambda: self.fleet.arm("after_commit"),
            self._storm,
            device.lose_segment,
            lambda: self._mix_up(device),
        )
        weights = (2, 2, 2, 2, 2, 0.3, 3, 1, 1, 1, 1, 0.5, 0.5, 1)
        self._rng.choices(faults, weights)[0]()

    def _arm(self, device: Device, point: str) -> None:
        self._note(f"{device.name} will die {point}")
        device.armed = point

    def _cannot_serve(self, device: Device) -> None:
        self._fell_back.add(device.name)
        device.serve_unable()

    def _cut_off(self, device: Device) -> None:
        self._note(f"{device.name} is cut off")
        device.disconnect()
        self._later(20 * self._rng.random(), f"{device.name} reconnects", device.connect)

    def _mix_up(self, device: Device) -> None:
        """The broker hands a device what is meant for another."""
        other = self._link.retained(f"desired/{self._rng.choice(self.devices).name}")
        if other is not None:
            device.receive("desired", other)

    def _fill_disk(self, device: Device) -> None:
        def empty() -> None:
            device.disk.writes_left = None

        self._note(f"{device.name} has a full disk")
        device.disk.writes_left = 0
        self._later(8 * self._rng.random(), f"{device.name} has room again", empty)

    def _spoil_network(self, device: Device) -> None:
        def mend() -> None:
            device.bad_network = 0.0

        device.bad_network = 0.5
        self._later(20 * self._rng.random(), f"{device.name} fetches again", mend)

    def _storm(self) -> None:
        usual = self._weather.lose

        def end() -> None:
            self._weather.lose = min(self._weather.lose, usual)

        self._weather.lose = 0.7
        self._later(8 * self._rng.random(), "storm ends", end)

    def _calm(self) -> None:
        """No more faults; what is broken is mended."""
        self._note("calm")
        self._stormy = False
        for name in ("lose", "duplicate", "corrupt", "straggle", "stale", "forget"):
            setattr(self._weather, name, 0.0)
        self.fleet.arm("")
        for device in self.devices:
            device.armed, device.disk.writes_left, device.bad_network = "", None, 0.0
            device.connect()
        link = self._link
        self.faults += link.lost + link.duplicated + link.corrupted + link.straggled

    def _is_at_rest(self) -> bool:
        return (
            self._are_rollouts_over()
            and self._link.in_flight == 0
            and self.fleet.up
            and all(device.idle() for device in self.devices)
            and self.fleet.is_settled()
        )
