"""`skerry fleet` and `skerry keys`, on the machine that holds the fleet's data."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fleet import cli, cli_keys

PHRASE = "correct horse battery"


def run(command: click.Command, *arguments: str | Path, **environment: str) -> Result:
    env = {"SKERRY_KEY_PASSPHRASE": ""} | environment
    return CliRunner().invoke(command, [str(a) for a in arguments], env=env)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = run(cli.fleet, "init", "--data", tmp_path / "data", "--fleet-id", "demo", "--json")
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout) == {"data": str(tmp_path / "data"), "fleet_id": "demo"}
    return tmp_path / "data"


def hold_ceremony(data: Path, *more: str) -> Result:
    out = data.parent / "keys"
    return run(
        cli_keys.keys, "ceremony", "--data", data, "--out", out, "--publisher", "acme", *more,
        SKERRY_KEY_PASSPHRASE=PHRASE,
    )  # fmt: skip


def test_a_new_fleet_says_what_comes_next(tmp_path: Path) -> None:
    done = run(cli.fleet, "init", "--data", tmp_path / "data")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "next: skerry keys ceremony" in done.stderr
    assert (tmp_path / "data" / "admin.token").stat().st_mode & 0o077 == 0


def test_a_fleet_is_not_made_twice(data: Path) -> None:
    done = run(cli.fleet, "init", "--data", data)
    assert done.exit_code == 5
    assert done.stderr.count("\n") == 1
    assert "expected no fleet in" in done.stderr


def test_a_fleet_id_is_checked(tmp_path: Path) -> None:
    done = run(cli.fleet, "init", "--data", tmp_path / "data", "--fleet-id", "No Such Name")
    assert done.exit_code == 2


def test_a_ceremony_tells_fingerprints_to_compare(data: Path) -> None:
    done = hold_ceremony(data, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "publisher-acme" in facts["fingerprints"]
    assert all(Path(path).exists() for path in facts["secret_files"])
    again = hold_ceremony(data)
    assert (again.exit_code, again.stdout) == (5, "")


def test_a_ceremony_without_a_terminal_asks_for_the_passphrase_in_the_environment(
    data: Path, tmp_path: Path
) -> None:
    done = run(
        cli_keys.keys, "ceremony", "--data", data, "--out", tmp_path / "k", "--publisher", "acme"
    )
    assert done.exit_code == 2
    assert "SKERRY_KEY_PASSPHRASE" in done.stderr


def test_a_ceremony_prints_a_checklist_for_people(data: Path) -> None:
    done = hold_ceremony(data)
    assert "Key ceremony of fleet demo" in done.stdout
    assert "[ ]" in done.stdout


def test_the_fleets_own_keys_are_listed_as_the_ceremony_told_them(data: Path) -> None:
    told = json.loads(hold_ceremony(data, "--json").stdout)["fingerprints"]
    listed = json.loads(run(cli_keys.keys, "list", "--data", data, "--json").stdout)
    assert listed["fleet_id"] == "demo"
    ids = {key["name"]: key["key_id"] for key in listed["keys"]}
    assert {name: ids[name] for name in told if name in ids} == {
        name: key_id for name, key_id in told.items() if "/" not in name
    }
    assert [key["threshold"] for key in listed["keys"] if key["name"] == "root-2"] == ["2 of 3"]
    assert "online director" in run(cli_keys.keys, "list", "--data", data).stdout
    assert run(cli_keys.keys, "list", "--data", data.parent).exit_code == 3


def test_run_needs_a_fleet_and_a_ceremony(data: Path, tmp_path: Path) -> None:
    nowhere = run(cli.fleet, "run", "--data", tmp_path / "none")
    assert nowhere.exit_code == 3
    assert "skerry fleet init" in nowhere.stderr
    early = run(cli.fleet, "run", "--data", data, "--port", "0", "--device-port", "0")
    assert early.exit_code == 3
    assert "skerry keys ceremony" in early.stderr


def test_a_port_in_use_is_one_clear_message(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(cli.fleet, "run", "--data", data, "--host", "127.0.0.1", "--port", str(port))
    assert done.exit_code == 5
    assert f"expected port {port} of 127.0.0.1 to be free for operators" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_running_fleet_says_where_it_is_and_ends_when_told(data: Path) -> None:
    assert hold_ceremony(data).exit_code == 0
    program = subprocess.Popen(
        [sys.executable, "-m", "skerry", "fleet", "run", "--data", str(data), "--json",
         "--host", "127.0.0.1", "--port", "0", "--device-port", "0", "--broker-port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        info = json.loads(program.stdout.readline())
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", info["console_url"])
        assert json.loads((data / "run.json").read_text()) == info
        second = run(cli.fleet, "run", "--data", data, "--port", "0", "--device-port", "0")
        assert second.exit_code == 5
        assert "expected no running fleet" in second.stderr
        program.send_signal(signal.SIGTERM)
        _, said = program.communicate(timeout=20)
    finally:
        program.kill()
        program.communicate()
    assert program.returncode == 0, said
    assert not (data / "run.json").exists()
