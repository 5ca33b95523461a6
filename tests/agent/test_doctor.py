"""What is wrong with a device is found, and each finding says what to do."""

import json
import os
import shutil
import socket
from collections import namedtuple
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

import agent.doctor
from agent.__main__ import main
from agent.config import AgentConfig, Layout
from agent.doctor import Finding, examine, tell
from agent.identity import save_identity
from agent.slots import Slots
from agent.state import Database
from agent.status import take_lock
from agent.status_file import Status, write_status
from skerry.enrolment import EnrolAnswer
from skerry.keys import Signer
from skerry.manifest import Manifest
from tests.agent.test_slots import fill
from tests.fakes.assignments import Bench
from tests.fakes.pki import Pki

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def layout(tmp_path: Path, port: int) -> Layout:
    """A device with which all is well."""
    layout = Layout(tmp_path / "state")
    layout.root.mkdir(mode=0o700)
    answer = EnrolAnswer(
        device_id="cam-1", client_id="cam-1", fleet_id="demo", certificate="c", ca="a",
        catalog_root=b"{}", director_root=b"{}", broker_url=f"mqtt://127.0.0.1:{port}", shards=4,
    )  # fmt: skip
    save_identity(
        layout.identity, answer, fleet_url=f"http://127.0.0.1:{port}",
        signer=Signer.generate(), device_key=b"k",
    )  # fmt: skip
    certify(layout, tmp_path, days=30)
    layout.spool.mkdir()
    write_status(layout.status, status())
    return layout


def certify(layout: Layout, folder: Path, *, days: float) -> None:
    files = Pki(folder / f"pki{days}").client(
        "cam-1", start=timedelta(days=-40), end=timedelta(days=days)
    )
    pem = files.key.read_bytes() + files.certificate.read_bytes()
    (layout.identity / "device.pem").write_bytes(pem)


def status(**fields: object) -> Status:
    known = {"control_pid": 7, "serve_pid": 8, "http": "http://127.0.0.1:1", "connected": True}
    return Status(**{**known, "acked": {}, "waiting": 0, "under_way": 0, **fields})  # type: ignore[arg-type]


def wrong(layout: Layout, config: AgentConfig | None = None) -> dict[str, Finding]:
    found = examine(layout, config or AgentConfig())
    assert all(finding.remedy for finding in found if finding.state == "warning")
    return {finding.what: finding for finding in found if finding.state != "ok"}


@pytest.fixture
def running(layout: Layout) -> Iterator[Layout]:
    lock = take_lock(layout.lock)
    assert lock is not None
    yield layout
    os.close(lock)


def test_a_device_with_which_all_is_well(running: Layout) -> None:
    assert wrong(running) == {}
    assert main(["doctor", "--state", str(running.root)]) == 0


def test_it_says_what_is_wrong_and_fails(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wrong(layout)["agent"].state == "bad"
    assert main(["doctor", "--state", str(layout.root), "--json"]) == 1
    found = {item["what"]: item for item in json.loads(capsys.readouterr().out)}
    assert found["agent"]["words"] == "is not running"
    text = tell(examine(layout, AgentConfig()))
    assert "BAD   agent        is not running" in text
    assert "-> skerry-agent run" in text


@pytest.mark.parametrize(
    ("fields", "what", "state", "words"),
    [
        ({"connected": False}, "broker", "bad", "not connected"),
        ({"serve_restarts": 3}, "serving", "warning", "ended by itself 3 times"),
        ({"stale": ["catalog"], "trust_code": "expired"}, "trust", "warning", "(expired)"),
        ({"clock_off_s": -3600}, "clock", "warning", "3600 s behind"),
    ],
)
def test_what_the_agent_says_of_itself_is_heard(
    running: Layout, fields: dict[str, object], what: str, state: str, words: str
) -> None:
    write_status(running.status, status(**fields))
    finding = wrong(running)[what]
    assert (finding.state, words in finding.words) == (state, True)


@pytest.mark.parametrize(("days", "state"), [(2, "warning"), (-1, "bad")])
def test_a_certificate_that_ends(running: Layout, tmp_path: Path, days: float, state: str) -> None:
    certify(running, tmp_path, days=days)
    assert wrong(running)["certificate"].state == state


def test_rights_room_reach_and_outbox(running: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    running.root.chmod(0o755)
    assert "chmod 700" in wrong(running)["rights"].remedy
    running.root.chmod(0o700)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 20))
    assert "make room" in wrong(running)["disk"].remedy
    (running.spool / "b").mkdir()
    (running.spool / "b" / "00000001.seg").write_bytes(bytes(900_000))
    assert "0.9 of 1 MiB" in wrong(running, AgentConfig(spool_max_bytes=1 << 20))["outbox"].words
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    away = AgentConfig(broker_url=f"mqtt://127.0.0.1:{closed}")
    assert "does not answer" in wrong(running, away)["reach"].words


def test_the_machine_is_looked_at(
    running: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    (zone / "temp").write_text("91000\n")
    monkeypatch.setattr(agent.doctor, "THERMAL", tmp_path)
    monkeypatch.setattr(agent.doctor, "_available_mb", lambda: 50)
    found = wrong(running)
    assert "91 degrees" in found["temperature"].words
    assert "50 MiB left" in found["memory"].words


def serve(layout: Layout) -> Manifest:
    """Let a slot run a bundle that is on the device."""
    bench, kept = Bench(), Slots(layout.slots)
    bench.install(1, "a", 1)
    bundle = fill(kept)
    ((name, slot),) = bench.state.slots.items()
    assert slot.current is not None
    ref = replace(slot.current.ref, bundle=bundle)
    slot = replace(slot, current=replace(slot.current, ref=ref))
    database = Database(layout.database)
    database.save(replace(bench.state, slots={name: slot}))
    database.close()
    return kept.manifest(bundle)


def test_names_that_no_model_has_are_told(running: Layout) -> None:
    manifest = serve(running)
    first = manifest.inputs[0].name
    assert "leaving" not in wrong(running)
    assert "leaving" not in wrong(running, AgentConfig(withheld=(first, "*")))
    finding = wrong(running, AgentConfig(withheld=(first,), hashed=("no-such-feature",)))["leaving"]
    assert "no model in service has no-such-feature," in finding.words
    assert first in finding.remedy
    elsewhere = AgentConfig(withheld=(f"another-slot/{first}",))
    assert f"another-slot/{first}" in wrong(running, elsewhere)["leaving"].words


def test_without_a_model_no_name_is_judged(running: Layout) -> None:
    assert wrong(running, AgentConfig(withheld=("age",))) == {}


def test_what_never_enrolled_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    found = {f.what: f for f in examine(Layout(tmp_path), AgentConfig())}
    assert found["identity"].state == "bad"
    assert "enroll" in found["identity"].words
