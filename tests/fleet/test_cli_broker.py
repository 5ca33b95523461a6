"""`skerry fleet broker-config`: what it writes is what a real broker takes."""

import json
import os
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet import cli
from fleet.access import BROKEN_OFF, WELCOME, log_in
from fleet.broker import find_server, free_port
from fleet.broker_config import TlsFiles
from fleet.ceremony import perform
from fleet.config import load_config
from fleet.schema import devices
from fleet.setup import init_fleet
from fleet.store import open_store
from fleet.tls_files import context_of
from tests.fakes.brokers import HOST, MOSQUITTO
from tests.fakes.mqtt_device import until


def run(*arguments: str | Path) -> Result:
    env = {"SKERRY_KEY_PASSPHRASE": ""}
    return CliRunner().invoke(cli.fleet, ["broker-config", *map(str, arguments)], env=env)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SKERRY_KEY_PASSPHRASE", raising=False)
    folder, now = tmp_path / "fleet", datetime.now(UTC)
    init_fleet(folder, "demo", now=now)
    perform(folder, tmp_path / "keys", ("acme",), passphrase=lambda _: b"long enough", now=now)
    with (folder / "fleet.toml").open("a") as settings:
        settings.write(f"broker_port = {free_port(HOST)}\n")
    return folder


def test_the_servers_configuration_holds_no_secret(data: Path) -> None:
    said = run("nats", "--data", data)
    assert (said.exit_code, said.stderr) == (0, "")
    assert "verify_and_map: true" in said.stdout
    assert 'auth_users: [ auth, sys, "CN=_fleet" ]' in said.stdout
    seed = (data / "keys" / "callout.seed").read_bytes()
    assert seed.hex() not in said.stdout
    assert "a new one at each start" in said.stdout


@pytest.mark.parametrize("auth", ["callout", "users"])
def test_a_real_server_finds_no_fault_with_it(data: Path, tmp_path: Path, auth: str) -> None:
    with (data / "fleet.toml").open("a") as settings:
        settings.write(f'broker_auth = "{auth}"\n')
    for kind in ("mosquitto", "nats"):  # the first brings the certificates
        out = data / "tls" if kind == "mosquitto" else tmp_path / "out"
        assert run(kind, "--data", data, "--out", out).exit_code == 0
    checked = subprocess.run(
        [find_server(), "-t", "-c", tmp_path / "out" / "nats.conf"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert (tmp_path / "out" / "users.conf").exists() == (auth == "users")


@pytest.mark.mosquitto
def test_mosquitto_runs_on_what_is_written(data: Path, tmp_path: Path) -> None:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; apt-get install mosquitto")
    out, port = tmp_path / "out", load_config(data).broker_port
    written = run("mosquitto", "--data", data, "--out", out, "--json")
    assert written.exit_code == 0, written.stderr
    assert str(out / "mosquitto.acl") in json.loads(written.stdout)["written"]
    assert (out / "server.key").stat().st_mode & 0o777 == 0o600
    with (out / "mosquitto.conf").open("a") as config:
        config.write(f"user {os.environ.get('USER', 'root')}\n")
    server = subprocess.Popen(
        [MOSQUITTO, "-c", str(out / "mosquitto.conf")], stderr=subprocess.DEVNULL
    )
    try:
        context = context_of(TlsFiles(out / "_fleet.crt", out / "_fleet.key", out / "ca.pem"))
        until("mosquitto", lambda: log_in(HOST, port, context, "_fleet") == WELCOME)
        revoke(data, (out / "_fleet.crt").read_text())  # as if a device had it, before a renewal
        assert run("mosquitto", "--data", data, "--out", tmp_path / "again").exit_code == 0
        for name in ("revoked.pem", "mosquitto.acl"):
            (out / name).write_bytes((tmp_path / "again" / name).read_bytes())
        assert "user dev-01\ntopic deny skerry/v1/demo/#" in (out / "mosquitto.acl").read_text()
        server.send_signal(signal.SIGHUP)
        until("refusal", lambda: log_in(HOST, port, context, "_fleet") == BROKEN_OFF)
    finally:
        server.terminate()
        server.wait(10)


def revoke(data: Path, certificate: str) -> None:
    store = open_store(load_config(data).db_url)
    with store.database.write() as connection:
        connection.execute(
            devices.insert().values(
                device="dev-01", state="rejected", created_at=0.0,
                certificate=(data / "keys" / "issuing.crt").read_text(),
                previous_certificate=certificate,

            )
        )  # fmt: skip
    store.close()


def test_another_broker_is_not_known(data: Path) -> None:
    assert run("hivemq", "--data", data).exit_code == 2
