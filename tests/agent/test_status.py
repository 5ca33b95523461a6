"""A look from outside works beside a running agent, and after its death."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.config import Layout
from agent.identity import save_identity
from agent.state import Database
from agent.status import collect, describe, take_lock
from agent.status_file import Status, read_status, write_status
from skerry.enrolment import EnrolAnswer
from skerry.keys import Signer
from tests.fakes.assignments import Bench, desired, want
from tests.fakes.pki import Pki
from tests.fakes.records import die, prediction, write, writer


def enrolled(root: Path) -> Layout:
    layout = Layout(root)
    answer = EnrolAnswer(
        device_id="cam-1", client_id="cam-1", fleet_id="demo", certificate="c", ca="a",
        catalog_root=b"{}", director_root=b"{}", broker_url="mqtt://b", shards=4,
    )  # fmt: skip
    save_identity(
        layout.identity, answer, fleet_url="http://f", signer=Signer.generate(), device_key=b"k"
    )
    return layout


def status(**fields: object) -> Status:
    known = {"control_pid": 7, "serve_pid": 8, "http": "http://127.0.0.1:1", "connected": True}
    return Status(**{**known, "acked": {}, "waiting": 0, "under_way": 0, **fields})  # type: ignore[arg-type]


def test_a_device_that_never_ran_has_a_status(tmp_path: Path) -> None:
    found = collect(enrolled(tmp_path))
    assert (found["running"], found["slots"], found["outbox_records"]) == (False, {}, 0)
    assert "cam-1 of fleet demo: not running" in describe(found)


def test_it_counts_what_lies_above_the_acknowledged_numbers(tmp_path: Path) -> None:
    layout = enrolled(tmp_path)
    spool = writer(layout.spool, size=1024)
    write(spool, *(prediction(n) for n in range(1, 31)))
    write_status(layout.status, status(acked={"boot-a": 12}))
    assert collect(layout)["outbox_records"] == 18
    die(spool)
    layout.status.write_bytes(b"torn")
    assert read_status(layout.status) is None
    assert collect(layout)["outbox_records"] == 30


def test_slots_and_what_they_are_busy_with_are_shown(tmp_path: Path) -> None:
    layout, bench = enrolled(tmp_path), Bench()
    bench.install(1, "a", 1)
    bench.take(desired(2, want("b", 2)))
    database = Database(layout.database)
    database.save(bench.state)
    found = collect(layout)
    database.close()
    assert found["desired_version"] == 2
    assert found["slots"]["reader"]["model_version"] == "1.1.0"
    assert found["slots"]["reader"]["doing"] == "verifying"
    assert "slot reader: reader 1.1.0, variant int8, verifying models/acme" in describe(found)


def test_the_certificates_end_is_shown(tmp_path: Path) -> None:
    layout, now = enrolled(tmp_path), datetime.now(UTC)
    found = collect(layout)
    assert found["certificate_expires"] is None
    assert "cannot be read; enrol again" in describe(found)
    pki = Pki(tmp_path / "pki")
    for days, said in ((5, "certificate  until 20"), (-5, "preauthorize cam-1 --again")):
        start, end = timedelta(days=-40), timedelta(days=days)
        files = pki.client("cam-1", start=start, end=end)
        (layout.identity / "device.pem").write_bytes(
            files.key.read_bytes() + files.certificate.read_bytes()
        )
        found = collect(layout)
        assert abs(found["certificate_expires"] - (now + end).timestamp()) < 60
        assert said in describe(found)


def test_process_ids_are_shown_only_while_the_lock_is_held(tmp_path: Path) -> None:
    layout = enrolled(tmp_path)
    write_status(layout.status, status())
    assert collect(layout)["control_pid"] is None
    lock = take_lock(layout.lock)
    assert lock is not None
    found = collect(layout)
    assert (found["running"], found["control_pid"], found["serve_pid"]) == (True, 7, 8)
    assert take_lock(layout.lock) is None
    os.close(lock)


def test_patches_are_counted(tmp_path: Path) -> None:
    layout = enrolled(tmp_path)
    write_status(layout.status, status())
    assert "patches" not in describe(collect(layout))
    write_status(layout.status, status(patched=2, patch_failed=1, patch_saved_bytes=543_107))
    found = collect(layout)
    assert (found["patched"], found["patch_failed"]) == (2, 1)
    assert "patches    2 files made by one, 543,107 bytes saved; 1 failed" in describe(found)
