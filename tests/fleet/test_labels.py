"""Labels that came later, in the fleet: stored once, set against what was predicted, or not claimed."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from sqlalchemy import func, select

from fleet import schema
from fleet.ingest import Ingest
from fleet.labels import Z, wilson
from fleet.queries import Queries
from fleet.store import Store
from skerry.counting import count_numeric
from skerry.errors import FormatError
from skerry.feedback import ErrorSketch, check_errors, error_spec, merge_errors
from skerry.records import Context, Errors
from skerry.sketch import int_to_big
from skerry.wire import Batch
from tests.fakes.reporter import CONTEXT, FLEET, SHARDS, Reporter, window

Enrol = Callable[..., Reporter]
OLD = Context("reader", "reader", "0.9.0", "sha256:" + "b" * 64, "fp32-cpu")


class Silent:
    def ack(self, *_: object) -> None: ...

    def hello(self, *_: object) -> None: ...


@pytest.fixture
def ingest(store: Store) -> Ingest:
    return Ingest(store.telemetry, Silent(), fleet_id=FLEET, shards=SHARDS)


def classes(start: float, right: int, wrong: int, ctx: int = 0) -> ErrorSketch:
    cells = [0, 0, right] + ([0, 1, wrong] if wrong else [])
    return ErrorSketch(ctx, start, 60.0, right + wrong, right, cells)


def values(start: float, errors: list[float], span: float = 8.0) -> ErrorSketch:
    fixed = [round(100 * e) for e in errors if math.isfinite(e)]
    return ErrorSketch(
        0, start, 60.0, len(errors), errors=count_numeric(errors, error_spec(span, 100)),
        abs_sum=int_to_big(sum(map(abs, fixed))), sq_sum=int_to_big(sum(e * e for e in fixed)),
        span=span, scale=100,
    )  # fmt: skip


def test_a_repeated_upload_counts_once_and_an_old_release_has_its_own_line(
    store: Store, ingest: Ingest, enrol: Enrol
) -> None:
    one, two = enrol("dev-01"), enrol("dev-02")
    first = one.records(1, [window(600.0, 40, length_s=60.0), window(660.0, 40, length_s=60.0)])
    late = Errors([CONTEXT, OLD], [classes(600.0, 9, 1), classes(0.0, 5, 5, ctx=1)])
    message = one.records(3, [late])
    for _ in range(3):
        ingest.take([first, message], 1000.0)
    ingest.take([two.records(1, [Errors([CONTEXT], [classes(600.0, 10, 0)])])], 1001.0)
    newest, old = sorted(
        Queries(store.database).labels("reader", 0.0).releases, key=lambda r: r.model_version
    )[::-1]
    assert (newest.predicted, newest.labelled, newest.measure) == (80, 20, "accuracy")
    assert newest.accuracy == 0.95
    assert newest.accuracy_interval == wilson(19, 20)
    assert [(c.predicted, c.label, c.n) for c in newest.confused] == [("0", "1", 1)]
    assert [(w.start, w.predicted, w.labelled, w.accuracy) for w in newest.windows] == [
        (600.0, 40, 20, 0.95)
    ]
    assert (old.model_version, old.predicted, old.labelled, old.accuracy) == ("0.9.0", 0, 10, 0.5)
    # later windows only: nothing is labelled there, and nothing is claimed
    (since,) = Queries(store.database).labels("reader", 660.0).releases
    assert (since.predicted, since.labelled, since.measure) == (40, 0, "unmeasured")
    assert since.accuracy is since.accuracy_interval is since.mae is None
    assert Queries(store.database).labels("other", 0.0).releases == []


def test_values_have_their_mean_errors(store: Store, ingest: Ingest, enrol: Enrol) -> None:
    errors = [3.0, -1.0, math.nan, math.inf]
    items = [Errors([CONTEXT], [values(0.0, errors), values(60.0, [0.5, -0.5])])]
    ingest.take([enrol("dev-01").records(1, items)], 1000.0)
    (found,) = Queries(store.database).labels("reader", 0.0).releases
    assert (found.labelled, found.measured, found.measure) == (6, 4, "error")
    assert found.mae == pytest.approx(5.0 / 4)
    assert found.rmse == pytest.approx(math.sqrt(10.5 / 4))
    assert [w.mae for w in found.windows] == [2.0, 0.5]


def test_old_ones_are_forgotten(store: Store, ingest: Ingest, enrol: Enrol) -> None:
    item = Errors([CONTEXT], [classes(60.0 * i, 1, 0) for i in range(10)])
    ingest.take([enrol("dev-01").records(1, [item])], 1000.0)
    gone = store.windows.prune(predictions_before=0.0, windows_before=300.0, limit=3)
    assert gone == 3
    store.windows.prune(predictions_before=0.0, windows_before=300.0, limit=100)
    with store.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(schema.error_windows)) == 5


def test_contexts_of_the_batch_need_not_be_those_of_its_errors(
    store: Store, ingest: Ingest, enrol: Enrol
) -> None:
    batch = Batch(1, [], [Errors([OLD], [classes(0.0, 1, 0)])])
    ingest.take([enrol("dev-01").say("telemetry", batch)], 1000.0)
    (found,) = Queries(store.database).labels("reader", 0.0).releases
    assert found.model_version == "0.9.0"


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (45, 50), (1, 1), (499, 1000)])
def test_at_the_ends_of_the_interval_the_share_is_just_believable(right: int, n: int) -> None:
    """The ends are the shares whose own spread puts what was seen 1.96 deviations away."""
    for end in wilson(right, n):
        if 0.0 < end < 1.0:
            assert abs(right / n - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n))
        else:
            assert right / n == end


def test_an_interval_narrows_with_labels() -> None:
    widths = [high - low for low, high in (wilson(9 * n, 10 * n) for n in (1, 10, 100))]
    assert all(a > b for a, b in pairwise(widths))


@pytest.mark.parametrize(
    "odd",
    [
        ErrorSketch(0, 0.0, 1.0, 3, -1),
        ErrorSketch(0, 0.0, 1.0, 3, 3, [0, 0]),
        ErrorSketch(0, 0.0, 1.0, 3, 3, [0, 0, 2]),
        ErrorSketch(0, 0.0, 1.0, 3, 2, [0, 0, 3]),
        ErrorSketch(0, 0.0, 1.0, 3, 3, [64, 64, 3]),
        ErrorSketch(0, 0.0, 1.0, 3, 3, [1, 1, 1, 0, 0, 2]),
        ErrorSketch(0, 0.0, 1.0, 3, 3, [0, 0, 3, 0, 1, 0]),
    ],
)
def test_sketches_that_do_not_add_up_are_refused(odd: ErrorSketch) -> None:
    with pytest.raises(FormatError):
        check_errors(odd)


def test_sums_that_no_errors_have_are_refused() -> None:
    good = values(0.0, [3.0, -1.0])
    check_errors(good)
    for change in (
        {"abs_sum": int_to_big(-1)},
        {"abs_sum": int_to_big(500)},  # more than the squares allow
        {"sq_sum": int_to_big(3)},
        {"abs_sum": bytes(65)},
        {"n": 3},
        {"correct": 1},
        {"span": 0.0},
        {"span": math.nan},
        {"scale": 0},
    ):
        with pytest.raises(FormatError):
            check_errors(_with(good, **change))


def _with(sketch: ErrorSketch, **change: object) -> ErrorSketch:
    fields = {name: getattr(sketch, name) for name in sketch.__struct_fields__}
    return ErrorSketch(**(fields | change))  # type: ignore[arg-type]


def test_errors_merge_exactly_however_they_were_split() -> None:
    errors = [3.0, -1.0, 0.25, 7.5, -20.0]
    whole = values(0.0, errors)
    parts = [values(0.0, [e]) for e in errors]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_errors(merged, part)
    assert _with(merged, errors=None) == _with(whole, errors=None)
    assert merged.errors is not None
    assert whole.errors is not None
    assert merged.errors.bins == whole.errors.bins
    both = merge_errors(classes(0.0, 3, 1), classes(0.0, 2, 0))
    check_errors(both)
    assert both.confusion == [0, 0, 5, 0, 1, 1]
    totals = ErrorSketch(0, 0.0, 60.0, 4, 2)
    assert merge_errors(classes(0.0, 3, 1), totals).confusion == []
    with pytest.raises(FormatError):
        merge_errors(whole, totals)
