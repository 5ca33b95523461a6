"""Observing: every new prediction is recorded once and counted in the window of its moment."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.observe import Observer, RecentIds, WindowRows, count_plan, window_start
from agent.segments import CountPlan, Header, settled_upto
from agent.spool import Spool
from skerry.counting import count_categorical, count_numeric
from skerry.records import Context, Prediction
from skerry.sketch import CategoricalSpec, NumericSpec, total
from tests.fakes.serving import items, linear_release, recorded_ids, windows

EDGES = NumericSpec([0.0, 0.25, 0.5, 0.75, 1.0])
KINDS = CategoricalSpec(["a", "b"])
PLAN = CountPlan(
    ["brightness"], [0, 1], {"brightness": EDGES, "prediction": KINDS, "confidence": EDGES}
)
CONTEXT = Context("slot-a", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")
T0 = 1_700_000_000.0


class Rig:
    """An observer on a real spool."""

    def __init__(self, root: Path, contexts: int = 1) -> None:
        self.root = root
        header = Header("b1", 1, "os-1", 1.0, [CONTEXT] * contexts, [PLAN] * contexts)
        self.spool = Spool(root, header, segment_bytes=1 << 16, max_bytes=1 << 20)
        self.observer = Observer(self.spool, header.plans, 1.0, RecentIds(1000))

    def see(self, id: str, at: float, *, ctx: int = 0, value: float = 0.3, kind: int = 0) -> bool:
        return self.observer.record(
            ctx, id, at=at, prediction=kind, confidence=value, latency_us=100, features=[value]
        )


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, contexts=2)
    yield rig
    rig.spool.close()


def test_a_prediction_is_recorded_before_anything_else_happens(rig: Rig) -> None:
    assert rig.see("a", T0 + 0.5)
    ((boot, seq, item),) = items(rig.root)
    assert (boot, seq) == ("b1", 1)
    assert item == Prediction("a", T0 + 0.5, 0, 0, 0.3, 100, [0.3])


def test_an_id_counts_once(rig: Rig) -> None:
    assert rig.see("a", T0)
    assert not rig.see("a", T0 + 0.1)
    assert not rig.see("a", T0 + 5)
    rig.observer.close_all()
    assert recorded_ids(rig.root) == {"a": 1}
    assert [w.n for w in windows(rig.root)] == [1]


def test_a_window_holds_the_predictions_of_its_time(rig: Rig) -> None:
    for i, at in enumerate([0.0, 0.4, 0.999, 1.0, 1.5, 3.2]):
        rig.see(f"id-{i}", T0 + at)
    rig.observer.close_all()
    assert [(w.start - T0, w.n) for w in windows(rig.root)] == [(0.0, 3), (1.0, 2), (3.0, 1)]
    assert [w.covers["b1"] for w in windows(rig.root)] == [(1, 3), (4, 5), (6, 6)]


def test_a_window_closes_by_itself_a_moment_after_its_end(rig: Rig) -> None:
    rig.see("a", T0 + 0.5)
    rig.observer.close_due(T0 + 1.1)
    assert windows(rig.root) == []
    rig.observer.close_due(T0 + 1.21)
    assert [w.n for w in windows(rig.root)] == [1]


def test_a_clock_set_back_closes_the_window_and_loses_no_count(rig: Rig) -> None:
    rig.see("a", T0 + 10.5)
    rig.see("b", T0 + 0.5)
    rig.observer.close_due(T0 + 0.6)
    rig.see("c", T0 + 10.6)
    rig.observer.close_all()
    assert [(w.start - T0, w.n) for w in windows(rig.root)] == [(10.0, 1), (0.0, 1), (10.0, 1)]


def test_counts_are_those_of_counting_the_rows_at_once(rig: Rig) -> None:
    values = np.random.default_rng(1).random(500)
    kinds = (values > 0.5).astype(int)
    for i, (value, kind) in enumerate(zip(values.tolist(), kinds.tolist(), strict=True)):
        rig.see(f"id-{i}", T0 + 0.1, value=value, kind=kind)
    rig.observer.close_all()
    (window,) = windows(rig.root)
    assert window.columns["brightness"] == count_numeric(values, EDGES)
    assert window.columns["prediction"] == count_categorical(kinds, KINDS)
    assert "latency_us" not in window.columns  # this baseline has no edges for it


def test_rows_fold_into_the_same_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(100).tolist()
    whole, folded = (WindowRows(PLAN, T0, 1.0) for _ in range(2))
    for value in values:
        whole.add((0, value, 100, value), 1)
    monkeypatch.setattr("agent.observe.FOLD_ROWS", 7)
    table = np.array([(0, value, 100, value) for value in values])
    tables = WindowRows(PLAN, T0, 1.0)
    for start in range(0, 100, 23):
        tables.add_table(table[start : start + 23], 1, 1)
    assert tables.n == 100
    assert tables.columns() == whole.columns()
    for value in values:
        folded.add((0, value, 100, value), 1)
    ours, theirs = whole.columns()["brightness"], folded.columns()["brightness"]
    assert total(theirs) == theirs.n == 100
    assert (ours.bins, ours.sum, ours.sum_sq) == (theirs.bins, theirs.sum, theirs.sum_sq)  # type: ignore[union-attr]


def test_a_batch_is_recorded_and_counted_as_its_rows_are(rig: Rig) -> None:
    values = np.random.default_rng(3).random(9)
    table = np.stack([values > 0.5, values, np.zeros(9), values], axis=1)
    seen = rig.observer.record_table(0, "b", at=T0 + 0.1, latency_us=100, table=table)
    for i, value in enumerate(values.tolist()):
        assert rig.see(f"one-{i}", T0 + 0.1, ctx=1, value=value, kind=int(value > 0.5))
    rig.observer.close_all()
    assert seen == 9
    batch, ones = windows(rig.root)
    assert batch.columns == ones.columns
    assert (batch.covers["b1"], ones.covers["b1"]) == ((1, 9), (10, 18))
    records = [item for _, _, item in items(rig.root) if isinstance(item, Prediction)]
    strip = [(r.at, r.prediction, r.confidence, r.latency_us, r.features) for r in records]
    assert strip[:9] == strip[9:]
    assert [r.id for r in records[:9]] == [f"b#{i}" for i in range(9)]


def test_rows_of_a_batch_that_were_seen_count_once(rig: Rig) -> None:
    rows = np.array([(0, 0.3, 0, 0.1), (1, 0.9, 0, 0.9), (0, 0.2, 0, 0.2)])
    assert rig.see("b#1", T0)
    assert rig.observer.record_table(0, "b", at=T0, latency_us=7, table=rows) == 2
    assert rig.observer.record_table(0, "b", at=T0, latency_us=7, table=rows) == 0
    rig.observer.close_all()
    (window,) = windows(rig.root)
    assert window.n == 3
    assert window.columns["brightness"] == count_numeric([0.3, 0.1, 0.2], EDGES)
    assert recorded_ids(rig.root) == {"b#0": 1, "b#1": 1, "b#2": 1}


def test_an_error_is_counted_in_its_window(rig: Rig) -> None:
    rig.see("a", T0)
    rig.observer.error(0, T0 + 0.2)
    rig.observer.error(0, T0 + 1.2)
    rig.observer.close_all()
    assert [(w.n, w.errors) for w in windows(rig.root)] == [(1, 1), (0, 1)]
    assert [w.covers for w in windows(rig.root)] == [{"b1": (1, 2)}, {"b1": (3, 3)}]


def test_contexts_have_windows_of_their_own(rig: Rig) -> None:
    rig.see("a", T0)
    rig.see("b", T0 + 0.1, ctx=1)
    rig.see("c", T0 + 0.2)
    rig.observer.close_all()
    assert [(w.ctx, w.n, w.covers["b1"]) for w in windows(rig.root)] == [
        (0, 2, (1, 3)),
        (1, 1, (2, 2)),
    ]


def test_settled_stands_before_the_oldest_open_prediction(rig: Rig) -> None:
    rig.see("a", T0)
    rig.observer.close_due(T0 + 0.5)
    assert settled_upto(rig.root / "b1") == 0
    rig.see("b", T0 + 1.5)  # the first window is over now
    rig.observer.close_due(T0 + 1.6)
    assert settled_upto(rig.root / "b1") == 1
    rig.observer.close_due(T0 + 3.0)
    assert settled_upto(rig.root / "b1") == rig.spool.next_seq - 1


def test_another_window_length_begins_with_the_next_prediction(rig: Rig) -> None:
    rig.see("a", T0 + 0.5)
    rig.observer.set_window(10.0)
    rig.see("b", T0 + 0.6)
    rig.observer.close_all()
    assert [(w.start - T0, w.length_s, w.n) for w in windows(rig.root)] == [
        (0.0, 1.0, 1),
        (0.0, 10.0, 1),
    ]


def test_windows_wait_for_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.spool.FULL_RETRY_S", 0.0)
    monkeypatch.setattr(os, "posix_fallocate", _no_space)
    rig.see("a", T0)
    rig.spool.roll(1.0)  # the next record needs a new segment
    rig.see("b", T0 + 0.1)
    rig.observer.close_all()
    assert windows(rig.root) == []
    assert settled_upto(rig.root / "b1") == 0
    monkeypatch.undo()
    monkeypatch.setattr("agent.spool.FULL_RETRY_S", 0.0)
    rig.spool._full_until = 0.0
    rig.observer.close_all()
    assert [w.n for w in windows(rig.root)] == [2]


def test_recent_ids_forget_the_oldest() -> None:
    recent = RecentIds(2)
    for id in ("a", "b", "b", "c"):
        recent.add(id)
    assert [id in recent for id in ("a", "b", "c")] == [False, True, True]
    assert len(recent) == 2


def test_a_class_is_counted_under_its_name(tmp_path: Path) -> None:
    release = linear_release(tmp_path)
    from skerry.canonical import from_msgpack
    from skerry.manifest import Baseline

    baseline = from_msgpack(Path(release.slot.baseline_file).read_bytes(), Baseline)
    plan = count_plan(release.manifest, baseline)
    assert plan.features == ["brightness", "contrast"]
    assert plan.classes == [0, 1, 2]
    assert set(plan.columns) == {"brightness", "contrast", "prediction", "confidence", "latency_us"}


@pytest.mark.parametrize(
    ("at", "start"), [(T0 + 59.9, T0 + 40), (T0 + 60, T0 + 40), (T0 - 0.1, T0 - 20)]
)
def test_windows_are_aligned_to_multiples_of_their_length(at: float, start: float) -> None:
    assert window_start(at, 60.0) % 60.0 == 0
    assert window_start(at, 60.0) <= at < window_start(at, 60.0) + 60.0
    assert window_start(at, 60.0) == start


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")
