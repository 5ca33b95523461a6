"""What is known of a variant on a class of hardware, and what is not known is said."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from fleet import schema
from fleet.api.views import HardwareView
from fleet.intake import check_reported
from fleet.queries import Queries
from skerry.canonical import to_json
from skerry.profile import Inventory
from skerry.sketch import NumericCounts
from skerry.trials import SHADOW_EDGES, ShadowReport, Trial
from skerry.wire import AssignmentReport, Reported
from tests.fakes.backend import BUNDLE, NOW, FakeBackend, seed

AGREES = Trial("int8-cpu", "ok", 64, 0.0, 0.001, 120.0)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FakeBackend]:
    backend = seed(tmp_path)
    yield backend
    backend.store.close()


def device(backend: FakeBackend, name: str, hw_class: str, state: str = "accepted") -> None:
    with backend.store.database.write() as connection:
        connection.execute(
            insert(schema.devices).values(
                device=name, state=state, tags="{}", created_at=NOW, hw_class=hw_class
            )
        )


def tried(backend: FakeBackend, name: str, number: int, *trials: Trial) -> None:
    with backend.store.database.write() as connection:
        connection.execute(
            insert(schema.assignments).values(
                assignment=f"t-{name}-{number}", rollout="reader-1-1-0-abc", stage="all",
                device=name, slot="reader", state="committed", target="t", bundle=BUNDLE,
                created_at=NOW, updated_at=NOW, trials=to_json(list(trials)).decode(),
            )
        )  # fmt: skip


def known(backend: FakeBackend) -> dict[str, HardwareView]:
    (release,) = Queries(backend.store.database).releases("reader")
    first = release.variants[0]["id"]
    return {view.hw_class: view for view in release.hardware if view.variant == first}


def variant(backend: FakeBackend) -> tuple[str, str]:
    (release,) = Queries(backend.store.database).releases("reader")
    return release.variants[0]["id"], release.variants[0]["accuracy"]["isa"]


def named(trial: Trial, name: str) -> Trial:
    return Trial(name, trial.code, trial.rows, trial.disagree, trial.max_diff, trial.run_us)


def test_a_class_is_unmeasured_until_one_of_its_devices_has_told(backend: FakeBackend) -> None:
    name, isa = variant(backend)
    device(backend, "arm-1", "linux-aarch64-dotprod")
    device(backend, "arm-2", "linux-aarch64-dotprod")
    device(backend, "gone", "linux-riscv", state="denied")
    before = known(backend)
    assert {c: view.known for c, view in before.items()} == {
        isa: "evaluated", "linux-aarch64-dotprod": "unmeasured",
    }  # fmt: skip
    tried(backend, "arm-1", 1, named(AGREES, name), Trial("other-cpu", "golden_mismatch"))
    tried(backend, "arm-2", 1, named(Trial("", "ok", 64, 0.03, 0.2, 180.0), name))
    view = known(backend)["linux-aarch64-dotprod"]
    assert (view.known, view.devices, view.failed, view.rows) == ("agrees", 2, 0, 64)
    assert (view.disagree, view.run_us) == (0.03, 150.0)


def test_one_device_that_disagrees_is_not_outvoted(backend: FakeBackend) -> None:
    name, isa = variant(backend)
    for number in (1, 2, 3):
        device(backend, f"d-{number}", isa)
        tried(backend, f"d-{number}", 1, named(AGREES, name))
    assert known(backend)[isa].known == "evaluated"
    tried(backend, "d-2", 2, Trial(name, "golden_mismatch", 64, 0.5, 9.0, 90.0))
    view = known(backend)[isa]
    assert (view.known, view.devices, view.failed, view.disagree) == ("disagrees", 3, 1, 0.5)
    tried(backend, "d-2", 3, Trial(name, "load_failed"))
    view = known(backend)[isa]
    assert (view.known, view.failed, view.unable, view.disagree) == ("unable", 0, 1, 0.0)
    tried(backend, "d-2", 4, named(AGREES, name))  # its latest word counts
    assert known(backend)[isa].known == "evaluated"


def report(**fields: object) -> Reported:
    told = AssignmentReport("a-1", "reader", "staged", [], **fields)  # type: ignore[arg-type]
    return Reported(1, {}, [told], Inventory())


def test_what_devices_measured_is_stored_with_their_assignment(backend: FakeBackend) -> None:
    shadow = ShadowReport(10, 9, latency_us=NumericCounts(0, [0] * (len(SHADOW_EDGES) - 1)))
    with backend.store.database.write() as connection:
        connection.execute(
            update(schema.assignments)
            .where(schema.assignments.c.assignment == "a-1")
            .values(trials=to_json([AGREES]).decode(), shadow=to_json(shadow).decode())
        )
    (found,) = Queries(backend.store.database).rollout("reader-1-1-0-abc").assignments
    assert found.trials[0]["run_us"] == 120.0
    assert found.shadow is not None
    assert (found.shadow["rows"], found.shadow["agree"]) == (10, 9)


def test_a_report_that_no_device_could_mean_is_refused() -> None:
    sound = NumericCounts(0, [0] * (len(SHADOW_EDGES) - 1))
    assert check_reported(report(trials=[AGREES], shadow=ShadowReport(1, 1, latency_us=sound)))
    for bad in (
        report(trials=[AGREES] * 33),
        report(trials=[Trial("v", disagree=float("nan"))]),
        report(trials=[Trial("v", rows=-1)]),
        report(trials=[Trial("v" * 200)]),
        report(shadow=ShadowReport(1, 2)),
        report(shadow=ShadowReport(-1, -1)),
        report(shadow=ShadowReport(1, 1, verdict="x" * 200)),
        report(shadow=ShadowReport(1, 1, latency_us=NumericCounts(1, [1]))),
        report(shadow=ShadowReport(1, 1, seconds=float("inf"))),
    ):
        assert not check_reported(bad)
