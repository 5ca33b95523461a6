"""The agent as a whole: real processes, real trust, a real broker, and kills at bad moments."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuf.api.metadata import Metadata, Root

from agent.__main__ import main
from agent.state import read_state
from compiler.build import build
from compiler.recipe import read_recipe
from fleet.roles import sign
from skerry.custom import MESSAGE_KEYS_FIELD, message_keys_field
from skerry.errors import SkerryError
from skerry.io.client import Client
from skerry.io.extensions import extensions_version
from skerry.keys import Signer
from skerry.token import EnrolmentToken, format_token
from skerry.trust import Floor
from skerry.wire import Policy, Probation
from tests.fakes.central import Central
from tests.fakes.serving import images
from tests.fakes.texts import write_text_recipe
from tests.fakes.trusted import PHRASE

DEVICE = "cam-1"
SETTINGS = "reconnect_base_s = 0.1\nreconnect_cap_s = 1.0\nresend_s = 3.0\ndrain_s = 2.0\n"


class Agent:
    """A real agent in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "agent"
        self.settings = folder / "agent.toml"
        self.settings.write_text(SETTINGS)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "agent", "run", "--state", str(self.state),
            "--config", str(self.settings), "--port", str(self.port),
        ]  # fmt: skip
        with (self.state / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def status(self) -> dict[str, Any]:
        out = subprocess.run(
            [sys.executable, "-m", "agent", "status", "--state", str(self.state), "--json"],
            capture_output=True, check=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(out.stdout)
        return found

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    async def serve_pid(self) -> int:
        """The serving process, once the status names it."""
        while True:
            pid = (await asyncio.to_thread(self.status))["serve_pid"]
            if pid:
                return int(pid)
            await asyncio.sleep(0.1)

    def kill(self) -> None:
        """End both processes at once."""
        status = self.status()
        for pid in (status["control_pid"], status["serve_pid"]):
            if pid:
                os.kill(pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait(5)

    def stop(self) -> int | None:
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.terminate()
        return self.process.wait(20)  # how soon it ends is tried elsewhere

    def log(self) -> str:
        return (self.state / "log").read_text()


class Traffic(threading.Thread):
    """Asks on and on; a request whose connection broke is asked again under the same id."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.answered: list[str] = []
        self.bundles: list[str] = []
        self.done = threading.Event()
        self._client = Client(url, timeout_s=5.0)

    def run(self) -> None:
        rows = images(50)
        while not self.done.is_set():
            id, row = uuid.uuid4().hex, rows[len(self.answered) % 50][None]
            while not self.done.is_set():
                try:
                    answer = self._client.predict("reader", {"image": row}, id=id)
                except SkerryError:
                    self.done.wait(0.05)
                    continue
                self.answered.append(answer.id)
                self.bundles.append(answer.bundle)
                break
            self.done.wait(0.01)
        self._client.close()


@pytest.fixture
async def central(tmp_path: Path) -> AsyncIterator[Central]:
    central = Central(tmp_path)
    await central.open()
    yield central
    await central.close()


@pytest.fixture
async def agent(central: Central, tmp_path: Path) -> AsyncIterator[Agent]:
    agent = Agent(tmp_path)
    await asyncio.to_thread(
        main, ["enroll", "--state", str(agent.state), "--token", central.token(DEVICE)]
    )
    agent.start()
    yield agent
    await asyncio.to_thread(agent.stop)


async def test_a_device_takes_releases_and_loses_nothing_when_it_is_killed(
    central: Central, agent: Agent
) -> None:
    first, second = central.publish("1.0.0"), central.publish("1.1.0", seed=1)
    await central.until(lambda: central.hellos)
    central.set_policy(Policy(version=1, window_s=1.0, records="all"))
    central.desire(DEVICE, first, "a-1")
    traffic = Traffic(agent.url)
    traffic.start()
    try:
        await central.until(lambda: central.state("a-1") == "committed")
        # nothing is acknowledged from here on: the outbox fills
        central.answering = False
        before = len(traffic.answered)
        await central.until(lambda: len(traffic.answered) > before + 40)
        status = await asyncio.to_thread(agent.status)
        assert status["outbox_records"] > 0
        await asyncio.to_thread(agent.kill)
        agent.start()
        central.answering = True
        before = len(traffic.answered)
        await central.until(lambda: len(traffic.answered) > before + 40)
        os.kill(await agent.serve_pid(), signal.SIGKILL)
        central.desire(DEVICE, second, "a-2")
        await central.until(lambda: central.state("a-2") == "committed")
    finally:
        traffic.done.set()
        await asyncio.to_thread(traffic.join)
    assert set(traffic.bundles) == {"sha256:" + first.sha256, "sha256:" + second.sha256}
    await central.until(lambda: len(central.ids) == len(traffic.answered))
    assert sorted(central.ids) == sorted(traffic.answered)
    await central.until(lambda: central.counted == len(traffic.answered))
    await central.until(lambda: "skerry_agent_outbox_records 0\n" in agent.metrics())
    told = agent.metrics()
    assert "skerry_agent_connected 1\n" in told
    assert 'skerry_agent_slot_state{slot="reader",state="idle"} 1\n' in told
    assert "skerry_agent_certificate_expires_timestamp_seconds 1" in told
    assert await asyncio.to_thread(agent.stop) == 0, agent.log()
    status = await asyncio.to_thread(agent.status)
    assert (status["running"], status["slots"]["reader"]["model_version"]) == (False, "1.1.0")


async def test_a_certificate_is_renewed_without_a_restart(central: Central, tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    now = datetime.now(UTC)
    central.clock = lambda: now - timedelta(days=22)
    token = central.token(DEVICE)
    await asyncio.to_thread(main, ["enroll", "--state", str(agent.state), "--token", token])
    before = (await asyncio.to_thread(agent.status))["certificate_expires"]
    central.clock = lambda: datetime.now(UTC)
    agent.start()
    try:
        later = now + timedelta(days=20)
        await central.until(lambda: central.store.records[DEVICE].certificate_expires > later)
        await central.until(lambda: "certificate was renewed" in agent.log())
        status = await asyncio.to_thread(agent.status)
        assert status["certificate_expires"] > before + 20 * 86400
        await central.until(lambda: not central.store.records[DEVICE].previous_certificate)
        central.desire(DEVICE, central.publish("1.0.0"), "a-1", Probation(0, 0.0))
        await central.until(lambda: central.state("a-1") == "committed")
        assert (await asyncio.to_thread(agent.status))["control_pid"] == status["control_pid"]
    finally:
        assert await asyncio.to_thread(agent.stop) == 0


async def test_a_device_that_was_away_for_forty_days_serves_and_says_what_it_needs(
    central: Central, tmp_path: Path
) -> None:
    agent = Agent(tmp_path)
    state = ["--state", str(agent.state)]
    now = datetime.now(UTC)
    await asyncio.to_thread(main, ["enroll", *state, "--token", central.token(DEVICE)])
    agent.start()
    central.desire(DEVICE, central.publish("1.0.0"), "a-1", Probation(0, 0.0))
    await central.until(lambda: central.state("a-1") == "committed")
    assert await asyncio.to_thread(agent.stop) == 0
    central.clock = lambda: now - timedelta(days=40)
    token = central.token(DEVICE, again=True)
    await asyncio.to_thread(main, ["enroll", *state, "--again", "--token", token])
    central.clock = lambda: datetime.now(UTC)
    heard = len(central.hellos)
    agent.start()
    try:
        await central.until(lambda: "preauthorize cam-1 --again" in agent.log())
        with Client(agent.url) as client:
            answer = await asyncio.to_thread(client.predict, "reader", {"image": images(1)})
        assert answer.model_version == "1.0.0"
        assert len(central.hellos) == heard
        # and back, beside the running agent
        token = central.token(DEVICE, again=True)
        await asyncio.to_thread(main, ["enroll", *state, "--again", "--token", token])
        await central.until(lambda: len(central.hellos) > heard)
    finally:
        assert await asyncio.to_thread(agent.stop) == 0


async def test_a_release_that_disagrees_with_its_golden_set_changes_nothing(
    central: Central, agent: Agent
) -> None:
    good = central.publish("1.0.0")
    # the golden set of one model, the weights of another
    bad = central.publish_mixed("1.1.0", seed=1, golden_of="1.0.0")
    await central.until(lambda: central.hellos)
    at_once = Probation(min_answered=0, min_seconds=0.0)
    central.desire(DEVICE, good, "a-1", at_once)
    await central.until(lambda: central.state("a-1") == "committed")
    central.desire(DEVICE, bad, "a-2", at_once)
    await central.until(lambda: central.state("a-2") == "failed")
    report = central.reports["a-2"]
    assert (report.phase, report.code, report.effect) == (
        "verified", "golden_mismatch", "no_state_change",
    )  # fmt: skip
    with Client(agent.url) as client:
        answer = await asyncio.to_thread(client.predict, "reader", {"image": images(1)})
    assert answer.model_version == "1.0.0"


async def test_a_release_with_a_tokenizer_goes_all_the_way(
    central: Central, agent: Agent, tmp_path: Path
) -> None:
    path = write_text_recipe(tmp_path / "recipe")
    path.write_text(path.read_text().replace('name = "mood"', 'name = "reader"'))
    made = await asyncio.to_thread(build, read_recipe(path), now=datetime.now(UTC))
    release = central.publish_built(made)
    await central.until(lambda: central.hellos)
    central.desire(DEVICE, release, "a-1", Probation(min_answered=0, min_seconds=0.0))
    await central.until(lambda: central.state("a-1") in ("committed", "failed", "incompatible"))
    assert central.state("a-1") == "committed", central.reports["a-1"]
    texts = np.array(["the world was SUNNY!", "it is awful."])
    with Client(agent.url) as client:
        answer = await asyncio.to_thread(client.predict, "reader", {"text": texts})
    assert answer.outputs["probabilities"].argmax(axis=1).tolist() == [1, 0]


async def test_a_release_that_needs_what_the_device_lacks_is_incompatible(
    central: Central, agent: Agent
) -> None:
    release = central.publish_needing("1.0.0", "onnxruntime-extensions>=99.0")
    await central.until(lambda: central.hellos)
    central.desire(DEVICE, release, "a-1", Probation(0, 0.0))
    await central.until(lambda: central.state("a-1") == "incompatible")
    report = central.reports["a-1"]
    assert (report.code, report.effect) == ("no_variant", "no_state_change")
    assert report.message == (
        f"fp32-cpu: needs onnxruntime-extensions>=99.0; this device has {extensions_version()}"
    )
    assert central.reported is not None
    assert central.reported.inventory.extensions == extensions_version()


async def test_a_release_without_traffic_is_not_committed_and_goes_again(
    central: Central, agent: Agent
) -> None:
    release = central.publish("1.0.0")
    await central.until(lambda: central.hellos)
    central.desire(DEVICE, release, "a-1", Probation(min_answered=5, timeout_s=1.0))
    await central.until(lambda: central.state("a-1") == "rolled_back")
    assert central.reports["a-1"].code == "insufficient_data"
    assert central.reported is not None
    assert central.reported.slots == {}


async def test_a_blob_that_was_changed_behind_its_digest_is_rejected(
    central: Central, agent: Agent
) -> None:
    release = central.publish("1.0.0")
    model = central.blob_file(release, "model")
    model.chmod(0o600)
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    await central.until(lambda: central.hellos)
    central.desire(DEVICE, release, "a-1")
    await central.until(lambda: central.state("a-1") == "rejected")
    assert central.reports["a-1"].code == "digest_mismatch"


async def test_a_serving_process_of_before_that_no_status_knows_keeps_nobody_from_the_port(
    central: Central, agent: Agent
) -> None:
    """Control may be killed after it started a serving process, and before it said so."""
    central.desire(DEVICE, central.publish("1.0.0"), "a-1", Probation(0, 0.0))
    await central.until(lambda: central.state("a-1") == "committed")
    orphan = await agent.serve_pid()
    os.kill(orphan, signal.SIGSTOP)  # it gives nothing back for a while
    assert agent.process is not None
    agent.process.kill()
    agent.process.wait(5)
    status = agent.state / "status.json"
    status.write_text(status.read_text().replace(f'"serve_pid":{orphan}', '"serve_pid":null'))
    assert json.loads(status.read_text())["serve_pid"] is None
    agent.start()
    await central.until(lambda: "waiting 7 s for a serving process of before" in agent.log())
    os.kill(orphan, signal.SIGCONT)
    await agent.serve_pid()
    with Client(agent.url) as client:
        answer = await asyncio.to_thread(client.predict, "reader", {"image": images(1)})
    assert answer.model_version == "1.0.0"


async def test_two_agents_on_one_directory_and_a_port_in_use_are_refused(
    central: Central, agent: Agent, capfd: pytest.CaptureFixture[str]
) -> None:
    await central.until(lambda: central.hellos)
    assert await asyncio.to_thread(run_agent, agent.state) == 5
    assert "stop it first" in capfd.readouterr().err
    assert await asyncio.to_thread(agent.stop) == 0
    with socket.create_server(("127.0.0.1", agent.port)):
        assert await asyncio.to_thread(run_agent, agent.state, "--port", str(agent.port)) == 5
    assert f"port {agent.port}" in capfd.readouterr().err


def run_agent(state: Path, *arguments: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "agent", "run", "--state", str(state), *arguments],
        check=False, timeout=30,
    ).returncode  # fmt: skip


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_device_that_is_not_enrolled_is_told_how(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--state", str(tmp_path)]) == 3
    assert "skerry-agent enroll" in capsys.readouterr().err


def test_a_wrong_token_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enroll", "--state", str(tmp_path), "--token", "secret-token"]) == 2
    assert "secret-token" not in capsys.readouterr().err


def test_a_state_directory_that_is_none_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    token = format_token(
        EnrolmentToken("cam-1", b"s" * 32, "http://127.0.0.1:1", "sha256:0", "sha256:0")
    )
    assert main(["enroll", "--state", str(tmp_path / "file"), "--token", token]) == 1
    assert "check --state" in capsys.readouterr().err


def test_control_loads_no_numerical_library_and_no_tuf() -> None:
    code = (
        "import sys, agent.run, agent.__main__\n"
        "heavy = {'numpy', 'onnxruntime', 'tuf', 'securesystemslib'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() == "[]"


async def test_an_order_that_is_signed_anew_is_verified_and_restarts_nothing(
    central: Central, agent: Agent
) -> None:
    first = central.publish("1.0.0")
    await central.until(lambda: central.hellos)
    central.desire(DEVICE, first, "a-1")
    traffic = Traffic(agent.url)
    traffic.start()
    try:
        await central.until(lambda: central.state("a-1") == "committed")
        serving = await agent.serve_pid()
        central.desire(DEVICE, first, "a-1")

        def floor() -> Floor:
            state = read_state(agent.state / "state.db")
            return Floor() if state is None else state.floor

        await central.until(lambda: floor().metadata.get("director/timestamp") == 2)
        # the answer to the nonce of its hello proved the time
        await central.until(lambda: floor().time > 0.0)
        assert abs(floor().time - time.time()) < 60.0
        assert floor().time_key == central.trusted.keys.message.key_id
        assert await agent.serve_pid() == serving
        assert central.state("a-1") == "committed"
    finally:
        traffic.done.set()
        await asyncio.to_thread(traffic.join)


async def test_a_message_key_is_replaced_under_a_device_that_is_connected(
    central: Central, agent: Agent
) -> None:
    """What the new key says is refused, until the device has asked for the root that names it."""
    trusted, fresh = central.trusted, Signer.generate()
    first, second = central.publish("1.0.0"), central.publish("1.1.0", seed=1)
    await central.until(lambda: central.hellos)
    traffic = Traffic(agent.url)
    traffic.start()
    try:
        central.desire(DEVICE, first, "a-1")
        await central.until(lambda: central.state("a-1") == "committed")
        root = Metadata[Root].from_bytes(trusted.director.root).signed
        root.version += 1
        root.unrecognized_fields[MESSAGE_KEYS_FIELD] = message_keys_field([fresh.public])
        holders = [
            Signer.from_pem((trusted.out / f"root-{n}.pem").read_bytes(), PHRASE) for n in (1, 3)
        ]
        (trusted.data / "tuf" / "director" / "2.root.json").write_bytes(sign(root, holders))
        trusted.keys.message = fresh
        trusted.director.reload()
        said = len(central.hellos)
        central.desire(DEVICE, second, "a-2")
        await central.until(lambda: len(central.hellos) > said)
        central.desire(DEVICE, second, "a-2")  # as a fleet answers a hello
        await central.until(lambda: central.state("a-2") == "committed")
        status = await asyncio.to_thread(agent.status)
        assert (status["refused"] > 0, status["stale"], status["trust_code"]) == (True, [], "")
    finally:
        traffic.done.set()
        await asyncio.to_thread(traffic.join)
