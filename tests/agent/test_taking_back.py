"""A slot goes back to what it ran before, once, and the fleet hears of it."""

from pathlib import Path

import pytest

from agent.device_state import State, reported, serving
from agent.facts import Restore, RollBack, RolledBack
from agent.taking_back import CODE, wish_for
from agent.wishes import ask, take_wishes
from skerry.errors import NotFoundError, RefusedError
from skerry.profile import Inventory
from tests.fakes.assignments import SLOT, Bench, desired, digest, want, way


def runs(state: State) -> str:
    return serving(state)[SLOT].ref.bundle.removeprefix("sha256:")


def test_a_committed_release_gives_way_to_the_one_before_once() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    wish, line = wish_for(bench.state, SLOT, "somebody")
    assert "1.1.0" in line
    effects = bench.take(wish)
    assert isinstance(effects[0], Restore)
    assert runs(bench.state) == digest(1)
    assert reported(bench.state, Inventory()).slots[SLOT].bundle == "sha256:" + digest(1)
    assert bench.state.reported_version > bench.state.acked_version
    # read twice, after a crash: it does not go on to anything else
    assert bench.take(wish) == []
    assert runs(bench.state) == digest(1)
    with pytest.raises(RefusedError, match="ran before"):
        wish_for(bench.state, SLOT, "somebody")


def test_a_candidate_in_probation_ends_as_rolled_back_here() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.take(desired(2, want("b", 2)), *way("b", 2)[:-1])
    assert runs(bench.state) == digest(2)
    wish, _ = wish_for(bench.state, SLOT, "somebody")
    effects = bench.take(wish)
    assert any(isinstance(effect, RollBack) for effect in effects)
    bench.take(RolledBack(SLOT, "b"))
    (last,) = [end.report for end in bench.state.ended if end.report.assignment_id == "b"]
    assert (last.state, last.code, last.message) == ("rolled_back", CODE, "taken back by somebody")
    assert runs(bench.state) == digest(1)


def test_what_is_not_possible_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    bench = Bench()
    with pytest.raises(NotFoundError, match="none yet"):
        wish_for(None, SLOT, "somebody")
    bench.install(1, "a", 1)
    with pytest.raises(NotFoundError, match=SLOT):
        wish_for(bench.state, "other", "somebody")
    with pytest.raises(RefusedError, match="ran before"):
        wish_for(bench.state, SLOT, "somebody")
    bench.take(desired(2, want("b", 2)))
    with pytest.raises(RefusedError, match="does not serve yet"):
        wish_for(bench.state, SLOT, "somebody")


def test_a_wish_about_another_bundle_changes_nothing() -> None:
    bench = Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    wish, _ = wish_for(bench.state, SLOT, "somebody")
    bench.install(3, "c", 3)
    assert bench.take(wish) == []
    assert runs(bench.state) == digest(3)


def test_wishes_are_kept_until_they_are_read(tmp_path: Path) -> None:
    file, bench = tmp_path / "taken-back.json", Bench()
    bench.install(1, "a", 1)
    bench.install(2, "b", 2)
    wish, _ = wish_for(bench.state, SLOT, "somebody")
    ask(file, wish)
    ask(file, wish)
    assert take_wishes(file) == [wish]
    assert take_wishes(file) == []
    file.write_bytes(b"torn")
    assert take_wishes(file) == []
