"""The fleet service as a process: it starts, serves, survives its broker, ends in order."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agent.download import Fetcher
from agent.identity import load_identity
from agent.renewal import renew
from fleet.access import WELCOME, log_in
from fleet.broker_config import TlsFiles
from fleet.ceremony import perform
from fleet.config import load_config
from fleet.service import serve
from fleet.setup import init_fleet
from fleet.tls_files import context_of
from skerry.errors import (
    ConflictError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from tests.fakes.mqtt_client import NOT_AUTHORIZED, MqttClient
from tests.fakes.mqtt_device import until
from tests.fakes.trusted import NOW

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "fleet"
    init_fleet(folder, "demo", now=NOW)
    return folder


@pytest.fixture
def ready(data: Path, tmp_path: Path) -> Path:
    perform(data, tmp_path / "keys", ("acme",), passphrase=lambda _: b"long enough", now=NOW)
    return data


class Running:
    """A fleet in a process of its own."""

    def __init__(self, data: Path, **ports: int) -> None:
        self.data = data
        wanted = {"port": 0, "device-port": 0, "broker-port": 0} | ports
        options = [part for name, port in wanted.items() for part in (f"--{name}", str(port))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skerry", "fleet", "run", "--data", str(data), *options],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def info(self) -> dict[str, Any]:
        path, end = self.data / "run.json", time.monotonic() + 20
        while not path.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def end(self) -> tuple[int, str]:
        self.process.terminate()
        return self.over()

    def over(self) -> tuple[int, str]:
        try:
            _, said = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, said


@pytest.fixture
def running(ready: Path) -> Iterator[Running]:
    fleet = Running(ready)
    yield fleet
    if fleet.process.poll() is None:
        fleet.end()
    for stream in (fleet.process.stdout, fleet.process.stderr):
        if stream is not None:
            stream.close()


def get(url: str, token: str = "") -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


def post(url: str, token: str, body: object = None) -> Any:
    request = urllib.request.Request(
        url,
        data=json.dumps(body or {}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def enrol(running: Running, device: str, folder: Path) -> TlsFiles:
    """Enrol as a device does, and return what it connects with."""
    info, token = running.info(), (running.data / "admin.token").read_text().strip()
    preauthorize = f"{info['api_url']}/api/v1/devices/preauthorize"
    answer = post(preauthorize, token, {"device_id": device, "tags": {}})
    done = subprocess.run(
        [sys.executable, "-m", "agent", "enroll", "--state", folder, "--token", answer["token"]],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (both,) = folder.rglob("device.pem")
    return TlsFiles(both, both, both.with_name("ca.crt"))


def fetch(running: Running, files: TlsFiles) -> bytes:
    """Ask the device listener as a device does."""
    fetcher = Fetcher(
        running.info()["device_url"], timeout_s=10, ca_file=files.ca,
        cert_file=files.certificate, key_file=files.key,
    )  # fmt: skip
    return fetcher.small("/tuf/catalog/metadata/1.root.json", 1 << 16)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_serves_operators_and_devices_and_ends_on_sigterm(running: Running) -> None:
    info = running.info()
    token = (running.data / "admin.token").read_text().strip()
    assert json.loads(get(f"{info['api_url']}/api/v1/policy", token))["version"] == 1
    assert get(f"{info['api_url']}/readyz") == b"ready\n"
    assert b'"root"' in get(f"{info['api_url']}/tuf/catalog/metadata/1.root.json", token)
    assert info["device_url"].startswith("https://")
    code, said = running.end()
    assert (code, "Traceback" in said) == (0, False), said
    assert not (running.data / "run.json").exists()
    assert gone(info["broker_pid"])


@pytest.mark.parametrize("auth", ["callout", "users"])
def test_a_device_is_let_in_by_its_certificate_and_cut_when_it_is_rejected(
    ready: Path, tmp_path: Path, auth: str
) -> None:
    with (ready / "fleet.toml").open("a") as settings:
        settings.write(f'broker_auth = "{auth}"\n')
    running = Running(ready)
    try:
        files = [enrol(running, name, tmp_path / name) for name in ("dev-01", "dev-02")]
        one, two = (context_of(file) for file in files)
        address = urlsplit(running.info()["broker_url"])
        assert (address.scheme, address.hostname) == ("mqtts", "127.0.0.1")
        port = address.port or 0
        until("a login", lambda: log_in("127.0.0.1", port, one, "dev-01") == WELCOME)
        until("another", lambda: log_in("127.0.0.1", port, two, "dev-02") == WELCOME)
        assert log_in("localhost", port, one, "dev-01") == WELCOME
        client = MqttClient(port, one, "dev-01")
        for device in files:
            assert b'"root"' in fetch(running, device)
        # the device renews, and is let in with what it has then; the one before is over
        old = (tmp_path / "old.pem", files[0].certificate.read_bytes())
        old[0].write_bytes(old[1])
        identity = load_identity(files[0].certificate.parent)
        renew(identity, running.info()["device_url"])
        assert b'"root"' in fetch(running, files[0])
        with pytest.raises(UnreachableError, match="preauthorize it again"):
            fetch(running, TlsFiles(old[0], old[0], files[0].ca))
        one = context_of(files[0])
        assert log_in("localhost", port, one, "dev-01") == WELCOME
        client.close()
        client = MqttClient(port, one, "dev-01")
        api, token = running.info()["api_url"], (ready / "admin.token").read_text().strip()
        began = time.monotonic()
        post(f"{api}/api/v1/devices/dev-01/rejected", token)
        until("the cut", lambda: not client.connected, 1.0)
        assert time.monotonic() - began < 1.0
        assert log_in("127.0.0.1", port, one, "dev-01") == NOT_AUTHORIZED
        with pytest.raises(UnreachableError, match="is the device accepted"):
            fetch(running, files[0])
        with pytest.raises(RefusedError):
            renew(identity, running.info()["device_url"])
        assert b'"root"' in fetch(running, files[1])
        assert log_in("127.0.0.1", port, two, "dev-02") == WELCOME
        client.close()
    finally:
        running.end()
    for name in ("server.key", "_fleet.key"):
        assert (ready / "tls" / name).stat().st_mode & 0o777 == 0o600


def test_a_killed_broker_is_back_under_a_new_process(running: Running) -> None:
    info = running.info()
    os.kill(info["broker_pid"], signal.SIGKILL)
    end = time.monotonic() + 20
    while running.info()["broker_pid"] == info["broker_pid"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert running.info()["broker_url"] == info["broker_url"]
    while True:
        try:
            assert get(f"{info['api_url']}/readyz") == b"ready\n"
            break
        except urllib.error.HTTPError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_killed_fleet_takes_its_broker_along_and_starts_again(running: Running) -> None:
    info = running.info()
    running.process.kill()
    running.process.wait(10)
    end = time.monotonic() + 10
    while not gone(info["broker_pid"]):
        assert time.monotonic() < end
        time.sleep(0.02)
    (running.data / "run.json").unlink()
    again = Running(running.data)
    assert again.info()["pid"] != info["pid"]
    assert again.end()[0] == 0


def test_a_second_service_on_the_same_data_is_a_conflict(running: Running) -> None:
    running.info()
    code, said = Running(running.data).over()
    assert code == 5
    assert "expected no running fleet" in said


@pytest.mark.parametrize("which", ["port", "device_port", "broker_port"])
async def test_a_port_in_use_is_one_clear_message(ready: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"port": 0, "device_port": 0, "broker_port": 0} | {which: port}
        with pytest.raises(ConflictError, match=f"expected port {port} of 127.0.0.1 to be free"):
            await serve(load_config(ready, **ports))
    assert not (ready / "run.json").exists()


async def test_a_fleet_that_listens_everywhere_must_say_its_name(ready: Path) -> None:
    with pytest.raises(UsageError, match="expected advertise_host"):
        await serve(load_config(ready, host="0.0.0.0", port=0, device_port=0, broker_port=0))


async def test_a_missing_broker_is_one_clear_message(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_NATS_SERVER", "/nowhere/nats-server")
    with pytest.raises(UnreachableError, match="SKERRY_NATS_SERVER=/nowhere/nats-server"):
        await serve(load_config(ready, port=0, device_port=0, broker_port=0))


async def test_without_a_key_ceremony_it_says_what_to_do(data: Path) -> None:
    with pytest.raises(NotFoundError, match="skerry keys ceremony"):
        await serve(load_config(data, port=0, device_port=0, broker_port=0))


async def test_without_an_operators_token_it_says_what_to_do(ready: Path) -> None:
    (ready / "admin.token").unlink()
    with pytest.raises(NotFoundError, match="operators' token"):
        await serve(load_config(ready, port=0, device_port=0, broker_port=0))
