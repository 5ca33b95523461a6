"""Recovery: what a killed process left open is counted once, by whoever comes after it."""

import os
import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import agent.recover
from agent.observe import Observer, RecentIds
from agent.recover import Recovery, foreign_contexts
from agent.segments import (
    DONE,
    CountPlan,
    Header,
    boots,
    is_live,
    iter_records,
    read_header,
    segments,
    settled_upto,
)
from agent.spool import Spool
from skerry.canonical import from_msgpack
from skerry.records import Context, Item, Loss
from skerry.sketch import CategoricalSpec, NumericSpec
from tests.fakes.serving import items, recorded_ids, windows

EDGES = NumericSpec([0.0, 0.25, 0.5, 0.75, 1.0])
PLAN = CountPlan(
    ["brightness"],
    [0, 1],
    {"brightness": EDGES, "prediction": CategoricalSpec(["a", "b"]), "confidence": EDGES},
)
OLD = Context("slot-a", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")
NEW = Context("slot-a", "reader", "1.1.0", "sha256:" + "1" * 64, "fp32-cpu")
T0 = 1_700_000_000.0


class Process:
    """The recording part of a serve process, as `agent.serve` puts it together."""

    def __init__(
        self, root: Path, boot: str, context: Context = OLD, os_boot: str = "os-1"
    ) -> None:
        contexts = {context: PLAN}
        contexts |= {c: p for c, p in foreign_contexts(root).items() if c not in contexts}
        header = Header(boot, 1, os_boot, 1.0, list(contexts), list(contexts.values()))
        self.spool = Spool(root, header, segment_bytes=2048, max_bytes=1 << 20)
        self.observer = Observer(self.spool, header.plans, 1.0, RecentIds(10_000))
        self.recovery = Recovery(root, self.spool, self.observer, header.contexts, os_boot)

    def see(self, id: str, at: float, value: float = 0.3) -> bool:
        self.recovery.catch_up()
        return self.observer.record(
            0, id, at=at, prediction=0, confidence=value, latency_us=9, features=[value]
        )

    def die(self) -> None:
        """What SIGKILL leaves: files as they are, no lock."""
        os.close(self.spool._lock)
        if self.spool._view is not None:
            self.spool._view.close()
            os.close(self.spool._fd)

    def end(self) -> None:
        self.observer.close_all()
        self.spool.close(counted=self.observer.all_written)


def counted(root: Path) -> int:
    return sum(window.n for window in windows(root))


def test_open_windows_of_a_dead_boot_are_rebuilt_as_they_would_have_been(tmp_path: Path) -> None:
    dead, alive = tmp_path / "dead", tmp_path / "alive"
    died, ended = Process(dead, "b1"), Process(alive, "b1")
    for process in (died, ended):
        for i in range(50):
            process.see(f"id-{i}", T0 + i * 0.07, value=(i * 37 % 100) / 100)
    died.die()
    ended.end()
    heir = Process(dead, "b2")
    assert heir.recovery.start() == 4
    rebuilt = [item for boot, _, item in items(dead) if boot == "b2"]
    assert rebuilt == windows(alive)
    assert settled_upto(dead / "b1") == DONE
    heir.end()


def test_failures_of_an_open_window_survive_its_process(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1")
    first.observer.error(0, T0 + 0.1)
    first.see("a", T0 + 0.2)
    first.observer.error(0, T0 + 0.3)
    first.observer.error(0, T0 + 1.3)  # a window of nothing else
    first.die()
    second = Process(tmp_path, "b2")
    second.recovery.start()
    second.die()
    third = Process(tmp_path, "b3")
    third.recovery.start()
    assert [(w.start - T0, w.n, w.errors, w.covers) for w in windows(tmp_path)] == [
        (0.0, 1, 2, {"b1": (1, 3)}),
        (1.0, 0, 1, {"b1": (4, 4)}),
    ]
    third.end()


def test_windows_that_were_written_are_not_counted_again(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1")
    first.see("a", T0)
    first.observer.close_due(T0 + 5)
    first.see("b", T0 + 6)
    first.die()
    heir = Process(tmp_path, "b2")
    heir.recovery.start()
    assert [(w.start, w.n, w.covers) for w in windows(tmp_path)] == [
        (T0, 1, {"b1": (1, 1)}),
        (T0 + 6, 1, {"b1": (3, 3)}),
    ]
    heir.end()


def test_a_window_written_just_before_death_counts_although_it_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Process(tmp_path, "b1")
    first.see("a", T0)
    monkeypatch.setattr(Spool, "settle", lambda *_: None)  # killed between the two writes
    first.observer.close_all()
    first.die()
    monkeypatch.undo()
    heir = Process(tmp_path, "b2")
    assert heir.recovery.start() == 0
    assert counted(tmp_path) == 1
    heir.end()


def test_ids_of_dead_boots_are_known(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1")
    first.see("a", T0)
    first.die()
    heir = Process(tmp_path, "b2")
    heir.recovery.start()
    assert not heir.see("a", T0 + 1)
    assert heir.see("b", T0 + 1)
    heir.end()
    assert recorded_ids(tmp_path) == {"a": 1, "b": 1}
    assert counted(tmp_path) == 2


def test_ids_of_ended_boots_are_known_too(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1")
    first.see("a", T0)
    first.end()
    heir = Process(tmp_path, "b2")
    heir.recovery.start()
    assert not heir.see("a", T0 + 1)
    heir.end()


def test_a_rebuilt_window_keeps_the_release_that_answered(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1", OLD)
    first.see("a", T0)
    first.die()
    heir = Process(tmp_path, "b2", NEW)
    heir.see("b", T0 + 1)
    heir.recovery.start()
    heir.end()
    contexts = read_header(segments(tmp_path / "b2")[0]).contexts
    assert {contexts[w.ctx]: w.n for w in windows(tmp_path)} == {OLD: 1, NEW: 1}


def test_a_living_process_is_followed_then_inherited(tmp_path: Path) -> None:
    old = Process(tmp_path, "b1")
    old.see("a", T0)
    new = Process(tmp_path, "b2")
    new.recovery.start()
    assert new.recovery.follows
    for i in range(200):  # over several segments
        old.see(f"old-{i}", T0 + 0.1)
    assert not new.see("old-0", T0 + 0.2)
    assert not new.see("old-199", T0 + 0.2)
    assert not new.see("a", T0 + 0.2)
    old.die()
    assert new.recovery.look() == 1
    assert not new.recovery.follows
    new.end()
    assert counted(tmp_path) == 201


def test_the_old_process_learns_of_the_new_one(tmp_path: Path) -> None:
    old = Process(tmp_path, "b1")
    new = Process(tmp_path, "b2", NEW)
    new.recovery.start()
    old.recovery.look(rebuild=False)
    new.see("a", T0)
    assert not old.see("a", T0)
    old.end()
    new.end()
    assert recorded_ids(tmp_path) == {"a": 1}


def test_without_room_it_is_tried_again_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Process(tmp_path, "b1")
    for i in range(3):
        first.see(f"id-{i}", T0 + i)
    first.die()
    heir = Process(tmp_path, "b2")
    whole = Observer.write_rebuilt
    calls = iter([True, False])

    def scarce(observer: Observer, ctx: int, boot: str, window: object) -> bool:
        return next(calls) and whole(observer, ctx, boot, window)  # type: ignore[arg-type]

    monkeypatch.setattr(Observer, "write_rebuilt", scarce)
    assert heir.recovery.start() == 0
    assert settled_upto(tmp_path / "b1") != DONE
    monkeypatch.undo()
    assert heir.recovery.look() == 2
    assert counted(tmp_path) == 3
    heir.end()


def test_an_heir_that_dies_at_any_step_leaves_nothing_lost_or_double(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heir's every append, sync and mark is a step at which it may be killed."""
    for step in range(12):
        root = tmp_path_factory.mktemp("spool")
        first = Process(root, "b1")
        for i in range(3):
            first.see(f"id-{i}", T0 + i)
        first.die()
        second = Process(root, "b2")
        killed = _killed_at(second, step, monkeypatch)
        monkeypatch.undo()
        third = Process(root, "b3")
        third.recovery.start()
        assert counted(root) == 3, f"killed at step {step}"
        third.end()
        assert all(settled_upto(root / boot) == DONE for boot in boots(root))
        if not killed:
            break
    assert step > 5


class KilledError(Exception):
    """Raised where a signal would have ended the process."""


def _killed_at(process: Process, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let a process recover until it is killed before one of its acts; whether it was."""
    acts = count()

    def mortal(act: Callable[..., Any]) -> Callable[..., Any]:
        def perform(*args: Any) -> Any:
            if next(acts) == step:
                raise KilledError
            return act(*args)

        return perform

    monkeypatch.setattr(Spool, "append", mortal(Spool.append))
    monkeypatch.setattr(Spool, "take_sync", mortal(Spool.take_sync))
    monkeypatch.setattr(agent.recover, "settle", mortal(agent.recover.settle))
    monkeypatch.setattr(agent.recover, "cut_tail", mortal(agent.recover.cut_tail))
    try:
        process.recovery.start()
    except KilledError:
        return True
    finally:
        process.die()
    return False


@pytest.mark.parametrize("seed", range(20))
def test_any_history_of_deaths_counts_every_id_once(tmp_path: Path, seed: int) -> None:
    """Processes come, overlap and die at random; clients repeat ids at random."""
    rng = random.Random(seed)
    at = T0
    sent: list[str] = []
    process = Process(tmp_path, "b0", rng.choice([OLD, NEW]))
    process.recovery.start()
    for number in range(1, 8):
        for _ in range(rng.randrange(40)):
            at += rng.random() * 0.2
            repeat = bool(sent) and rng.random() < 0.2
            id = rng.choice(sent[-20:]) if repeat else f"id-{len(sent)}"
            if not repeat:
                sent.append(id)
            assert process.see(id, at, rng.random()) != repeat
            if rng.random() < 0.2:
                process.observer.close_due(at)
        fate = rng.choice(["die", "end", "die before the heir"])
        if fate == "die before the heir":
            process.die()
        heir = Process(tmp_path, f"b{number}", rng.choice([OLD, NEW]))
        heir.recovery.start()
        if fate == "end":
            process.end()
        elif fate == "die":
            process.die()
        heir.recovery.look()
        process = heir
    process.end()
    assert recorded_ids(tmp_path) == Counter(sent)
    assert counted(tmp_path) == len(sent)
    assert all(settled_upto(tmp_path / boot) == DONE for boot in boots(tmp_path))


def test_a_power_cut_is_said_as_a_loss(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1", os_boot="os-1")
    for i in range(10):
        first.see(f"id-{i}", T0)
    first.die()
    heir = Process(tmp_path, "b2", os_boot="os-2")
    heir.recovery.start()
    losses = [item for _, _, item in items(tmp_path) if isinstance(item, Loss)]
    assert losses == [Loss("b1", losses[0].at_most, "power_cut")]
    assert 0 < losses[0].at_most <= 2048
    heir.end()


def test_dead_segments_give_their_room_back(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1")
    first.see("a", T0)
    first.die()
    (path,) = segments(tmp_path / "b1")
    assert path.stat().st_size == 2048
    heir = Process(tmp_path, "b2")
    heir.recovery.start()
    assert path.stat().st_size < 1000
    assert [from_msgpack(p, Item).id for _, p in iter_records(path)] == ["a"]  # type: ignore[arg-type, union-attr]
    assert not is_live(tmp_path / "b1")
    heir.end()


def test_a_clock_set_back_rebuilds_runs_that_do_not_overlap(tmp_path: Path) -> None:
    first = Process(tmp_path, "b1")
    for id, at in (("a", 5.0), ("b", 0.0), ("c", 5.1)):
        first.see(id, T0 + at)
    first.die()
    heir = Process(tmp_path, "b2")
    heir.recovery.start()
    assert [w.covers["b1"] for w in windows(tmp_path)] == [(1, 1), (2, 2), (3, 3)]
    heir.end()


def test_windows_without_room_at_the_end_are_rebuilt_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Process(tmp_path, "b1")
    for i in range(5):
        first.see(f"id-{i}", T0 + i * 0.01)
    with monkeypatch.context() as full:
        full.setattr(Spool, "append", lambda *_: 0)
        first.end()
    heir = Process(tmp_path, "b2")
    heir.recovery.start()
    assert counted(tmp_path) == 5
    heir.end()
