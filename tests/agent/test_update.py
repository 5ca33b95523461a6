"""The update machine: every step, every late fact, and every wrong release."""

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.device_state import Doing, State, doing, pending, reported, serving
from agent.facts import (
    Acknowledged,
    Activate,
    Activated,
    ClockJumped,
    Discard,
    Download,
    Event,
    Failed,
    FleetTimeHeard,
    Held,
    Noted,
    Observe,
    ProbationObserved,
    Refreshed,
    Rejected,
    Report,
    Restarted,
    Restore,
    RollBack,
    ServeCrashed,
    ServeUnable,
    SmokeFailed,
    Stage,
    Staged,
    Steadied,
    Ticked,
    Unfit,
    Verify,
    Wait,
)
from agent.probation import judge
from agent.update import step
from skerry.canonical import from_msgpack, to_msgpack
from skerry.profile import Inventory
from skerry.states import ASSIGNMENT, AssignmentState
from skerry.trials import Trial
from skerry.wire import LiveStats, Probation
from tests.fakes.assignments import (
    HEALTHY,
    NOW,
    PROBATION,
    SLOT,
    Bench,
    desired,
    digest,
    fresh,
    rolled_back,
    verified,
    want,
    way,
)

HALF_WAY = {
    Doing.VERIFYING: 0,
    Doing.DOWNLOADING: 1,
    Doing.STAGING: 2,
    Doing.ACTIVATING: 3,
    Doing.PROBATION: 4,
}


def bench_at(wanted: Doing) -> Bench:
    """A bench with release 1 committed and the assignment `b` of release 2 that far."""
    bench = Bench()
    bench.install(1, "a", 1)
    bench.log.clear()
    if wanted is Doing.IDLE:
        return bench
    bench.take(desired(2, want("b", 2)))
    if wanted is Doing.WAITING:
        bench.take(*way("b", 2)[:2], staged_and_held())
    elif wanted is Doing.ROLLING_BACK:
        bench.take(*way("b", 2)[:3], Failed(SLOT, "b", "serve_failed", "it crashed"))
    else:
        bench.take(*way("b", 2)[: HALF_WAY[wanted]]) if HALF_WAY[wanted] else None
    assert doing(bench.state.slots[SLOT]) is wanted
    bench.log.clear()
    return bench


def staged_and_held(id: str = "b", hold: str = "window") -> Staged:
    return Staged(SLOT, id, "int8", hold, f"{hold}_closed", "not yet")


def outcomes(id: str) -> list[Event]:
    """One of every fact about an assignment."""
    return [
        *way(id, 2),
        Rejected(SLOT, id, "signature_invalid", "not signed"),
        Unfit(SLOT, id, "no variant"),
        SmokeFailed(SLOT, id, "int8", "golden_mismatch", "differs"),
        Failed(SLOT, id, "internal", "it broke"),
        Held(SLOT, id, "consent", "consent_needed", "ask"),
        rolled_back(id),
    ]


# what moves on from where; every other pair must change nothing
EXPECTED = {
    (Doing.VERIFYING, "Verified"): Doing.DOWNLOADING,
    (Doing.VERIFYING, "Rejected"): Doing.IDLE,
    (Doing.VERIFYING, "Failed"): Doing.IDLE,
    (Doing.DOWNLOADING, "Downloaded"): Doing.STAGING,
    (Doing.DOWNLOADING, "Rejected"): Doing.IDLE,
    (Doing.DOWNLOADING, "Unfit"): Doing.IDLE,
    (Doing.DOWNLOADING, "Failed"): Doing.IDLE,
    (Doing.STAGING, "Staged"): Doing.ACTIVATING,
    (Doing.STAGING, "SmokeFailed"): Doing.STAGING,
    (Doing.STAGING, "Failed"): Doing.IDLE,
    (Doing.WAITING, "Held"): Doing.WAITING,
    (Doing.WAITING, "Verified"): Doing.ACTIVATING,
    (Doing.WAITING, "Rejected"): Doing.IDLE,
    (Doing.ACTIVATING, "Activated"): Doing.PROBATION,
    (Doing.ACTIVATING, "Failed"): Doing.ROLLING_BACK,
    (Doing.PROBATION, "ProbationObserved"): Doing.IDLE,
    (Doing.ROLLING_BACK, "RolledBack"): Doing.IDLE,
}


@pytest.mark.parametrize("where", list(Doing))
@pytest.mark.parametrize("event", outcomes("b"), ids=lambda event: type(event).__name__)
def test_every_pair_of_activity_and_outcome(where: Doing, event: Event) -> None:
    bench = bench_at(where)
    before = bench.state
    bench.take(event)
    expected = EXPECTED.get((where, type(event).__name__))
    if expected is None:
        assert bench.state == before
        assert bench.log == []
    else:
        assert doing(bench.state.slots[SLOT]) is expected
        assert bench.state != before


@pytest.mark.parametrize("where", list(Doing))
@pytest.mark.parametrize("event", outcomes("a"), ids=lambda event: type(event).__name__)
def test_a_fact_about_an_assignment_that_is_over_changes_nothing(
    where: Doing, event: Event
) -> None:
    bench = bench_at(where)
    before = bench.state
    bench.take(event)
    assert bench.state == before


def test_a_good_release_is_verified_tried_observed_and_committed() -> None:
    bench = Bench()
    bench.take(desired(1, want("a")), *way("a"))
    kinds = [type(effect).__name__ for effect in bench.effects]
    acts = [kind for kind in kinds if kind not in {"Report", "Discard"}]
    assert acts == ["Verify", "Download", "Stage", "Activate", "Observe"]
    report = bench.state.ended[-1].report
    assert [entry.state for entry in report.path] == [
        "notified", "downloading", "downloaded", "verified", "staged", "activating",
        "probation", "committed",
    ]  # fmt: skip
    assert report.live == HEALTHY
    assert report.variant == "int8"
    assert bench.state.floor.releases == {SLOT: 1}
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)


def test_every_path_is_one_that_the_table_lists() -> None:
    for where, event in itertools.product(Doing, outcomes("b")):
        bench = bench_at(where)
        bench.take(event)
        for ended in bench.state.ended:
            states = [AssignmentState(entry.state) for entry in ended.report.path]
            assert all(b in ASSIGNMENT[a] for a, b in itertools.pairwise(states))


# --- versions and floors -------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_desired_that_is_not_newer_is_ignored(version: int) -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(desired(2, want("b", 2)))
    before = bench.state
    bench.take(desired(version, want("c", 3)))
    assert bench.state == before


def test_an_assignment_is_begun_once() -> None:
    bench = Bench()
    bench.take(desired(1, want("a")), Rejected(SLOT, "a", "signature_invalid", "no"))
    effects = bench.take(desired(2, want("a")))
    assert [type(effect) for effect in effects] == [Report]
    assert bench.state.desired_version == 2


def test_a_release_below_the_floor_is_rejected() -> None:
    bench = Bench()
    bench.install(1, "a", 3)
    bench.take(desired(2, want("b", 4)), *way("b", 4))
    bench.take(desired(3, want("c", 1)), verified("c", 1))
    assert bench.state.ended[-1].report.code == "release_below_floor"
    assert bench.last_word() == "rejected"
    assert bench.state.floor.releases == {SLOT: 4}


def test_the_release_in_the_other_slot_may_return_below_the_floor() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    bench.install(3, "c", 1)
    assert bench.state.floor.releases == {SLOT: 2}


def test_a_release_that_the_running_one_names_may_return_below_the_floor() -> None:
    bench = Bench()
    for version, (id, counter) in enumerate([("a", 1), ("b", 2), ("c", 3)], start=1):
        bench.install(version, id, counter, back=(1,))
    bench.install(4, "d", 1)


def test_older_metadata_is_rejected() -> None:
    bench = Bench()
    bench.take(desired(1, want("a")), verified("a", metadata={"catalog/timestamp": 9}))
    bench.take(desired(2, want("b", 2)), verified("b", 2, metadata={"catalog/timestamp": 8}))
    assert bench.state.ended[-1].report.code == "metadata_below_floor"


def test_another_devices_assignment_is_rejected() -> None:
    bench = Bench()
    bench.take(desired(1, want("a")), verified("a", device="cam-2"))
    assert (bench.last_word(), bench.state.ended[-1].report.code) == ("rejected", "wrong_device")


def test_a_release_for_other_hardware_is_incompatible_and_no_failure() -> None:
    bench = Bench()
    bench.take(desired(1, want("a")), verified("a", hw="linux-aarch64"))
    assert bench.last_word() == "incompatible"


def test_metadata_of_another_bundle_than_desired_is_rejected() -> None:
    bench = Bench()
    bench.take(desired(1, want("a", 1)), verified("a", 2))
    assert bench.state.ended[-1].report.code == "disagreement"


def test_what_runs_already_is_not_installed_again() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    effects = bench.take(desired(2, want("b", 1)), verified("b", 1))
    assert bench.last_word() == "already_installed"
    assert not any(isinstance(effect, Download) for effect in effects)


# --- variants, probation, rolling back --------------------------------------------------------


def test_the_next_variant_is_tried_when_the_first_fails_its_smoke_run() -> None:
    bench = bench_at(Doing.STAGING)
    effects = bench.take(SmokeFailed(SLOT, "b", "int8", "golden_mismatch", "differs"))
    assert [effect.variant for effect in effects if isinstance(effect, Stage)] == ["fp32"]
    # the same fact twice does not spend the second variant
    assert bench.take(SmokeFailed(SLOT, "b", "int8", "golden_mismatch", "differs")) == []
    bench.take(Staged(SLOT, "b", "fp32"), Activated(SLOT, "b"))
    assert serving(bench.state)[SLOT].ref.variant == "fp32"


def test_what_was_measured_of_every_variant_is_reported() -> None:
    bench = bench_at(Doing.STAGING)
    bad, good = Trial("int8", "golden_mismatch", disagree=0.5), Trial("fp32", run_us=80.0)
    bench.take(SmokeFailed(SLOT, "b", "int8", "golden_mismatch", "differs", [bad]))
    bench.take(Staged(SLOT, "b", "fp32", trials=[good]), *way("b", 2)[3:])
    assert bench.state.ended[-1].report.trials == [bad, good]


def test_what_was_measured_is_reported_of_a_candidate_that_failed_beside_the_other() -> None:
    bench = bench_at(Doing.STAGING)
    bench.take(Failed(SLOT, "b", "shadow_disagrees", "no", [Trial("int8", run_us=9.0)]))
    report = bench.state.ended[-1].report
    assert (report.code, report.trials) == ("shadow_disagrees", [Trial("int8", run_us=9.0)])


def test_a_better_variant_than_the_first_may_be_staged() -> None:
    bench = bench_at(Doing.STAGING)
    bench.take(Staged(SLOT, "b", "fp32"))
    assert serving(bench.state)[SLOT].ref.variant == "fp32"


def test_no_variant_left_fails_without_a_change() -> None:
    bench = bench_at(Doing.STAGING)
    for variant in ("int8", "fp32"):
        bench.take(SmokeFailed(SLOT, "b", variant, "golden_mismatch", "differs"))
    report = bench.state.ended[-1].report
    assert (report.state, report.phase, report.code, report.effect) == (
        "failed", "verified", "golden_mismatch", "no_state_change",
    )  # fmt: skip
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)


def test_a_failed_activation_returns_to_what_was_committed() -> None:
    bench = bench_at(Doing.ACTIVATING)
    effect, _ = bench.take(Failed(SLOT, "b", "serve_failed", "it crashed"))
    assert isinstance(effect, RollBack)
    assert effect.release == bench.state.slots[SLOT].current
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)
    bench.take(rolled_back("b"))
    report = bench.state.ended[-1].report
    assert (report.state, report.effect, report.code) == (
        "rolled_back", "rolled_back", "serve_failed",
    )  # fmt: skip


def test_too_little_traffic_by_the_end_of_probation_is_no_success() -> None:
    bench = bench_at(Doing.PROBATION)
    quiet = ProbationObserved(SLOT, "b", LiveStats(answered=29, seconds=100.0))
    assert bench.take(quiet) == []
    bench.take(quiet, after=60.0)
    bench.take(rolled_back("b"))
    assert bench.state.ended[-1].report.code == "insufficient_data"
    assert bench.state.floor.releases == {SLOT: 1}


def test_three_crashes_in_probation_roll_back_and_two_do_not() -> None:
    bench = bench_at(Doing.PROBATION)
    bench.take(ServeCrashed(), ServeCrashed())
    assert doing(bench.state.slots[SLOT]) is Doing.PROBATION
    bench.take(ServeCrashed())
    assert doing(bench.state.slots[SLOT]) is Doing.ROLLING_BACK


def test_crashes_outside_of_probation_change_nothing() -> None:
    bench = bench_at(Doing.DOWNLOADING)
    assert bench.take(ServeCrashed(), ServeCrashed(), ServeCrashed()) == []


def test_a_candidate_with_which_serve_does_not_start_rolls_back() -> None:
    bench = bench_at(Doing.PROBATION)
    bench.take(ServeUnable("exit code 1"))
    bench.take(rolled_back("b"))
    assert bench.state.ended[-1].report.code == "serve_failed"


def test_a_committed_release_with_which_serve_does_not_start_gives_way_to_the_one_before() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    effects = bench.take(ServeUnable("exit code 1"))
    assert [type(effect) for effect in effects] == [Restore, Report]
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)
    assert bench.take(ServeUnable("exit code 1")) == []


def test_an_assignment_that_takes_too_long_times_out() -> None:
    bench = bench_at(Doing.DOWNLOADING)
    assert bench.take(Ticked()) == []
    bench.take(Ticked(), after=600.0)
    report = bench.state.ended[-1].report
    assert (report.state, report.effect) == ("timed_out", "no_state_change")


def test_a_deadline_in_probation_rolls_back_first() -> None:
    bench = bench_at(Doing.PROBATION)
    effect, _ = bench.take(Ticked(), after=600.0)
    assert isinstance(effect, RollBack)
    assert bench.take(Ticked()) == []
    bench.take(rolled_back("b"))
    report = bench.state.ended[-1].report
    assert (report.state, report.effect) == ("timed_out", "rolled_back")


# --- waiting for leave ------------------------------------------------------------------------


def test_what_is_not_permitted_waits_and_says_why() -> None:
    bench = bench_at(Doing.STAGING)
    effects = bench.take(staged_and_held())
    assert [type(effect) for effect in effects] == [Wait, Report]
    *_, report = reported(bench.state, Inventory()).assignments
    assert (report.state, report.code, report.message) == (
        "waiting_window", "window_closed", "not yet",
    )  # fmt: skip
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)
    # the same once more is no news, another reason is, and another kind is another state
    held = Held(SLOT, "b", "window", "window_closed", "not yet")
    assert bench.take(held) == []
    assert [type(e) for e in bench.take(Held(SLOT, "b", "window", "clock_unset", "?"))] == [Report]
    bench.take(Held(SLOT, "b", "consent", "consent_needed", "ask"))
    *_, report = reported(bench.state, Inventory()).assignments
    assert (report.state, report.code) == ("waiting_consent", "consent_needed")
    bench.take(verified("b", 2))
    *_, report = reported(bench.state, Inventory()).assignments
    assert (report.state, report.code) == ("activating", None)


def test_a_release_that_was_withdrawn_meanwhile_is_not_activated() -> None:
    bench = bench_at(Doing.WAITING)
    bench.take(verified("b", 2, metadata={"director/timestamp": 0}))
    assert bench.state.ended[-1].report.code == "metadata_below_floor"
    assert bench.last_word() == "rejected"
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)


def test_waiting_is_no_part_of_the_deadline() -> None:
    bench = bench_at(Doing.WAITING)
    assert bench.take(Ticked(), after=90 * 86_400.0) == []
    bench.take(verified("b", 2))
    assert bench.take(Ticked(), after=580.0) == []
    effect, _ = bench.take(Ticked(), after=20.0)
    assert isinstance(effect, RollBack)


def test_one_who_goes_back_and_forth_for_ever_has_a_bounded_path() -> None:
    bench = bench_at(Doing.WAITING)
    for _ in range(100):
        bench.take(Held(SLOT, "b", "consent", "deferred", "not now"))
        bench.take(Held(SLOT, "b", "window", "window_closed", "not yet"))
    work = bench.state.slots[SLOT].work
    assert work is not None
    assert len(work.path) == 64
    bench.take(verified("b", 2))
    assert doing(bench.state.slots[SLOT]) is Doing.ACTIVATING


@pytest.mark.parametrize(
    "where", [Doing.VERIFYING, Doing.DOWNLOADING, Doing.STAGING, Doing.WAITING]
)
def test_what_keeps_an_assignment_from_getting_on_is_told_once(where: Doing) -> None:
    bench = bench_at(where)
    note = Noted(SLOT, "b", "slow_retrieval", "too slow")
    assert [type(effect) for effect in bench.take(note)] == [Report]
    assert bench.take(note) == []
    assert reported(bench.state, Inventory()).assignments[-1].code == "slow_retrieval"
    bench.take(Noted(SLOT, "b", "", ""))
    assert reported(bench.state, Inventory()).assignments[-1].code is None


@pytest.mark.parametrize("by", [1.8e9, -7200.0])
def test_a_clock_that_is_put_right_ends_nothing(by: float) -> None:
    """It showed 1970, or was ahead; what was noted by it moves along."""
    bench = Bench()
    bench.now = NOW - by
    bench.take(desired(1, want("a")), *way("a")[:2])
    begun = bench.state.slots[SLOT].work
    assert begun is not None
    bench.now = NOW
    assert [type(effect) for effect in bench.take(ClockJumped(by))] == [Report]
    assert bench.take(Ticked(), after=500.0) == []
    work = bench.state.slots[SLOT].work
    assert work is not None
    assert [step.state for step in work.path] == [step.state for step in begun.path]
    assert NOW - 10 < work.path[0].at <= work.since < NOW + 10
    bench.take(Ticked(), after=100.0)
    assert bench.last_word() == "timed_out"


def test_a_step_that_was_taken_after_the_clock_was_put_right_stays() -> None:
    bench = Bench()
    bench.now = 1000.0
    bench.take(desired(1, want("a")))
    bench.now = NOW
    bench.take(verified("a"), ClockJumped(NOW - 1000.0))
    work = bench.state.slots[SLOT].work
    assert work is not None
    assert NOW - 10 < work.path[0].at < NOW + 10
    assert work.since == NOW + 1


def test_a_clock_that_jumps_while_nothing_is_under_way_changes_nothing() -> None:
    bench = bench_at(Doing.IDLE)
    assert bench.take(ClockJumped(1e9)) == []


# --- nets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [Doing.ACTIVATING, Doing.PROBATION])
def test_a_candidate_with_which_the_device_ends_three_times_rolls_back(where: Doing) -> None:
    bench = bench_at(where)
    for _ in range(2):
        bench = Bench(from_msgpack(to_msgpack(bench.state), State))
        bench.take(Restarted())
        assert doing(bench.state.slots[SLOT]) is where
    bench.take(Restarted())
    assert doing(bench.state.slots[SLOT]) is Doing.ROLLING_BACK
    bench.take(rolled_back("b"))
    assert bench.state.ended[-1].report.code == "serve_crashed"


@pytest.mark.parametrize("where", [Doing.IDLE, Doing.DOWNLOADING, Doing.WAITING])
def test_a_restart_with_what_is_committed_counts_for_nothing(where: Doing) -> None:
    bench = bench_at(where)
    assert bench.take(*[Restarted()] * 9) == []


def test_the_assignment_says_how_many_crashes_are_too_many() -> None:
    bench = bench_at(Doing.IDLE)
    strict = msgspec.structs.replace(PROBATION, max_crashes=0)
    bench.take(desired(2, want("b", 2, probation=strict)), *way("b", 2)[:4], ServeCrashed())
    assert doing(bench.state.slots[SLOT]) is Doing.ROLLING_BACK


def test_the_last_known_good_is_the_last_net() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(Steadied(), after=3600.0)
    bench.install(2, "b", 2)
    bench.install(3, "c", 3)
    assert bench.take(Steadied()) == []  # too early to know
    (discard,) = [effect for effect in pending(bench.state) if isinstance(effect, Discard)]
    assert discard.keep == ["sha256:" + digest(n) for n in (1, 2, 3)]
    for counter in (2, 1):
        effects = bench.take(ServeUnable("exit code 1"))
        assert isinstance(effects[0], Restore)
        assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(counter)
    assert bench.take(ServeUnable("exit code 1")) == []


def test_what_has_served_for_long_takes_the_place_of_an_older_net() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(Steadied(), after=3600.0)
    bench.install(2, "b", 2)
    bench.install(3, "c", 3)
    (discard,) = [e for e in bench.take(Steadied(), after=3600.0) if isinstance(e, Discard)]
    assert discard.keep == ["sha256:" + digest(n) for n in (2, 3)]
    assert bench.take(Steadied()) == []


def test_a_candidate_is_never_the_last_known_good() -> None:
    bench = bench_at(Doing.PROBATION)
    assert bench.take(Steadied(), after=50.0) == []


def test_the_slot_at_fault_falls_back_and_no_other() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    assert bench.take(ServeUnable("damaged", "lamp")) == []
    effects = bench.take(ServeUnable("damaged", SLOT))
    assert isinstance(effects[0], Restore)
    bench = bench_at(Doing.PROBATION)
    assert bench.take(ServeUnable("damaged", "lamp")) == []
    assert doing(bench.state.slots[SLOT]) is Doing.PROBATION


# --- superseding ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [Doing.VERIFYING, Doing.DOWNLOADING, Doing.STAGING])
def test_a_newer_assignment_takes_the_place_of_one_that_changed_nothing(where: Doing) -> None:
    bench = bench_at(where)
    effects = bench.take(desired(3, want("c", 3)))
    assert bench.last_word() == "superseded"
    assert [effect.assignment_id for effect in effects if isinstance(effect, Verify)] == ["c"]


@pytest.mark.parametrize("where", [Doing.ACTIVATING, Doing.PROBATION])
def test_a_newer_assignment_waits_until_a_serving_candidate_has_gone(where: Doing) -> None:
    bench = bench_at(where)
    effects = bench.take(desired(3, want("c", 3)))
    assert isinstance(effects[0], RollBack)
    effects = bench.take(rolled_back("b"))
    assert bench.state.ended[-1].report.effect == "rolled_back"
    assert bench.last_word() == "superseded"
    assert [effect.assignment_id for effect in effects if isinstance(effect, Verify)] == ["c"]


def test_only_the_newest_of_several_waits() -> None:
    bench = bench_at(Doing.PROBATION)
    bench.take(desired(3, want("c", 3)), desired(4, want("d", 4)))
    effects = bench.take(rolled_back("b"))
    assert [effect.assignment_id for effect in effects if isinstance(effect, Verify)] == ["d"]


def test_an_assignment_that_is_no_longer_desired_is_canceled() -> None:
    bench = bench_at(Doing.DOWNLOADING)
    bench.take(desired(3))
    assert bench.last_word() == "canceled"
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)


def test_a_first_release_that_is_taken_back_leaves_an_empty_slot() -> None:
    bench = Bench()
    bench.take(desired(1, want("a")), *way("a")[:4])
    effect, *_ = bench.take(desired(2))
    assert isinstance(effect, RollBack)
    assert effect.release is None
    bench.take(rolled_back("a"))
    assert serving(bench.state) == {}


def test_what_is_committed_stays_when_its_slot_is_no_longer_desired() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(desired(2))
    assert serving(bench.state)[SLOT].ref.bundle == "sha256:" + digest(1)


def test_two_slots_go_their_own_ways() -> None:
    bench = Bench()
    event = desired(1, want("a"))
    event.desired.slots["other"] = want("o", 2)
    bench.take(event, *way("a"))
    assert doing(bench.state.slots["other"]) is Doing.VERIFYING
    assert bench.last_word() == "committed"


# --- reports ------------------------------------------------------------------------------------


def test_a_last_word_is_kept_until_it_is_acknowledged() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    version = bench.state.reported_version
    bench.take(Acknowledged(version - 1))
    assert [ended.report.assignment_id for ended in bench.state.ended] == ["a"]
    assert [r.state for r in reported(bench.state, Inventory()).assignments] == ["committed"]
    bench.take(Acknowledged(version))
    assert bench.state.ended == []
    assert bench.state.reported_version == version


def test_every_change_that_the_fleet_must_know_raises_the_version() -> None:
    bench = Bench()
    versions = []
    for event in [desired(1, want("a")), *way("a")]:
        effects = bench.take(event)
        versions.append(bench.state.reported_version)
        assert Report(versions[-1]) in effects
    assert versions == sorted(set(versions))


def test_a_device_that_lost_its_state_goes_on_above_what_the_fleet_knows() -> None:
    bench = Bench()
    bench.take(desired(1, want("a")), Acknowledged(40))
    assert bench.state.reported_version == 41


def test_fleet_time_raises_the_clock_floor_in_steps() -> None:
    bench = Bench()
    bench.take(Refreshed({}, ["k"], {"catalog": NOW + 9_999}))
    bench.take(FleetTimeHeard(NOW, "k"))
    assert bench.take(FleetTimeHeard(NOW + 10, "k")) == []
    assert bench.state.floor.time == NOW
    bench.take(FleetTimeHeard(NOW + 7200, "j"), FleetTimeHeard(NOW + 100, "k"))
    assert (bench.state.floor.time, bench.state.floor.time_key) == (NOW + 7200, "j")


def test_fleet_time_is_bounded_by_what_other_keys_have_signed() -> None:
    bench = Bench()
    bench.take(FleetTimeHeard(NOW, "k"))
    assert bench.state.floor.time == 0.0
    bench.take(Refreshed({}, ["k"], {"catalog": NOW + 500.0, "director": NOW + 200.0}))
    bench.take(FleetTimeHeard(4e9, "k"))
    assert bench.state.floor.time == NOW + 500.0


@pytest.mark.parametrize(
    ("root", "keys", "stands"),
    [(1, ["new"], True), (2, ["k", "new"], True), (2, ["new"], False)],
)
def test_a_newer_root_without_the_key_ends_the_floor_of_time(
    root: int, keys: list[str], stands: bool
) -> None:
    bench = Bench()
    bench.take(Refreshed({"director/root": 1, "director/timestamp": 5}, ["k"], {"catalog": NOW}))
    bench.take(FleetTimeHeard(NOW, "k"))
    assert bench.state.floor.time == NOW
    bench.take(Refreshed({"director/root": root}, keys))
    assert bench.state.floor.time == (NOW if stands else 0.0)
    bench.take(Refreshed({"director/timestamp": 1}, keys))
    assert bench.state.floor.metadata["director/timestamp"] == (5 if root == 1 else 1)


# --- save, then act -------------------------------------------------------------------------------


def test_the_state_is_saved_before_anything_is_done() -> None:
    bench = Bench()
    for event in [desired(1, want("a")), *way("a")]:
        bench.log.clear()
        bench.take(event)
        kinds = [isinstance(entry, State) for entry in bench.log]
        assert kinds[0]
        assert not any(kinds[1:])


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_what_could_not_be_saved_is_not_done_and_may_be_handed_in_again(fails: int) -> None:
    bench = Bench()
    for event in [desired(1, want("a")), *way("a")]:
        bench.fail_saves = fails
        before = bench.state
        for _ in range(fails):
            with pytest.raises(OSError, match="no space"):
                bench.take(event)
            assert bench.state == before
            assert bench.effects == []
        bench.take(event)
        bench.log.clear()
    assert bench.last_word() == "committed"


@pytest.mark.parametrize(
    ("where", "act"),
    [
        (Doing.VERIFYING, Verify),
        (Doing.DOWNLOADING, Download),
        (Doing.STAGING, Stage),
        (Doing.WAITING, Wait),
        (Doing.ACTIVATING, Activate),
        (Doing.PROBATION, Observe),
        (Doing.ROLLING_BACK, RollBack),
    ],
)
def test_a_restart_repeats_the_act_of_the_saved_state(where: Doing, act: type) -> None:
    saved = bench_at(where).state
    again = from_msgpack(to_msgpack(saved), State)
    assert again == saved
    bench = Bench(again)
    bench.machine.resume()
    assert [type(effect) for effect in bench.effects] == [act, Discard, Report]


def test_nothing_is_repeated_when_nothing_is_under_way() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(Acknowledged(bench.state.reported_version))
    assert pending(bench.state) == [Discard(["sha256:" + digest(1)])]


def test_discard_keeps_what_runs_what_ran_before_and_what_is_being_installed() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    bench.take(desired(3, want("c", 3)), verified("c", 3))
    (discard,) = [effect for effect in pending(bench.state) if isinstance(effect, Discard)]
    assert discard.keep == ["sha256:" + digest(n) for n in (1, 2, 3)]


# --- judging probation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("live", "elapsed", "verdict"),
    [
        (LiveStats(answered=29, seconds=9.0), 9.0, None),
        (LiveStats(answered=30, seconds=2.9), 9.0, None),
        (LiveStats(answered=30, seconds=3.0), 9.0, "ok"),
        (LiveStats(answered=29, seconds=60.0), 60.0, "insufficient_data"),
        (LiveStats(answered=0, errors=0, seconds=60.0), 60.0, "insufficient_data"),
        (LiveStats(answered=98, errors=2, seconds=9.0), 9.0, "ok"),
        (LiveStats(answered=97, errors=3, seconds=9.0), 9.0, "error_rate"),
        (LiveStats(answered=0, errors=30, seconds=1.0), 1.0, "error_rate"),
        (LiveStats(answered=0, errors=3, seconds=9.0), 9.0, None),
        (LiveStats(answered=0, errors=3, seconds=60.0), 60.0, "error_rate"),
    ],
)
def test_verdicts_of_probation(live: LiveStats, elapsed: float, verdict: str | None) -> None:
    found = judge(PROBATION, live, elapsed)
    assert (found and found[0]) == verdict


def test_a_slow_candidate_is_not_committed() -> None:
    slow = LiveStats(answered=100, seconds=9.0, p99_us=51_000.0)
    assert (judge(Probation(max_p99_ms=50.0), slow, 9.0) or ("",))[0] == "latency"


@pytest.mark.parametrize(
    ("before", "p99", "verdict"),
    [
        (LiveStats(p99_us=1000.0), 1500.0, "ok"),
        (LiveStats(p99_us=1000.0), 1501.0, "latency"),
        (LiveStats(), 9e9, "ok"),
        (None, 9e9, "ok"),
    ],
)
def test_a_candidate_may_be_held_against_what_was_before(
    before: LiveStats | None, p99: float, verdict: str
) -> None:
    live = LiveStats(answered=100, seconds=9.0, p99_us=p99)
    assert (judge(Probation(max_latency_ratio=1.5), live, 9.0, before) or ("",))[0] == verdict


def test_what_was_before_outlives_a_restart() -> None:
    bench = bench_at(Doing.ACTIVATING)
    relative = LiveStats(p99_us=1000.0)
    bench.take(Activated(SLOT, "b", relative))
    work = from_msgpack(to_msgpack(bench.state), State).slots[SLOT].work
    assert work is not None
    assert work.before == relative


def test_a_return_asks_nothing_of_the_traffic() -> None:
    at_once = Probation(min_answered=0, min_seconds=0.0, max_error_rate=1.0)
    assert judge(at_once, LiveStats(), 0.0) == ("ok", "")


# --- any history ------------------------------------------------------------------------------------

IDS = ("a", "b", "c")
EVENTS = st.one_of(
    st.builds(
        lambda version, id: desired(version, want(id, IDS.index(id) + 1)),
        st.integers(0, 6),
        st.sampled_from(IDS),
    ),
    st.builds(desired, st.integers(0, 6)),
    st.sampled_from([event for id in IDS for event in outcomes(id)]),
    st.sampled_from([staged_and_held(id) for id in IDS]),
    st.sampled_from([Ticked(), ServeCrashed(), ServeUnable("no"), Acknowledged(3)]),
    st.sampled_from([Restarted(), Steadied(), ClockJumped(9.0), ClockJumped(-9.0)]),
)


@settings(deadline=None)
@given(events=st.lists(EVENTS, max_size=40))
def test_step_is_total_and_keeps_its_laws(events: list[Event]) -> None:
    state, now = fresh(), NOW
    for event in events:
        now += 7.0
        new, effects = step(state, event, now)
        assert new.desired_version >= state.desired_version
        assert new.reported_version >= state.reported_version
        for name, counter in state.floor.releases.items():
            assert new.floor.releases[name] >= counter
        # nothing is ever taken from a slot without something verified in its place
        assert set(serving(state)) <= set(serving(new)) or any(
            doing(slot) is not Doing.IDLE for slot in state.slots.values()
        )
        assert from_msgpack(to_msgpack(new), State) == new
        acts = [e for e in effects if not isinstance(e, Report | Discard | Restore)]
        assert all(effect in pending(new) for effect in acts)
        state = new
