"""The installer: tries again what may work later, gives up what will not, and stops in time."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import agent.installer
from agent.child import StartFailed
from agent.device_state import Slot, State
from agent.facts import (
    Activate,
    Activated,
    Discard,
    Download,
    EffectItem,
    Event,
    Failed,
    Noted,
    Observe,
    Rejected,
    Release,
    Report,
    Restore,
    RollBack,
    ServeUnable,
    Shadowed,
    SmokeFailed,
    Stage,
    Staged,
    Verify,
    Wait,
)
from agent.installer import Installer
from agent.pace import SlowError
from agent.permission import Hold
from agent.serve_protocol import SmokeResult
from agent.verify_protocol import VerifyAnswer
from skerry.errors import (
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
)
from skerry.trials import Shadow, ShadowReport, Trial
from skerry.wire import LiveStats
from tests.fakes.assignments import SLOT, Bench, desired, verified, want, way

Step = Exception | Any
CLOSED = Hold("window", "window_closed", "not yet")


class Site:
    """An installer whose files, supervisor and verifier do what a script says.

    `script` holds what the next calls return or raise; the last entry stays.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.script: dict[str, list[Step]] = {}
        self.calls: list[str] = []
        self.events: list[Event] = []
        self.reports = 0
        self.installer = Installer(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            verifier=self._doing("verifier"),
            state=lambda: self.state,
            handle=self.events.append,
            report=self._report,
            rng=random.Random(1),
            staging=self,  # type: ignore[arg-type]
        )
        self.fetch_manifest = self._doing("fetch_manifest")
        self.fetch_variant = self._doing("fetch_variant")
        self.bundles: list[str] = []  # as they were asked to serve
        self.restarts = 0
        self.served: list[list[str]] = []
        self.pid: int | None = None

    async def ensure(self, slots: list[str]) -> None:
        self.served.append(list(slots))
        self._next("ensure")

    def fitting(self, _manifest: object) -> tuple[list[str], list[str]]:
        return ["int8", "fp32"], []

    def order(self, _manifest: object, variants: list[str]) -> list[str]:
        return variants

    def check(self, _release: object) -> None:
        self._next("check")

    def serve_slot(self, name: str, release: Release) -> str:
        self.bundles.append(release.ref.bundle)
        return name

    def keep_only(self, bundles: list[str]) -> list[str]:
        self.calls.append("keep_only")
        return []

    def live(self, _slot: str, _bundle: str, _now: float) -> LiveStats:
        return LiveStats(answered=5, seconds=1.0)

    async def run(self, effect: EffectItem) -> list[Event]:
        self.installer.carry_out(effect)
        await asyncio.gather(*(task for _, task in self.installer._tasks.values()))
        return self.events

    def _report(self) -> None:
        self.reports += 1

    def _doing(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def work(*_: object) -> Any:
            return self._next(name)

        return work

    def _next(self, name: str) -> Any:
        self.calls.append(name)
        steps = self.script.get(name, [None])
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if isinstance(step, Exception):
            raise step
        return step


def site_at(effect: type[EffectItem]) -> tuple[Site, Any]:
    """A site whose machine has just asked for such an effect, and that effect."""
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(desired(2, want("b", 2)))
    for event in way("b", 2):
        found = [entry for entry in bench.effects if isinstance(entry, effect)]
        if found and getattr(found[-1], "assignment_id", "b") == "b":
            return Site(bench.state), found[-1]
        bench.take(event)
    raise AssertionError(effect)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.installer, "RETRY_CAP_S", 0.1)
    monkeypatch.setattr(agent.installer, "OBSERVE_S", 0.01)


AWAY = UnreachableError("no connection")


async def test_without_a_connection_it_tries_on_for_as_long_as_it_takes() -> None:
    site, effect = site_at(Download)
    site.script = {"fetch_manifest": [AWAY] * 6 + [None], "fetch_variant": [AWAY, None]}
    noted, event = await site.run(effect)
    # the fleet is told once, where it can hear at all
    assert noted == Noted(SLOT, "b", "unreachable", "no connection")
    assert type(event).__name__ == "Downloaded"
    assert site.calls.count("fetch_manifest") == 7


async def test_a_place_that_drips_is_told_at_once() -> None:
    site, effect = site_at(Download)
    site.script = {"fetch_manifest": [SlowError("http://m sends too little"), None]}
    noted, _ = await site.run(effect)
    assert noted == Noted(SLOT, "b", "slow_retrieval", "http://m sends too little")


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (TrustError("other bytes", "digest_mismatch"), "Rejected", "digest_mismatch"),
        (NotFoundError("404"), "Failed", "not_found"),
        (FormatError("no bundle"), "Failed", "bad_bundle"),
        (RefusedError("full", "no_room"), "Failed", "no_room"),
        (SkerryError("odd"), "Failed", "download_failed"),
        (OSError("disk"), "Failed", "download_failed"),
        (ValueError("a bug"), "Failed", "internal"),
    ],
)
async def test_a_download_that_cannot_work_ends(error: Exception, outcome: str, code: str) -> None:
    site, effect = site_at(Download)
    site.script = {"fetch_variant": [error]}
    (event,) = await site.run(effect)
    assert (type(event).__name__, getattr(event, "code", "")) == (outcome, code)


async def test_a_refusal_of_the_verifier_is_handed_on() -> None:
    site, effect = site_at(Verify)
    site.script = {"verifier": [AWAY, VerifyAnswer(code="metadata_expired", message="old")]}
    (event,) = await site.run(effect)
    assert (type(event).__name__, getattr(event, "code", "")) == ("Rejected", "metadata_expired")


async def test_what_the_verifier_accepts_is_handed_on() -> None:
    site, effect = site_at(Verify)
    fact = verified("b", 2)
    site.script = {
        "verifier": [
            VerifyAnswer(assigned=fact.assigned, released=fact.released, metadata=fact.metadata)
        ]
    }
    assert await site.run(effect) == [fact]


@pytest.mark.parametrize(
    ("name", "error", "code"),
    [
        ("check", FormatError("damaged"), "files_damaged"),
        ("ensure", StartFailed("exit code 1"), "serve_failed"),
    ],
)
async def test_an_activation_that_fails_says_why(name: str, error: Exception, code: str) -> None:
    site, effect = site_at(Activate)
    site.script = {name: [error]}
    (event,) = await site.run(effect)
    assert (type(event).__name__, getattr(event, "code", "")) == ("Failed", code)
    assert site.calls.count("check") == (3 if name == "ensure" else 1)


async def test_a_start_that_fails_twice_is_no_failed_activation() -> None:
    site, effect = site_at(Activate)
    site.script = {"ensure": [StartFailed("busy"), StartFailed("busy"), None]}
    (event,) = await site.run(effect)
    assert event == Activated(SLOT, "b", LiveStats(answered=5, seconds=1.0))


async def test_what_rotted_in_another_slot_is_fetched_before_a_new_process_loads_it() -> None:
    site, effect = site_at(Activate)
    current = site.state.slots[SLOT].current
    site.state = msgspec.structs.replace(
        site.state, slots={"lamp": Slot("lamp", current=current), **site.state.slots}
    )
    site.script = {"check": [FormatError("damaged"), None]}
    (event,) = await site.run(effect)
    assert isinstance(event, Activated)
    assert site.calls == ["check", "fetch_manifest", "fetch_variant", "check", "ensure"]


async def test_one_broken_slot_does_not_silence_the_others() -> None:
    site, _ = site_at(Activate)
    bench = Bench()
    bench.install(1, "a", 1)
    current = bench.state.slots[SLOT].current
    slots = {**bench.state.slots, "lamp": Slot("lamp", current=current)}
    site.state = msgspec.structs.replace(bench.state, slots=slots)
    site.script = {"check": [FormatError("damaged"), None] * 4 + [None], "fetch_variant": [AWAY]}
    events = await site.run(Restore(SLOT, current))  # type: ignore[arg-type]
    assert site.served[0] == [SLOT]  # "lamp" comes first, and is broken
    assert site.served[-1] == ["lamp", SLOT]
    assert events == [ServeUnable("no connection", "lamp")]


async def test_after_a_restart_in_an_activation_the_committed_one_serves_first() -> None:
    site, effect = site_at(Activate)
    site.installer.begin_serving()
    site.installer.carry_out(effect)
    async with asyncio.timeout(5.0):
        while not site.events:  # noqa: ASYNC110 - another task acts
            await asyncio.sleep(0.01)
    await site.installer.stop()
    current = site.state.slots[SLOT].current
    assert current is not None
    assert site.bundles == [current.ref.bundle, effect.release.ref.bundle]


async def test_what_is_committed_and_damaged_does_not_keep_a_candidate_from_its_activation() -> (
    None
):
    site, effect = site_at(Activate)
    site.script = {"check": [FormatError("damaged"), None]}
    site.installer.begin_serving()
    site.installer.carry_out(effect)
    async with asyncio.timeout(5.0):
        while not site.events:  # noqa: ASYNC110 - another task acts
            await asyncio.sleep(0.01)
    await site.installer.stop()
    assert site.bundles == [effect.release.ref.bundle]
    assert isinstance(site.events[0], Activated)


async def test_what_serves_goes_on_while_another_slot_is_broken() -> None:
    site, _ = site_at(Activate)
    site.pid = 7
    current = site.state.slots[SLOT].current
    site.state = msgspec.structs.replace(
        site.state, slots={"lamp": Slot("lamp", current=current), **site.state.slots}
    )
    site.script = {"check": [FormatError("damaged"), None, None], "fetch_variant": [AWAY]}
    await site.run(RollBack(SLOT, "b", None))
    assert site.served == [["lamp", SLOT]]


async def test_a_return_is_tried_until_it_is_done_and_a_bad_start_is_said() -> None:
    site, _ = site_at(Activate)
    site.script = {"ensure": [StartFailed("exit code 1")] * 5 + [None]}
    events = await site.run(RollBack(SLOT, "b", None))
    assert [type(event).__name__ for event in events] == ["ServeUnable", "RolledBack"]


async def test_what_is_damaged_is_fetched_again_before_it_serves() -> None:
    site, _ = site_at(Activate)
    site.script = {"check": [FormatError("damaged")], "fetch_variant": [AWAY, None]}
    await site.run(RollBack(SLOT, "b", None))
    assert site.calls.count("fetch_variant") == 2
    assert site.calls[-1] == "ensure"


async def test_the_same_effect_twice_is_one_act_and_another_takes_its_place() -> None:
    site, effect = site_at(Download)
    site.script = {"fetch_manifest": [AWAY]}
    site.installer.carry_out(effect)
    await asyncio.sleep(0.05)
    task = site.installer._tasks[SLOT][1]
    site.installer.carry_out(effect)
    assert site.installer._tasks[SLOT][1] is task
    site.installer.carry_out(RollBack(SLOT, "b", None))
    await asyncio.sleep(0.05)
    assert task.cancelled()
    assert [type(event).__name__ for event in site.events] == ["RolledBack"]


async def test_a_slot_that_is_done_is_no_longer_watched() -> None:
    site, effect = site_at(Observe)
    site.installer.carry_out(effect)
    await asyncio.sleep(0.05)
    assert len(site.events) > 1
    bench = Bench(site.state)
    bench.take(way("b", 2)[-1])
    site.state = bench.state
    site.installer.carry_out(Discard([]))
    await asyncio.sleep(0.02)
    seen = len(site.events)
    await asyncio.sleep(0.05)
    assert len(site.events) == seen
    assert "keep_only" in site.calls


async def test_a_report_is_handed_on_at_once() -> None:
    site, _ = site_at(Download)
    site.installer.carry_out(Report(7))
    assert site.reports == 1


async def test_everything_under_way_ends_when_it_is_stopped() -> None:
    site, effect = site_at(Download)
    site.script = {"fetch_manifest": [AWAY]}
    site.installer.carry_out(effect)
    await asyncio.sleep(0.01)
    await site.installer.stop()
    assert site.installer._tasks[SLOT][1].cancelled()
    assert site.events == []


# --- waiting for leave ------------------------------------------------------------------------------


def waiting_site(monkeypatch: pytest.MonkeyPatch) -> tuple[Site, Wait, list[Hold | None]]:
    """A site that waits; the list says what is permitted at the next looks, its last entry for good."""
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(desired(2, want("b", 2)), *way("b", 2)[:2], Staged(SLOT, "b", "int8", "window"))
    site = Site(bench.state)
    holds: list[Hold | None] = [None]
    monkeypatch.setattr(agent.installer, "PERMIT_S", 0.001)
    site.installer._permits = lambda _: holds.pop(0) if len(holds) > 1 else holds[0]
    return site, Wait(SLOT, "b", want("b", 2)), holds


def answer(**fields: Any) -> VerifyAnswer:
    fact = verified("b", 2)
    return VerifyAnswer(
        **{"assigned": fact.assigned, "released": fact.released, "metadata": {}, **fields}
    )


async def test_what_waited_is_verified_again_before_it_is_activated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, effect, holds = waiting_site(monkeypatch)
    holds[:] = [CLOSED, CLOSED, None]
    site.script = {"verifier": [answer()]}
    events = await site.run(effect)
    assert [type(event).__name__ for event in events] == ["Held", "Held", "Verified"]


async def test_a_window_that_closes_during_the_verification_holds_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, effect, holds = waiting_site(monkeypatch)
    holds[:] = [None, CLOSED, CLOSED, None]
    site.script = {"verifier": [AWAY, answer()]}
    events = await site.run(effect)
    assert [type(event).__name__ for event in events] == ["Held", "Verified"]


async def test_what_was_withdrawn_while_it_waited_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, effect, _ = waiting_site(monkeypatch)
    site.script = {"verifier": [answer(assigned=None, code="expired", message="too old")]}
    (event,) = await site.run(effect)
    assert isinstance(event, Rejected)
    assert event.code == "expired"


async def test_a_staged_release_says_what_it_waits_for() -> None:
    site, effect = site_at(Stage)
    site.installer._permits = lambda _: CLOSED

    site.script = {"stage": [("int8", {"int8": SmokeResult(ok=True, code="ok", message="")})]}
    site.installer._staging = SimpleNamespace(run=site._doing("stage"))  # type: ignore[assignment]
    (event,) = await site.run(effect)
    assert event == Staged(SLOT, "b", "int8", "window", "window_closed", "not yet", [Trial("int8")])


async def test_a_variant_that_fails_gives_way_to_the_next() -> None:
    site, effect = site_at(Stage)
    failed = SmokeResult(ok=False, code="golden_mismatch", message="differs")
    site.script = {"stage": [("int8", {"int8": failed})]}
    site.installer._staging = SimpleNamespace(run=site._doing("stage"))  # type: ignore[assignment]
    (event,) = await site.run(effect)
    assert event == SmokeFailed(
        SLOT, "b", "int8", "golden_mismatch", "differs", [Trial("int8", "golden_mismatch")]
    )


@pytest.mark.parametrize(
    ("verdict", "required", "stages"),
    [("agrees", False, True), ("undecided", False, True), ("undecided", True, False),
     ("disagrees", False, False), ("failed", False, False)],
)  # fmt: skip
async def test_what_ran_beside_is_told_and_only_what_agrees_may_serve(
    monkeypatch: pytest.MonkeyPatch, verdict: str, required: bool, stages: bool
) -> None:
    site, effect = site_at(Stage)
    slot = site.state.slots[SLOT]
    assert slot.work is not None
    asked = msgspec.structs.replace(slot.work.want, shadow=Shadow(required=required))
    work = msgspec.structs.replace(slot.work, want=asked)
    slots = {SLOT: msgspec.structs.replace(slot, work=work)}
    site.state = msgspec.structs.replace(site.state, slots=slots)
    report = ShadowReport(200, 150, verdict=verdict)

    async def beside(*_: object) -> ShadowReport:
        return report

    monkeypatch.setattr(agent.installer, "shadow_run", beside)
    monkeypatch.setattr(agent.installer, "why_not", lambda *_: "")
    site.manifest = lambda _: None  # type: ignore[attr-defined]
    site.script = {"stage": [("int8", {"int8": SmokeResult(ok=True, code="ok", message="")})]}
    site.installer._staging = SimpleNamespace(run=site._doing("stage"))  # type: ignore[assignment]
    told, then = await site.run(effect)
    assert told == Shadowed(SLOT, "b", report)
    if stages:
        assert then == Staged(SLOT, "b", "int8", trials=[Trial("int8")])
    else:
        message = "beside what serves: 150 of 200 rows agree, 0 errors"
        assert then == Failed(SLOT, "b", f"shadow_{verdict}", message, [Trial("int8")])


def test_a_shadow_that_disagrees_ends_the_assignment_and_changes_nothing() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(desired(2, want("b", 2)), *way("b", 2)[:2])
    report = ShadowReport(200, 20, verdict="disagrees")
    bench.take(Shadowed(SLOT, "b", report))
    bench.take(Failed(SLOT, "b", "shadow_disagrees", "20 of 200 rows agree"))
    slot = bench.state.slots[SLOT]
    assert slot.work is None
    assert slot.current is not None
    assert slot.current.release_counter == 1
    last = bench.state.ended[-1].report
    assert (last.state, last.code, last.shadow) == ("failed", "shadow_disagrees", report)
