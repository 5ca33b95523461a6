"""What is compared with what: own past, same bundle, same time."""

from fleet.windows import current_run, split
from tests.fakes.windows import FakeDevice

A, B, C = (FakeDevice(name, 1) for name in ("dev-a", "dev-b", "dev-c"))


def test_a_canary_is_cut_where_it_began_to_serve_the_new_bundle() -> None:
    windows = [A.window(t) for t in range(5)] + [A.window(t, bundle="new") for t in (5, 6)]
    windows += [B.window(t) for t in range(9)]
    canary, control = split(windows, canary=["dev-a"], control=["dev-b"], bundle="new", min_n=30)
    assert [w.start for w in canary["dev-a"].before] == [0, 1, 2, 3, 4]
    assert [w.start for w in canary["dev-a"].after] == [5, 6]
    assert [w.start for w in control["dev-b"].before] == [0, 1, 2, 3, 4]
    assert [w.start for w in control["dev-b"].after] == [5, 6]  # the same time, not more


def test_the_past_is_of_one_bundle_only() -> None:
    windows = [A.window(t, bundle="older") for t in range(3)] + [A.window(t) for t in (3, 4)]
    windows += [A.window(5, bundle="new")]
    canary, _ = split(windows, canary=["dev-a"], control=[], bundle="new", min_n=30)
    assert [w.start for w in canary["dev-a"].before] == [3, 4]


def test_thin_windows_are_set_aside() -> None:
    windows = [A.window(0), A.window(1, n=29), A.window(2, bundle="new")]
    canary, _ = split(windows, canary=["dev-a"], control=[], bundle="new", min_n=30)
    assert [w.start for w in canary["dev-a"].before] == [0]


def test_a_canary_that_has_not_begun_has_no_after() -> None:
    canary, control = split(
        [A.window(0), B.window(0)], canary=["dev-a"], control=["dev-b"], bundle="new", min_n=30
    )
    assert canary["dev-a"].after == ()
    assert control["dev-b"].after == ()


def test_a_current_run_keeps_to_one_bundle() -> None:
    windows = [C.window(0, bundle="older"), C.window(1), C.window(2)]
    assert [w.start for w in current_run(windows)] == [1, 2]
    assert current_run([]) == []
