"""`skerry keys rotate` and `authority`, as people on several machines use them."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fleet.cli_keys import keys
from fleet.rotation import settle
from tests.fakes.trusted import PHRASE, TrustedFleet, make_fleet

ENVIRONMENT = {"SKERRY_KEY_PASSPHRASE": PHRASE.decode()}


def run(*arguments: str | Path, command: click.Command = keys, **environment: str) -> Result:
    env = ENVIRONMENT | environment
    return CliRunner().invoke(command, [str(a) for a in arguments], env=env)


@pytest.fixture
def made(tmp_path: Path) -> TrustedFleet:
    return make_fleet(tmp_path)


def test_a_root_key_is_replaced_by_three_people_and_an_operator(
    made: TrustedFleet, tmp_path: Path
) -> None:
    out = tmp_path / "change"
    done = run("rotate", "begin", "--data", made.data, "--out", out, "--replace", "root-2")
    assert done.exit_code == 0, done.stderr
    assert "root key root-2: " in done.stdout
    assert f"new key, for its owner: {out / 'root-2.pem'}" in done.stderr
    carried = tmp_path / "carried.json"
    shutil.copy(out / "change.json", carried)

    early = run("rotate", "install", carried, "--data", made.data)
    assert early.exit_code == 7
    assert "0 of 2 signatures by the present root keys" in early.stderr

    first = run("rotate", "approve", carried, "--key", made.out / "root-1.pem", "--yes")
    assert first.exit_code == 0, first.stderr
    assert f"next: hand {carried} to one of former root-2, new root-2, root-3, who" in first.stderr
    again = run("rotate", "approve", carried, "--key", made.out / "root-1.pem", "--yes")
    assert (again.exit_code, "has signed this change already" in again.stderr) == (5, True)
    wrong = run("rotate", "approve", carried, "--key", made.out / "publisher-acme.pem", "--yes")
    assert wrong.exit_code == 4
    unopened = run(
        "rotate", "approve", carried, "--key", made.out / "root-3.pem", "--yes",
        SKERRY_KEY_PASSPHRASE="not this one",
    )  # fmt: skip
    assert (unopened.exit_code, "passphrase" in unopened.stderr) == (7, True)
    last = run("rotate", "approve", carried, "--key", made.out / "root-3.pem", "--yes", "--json")
    assert last.exit_code == 0
    facts = json.loads(last.stdout)
    assert all(len(q["signed"]) >= q["threshold"] for q in facts["signatures"])
    shown = json.loads(run("rotate", "show", carried, "--json").stdout)
    assert shown == facts

    assert run("rotate", "install", carried, "--data", made.data).exit_code == 0
    assert settle(made.data, datetime.now(UTC))
    listed = json.loads(run("list", "--data", made.data, "--json").stdout)["keys"]
    new = run("public", "--key", out / "root-2.pem", "--json")
    assert json.loads(new.stdout)["key_id"] in {key["key_id"] for key in listed}


def test_nobody_signs_unseen(made: TrustedFleet, tmp_path: Path) -> None:
    run("rotate", "begin", "--data", made.data, "--out", tmp_path / "c")
    done = run(
        "rotate", "approve", tmp_path / "c" / "change.json", "--key", made.out / "root-1.pem"
    )
    assert (done.exit_code, "or add --yes" in done.stderr) == (2, True)


def test_a_damaged_change_says_so(made: TrustedFleet, tmp_path: Path) -> None:
    run("rotate", "begin", "--data", made.data, "--out", tmp_path / "c")
    file = tmp_path / "c" / "change.json"
    file.write_bytes(file.read_bytes()[:1000])
    for done in (
        run("rotate", "show", file),
        run("rotate", "approve", file, "--key", made.out / "root-1.pem", "--yes"),
        run("rotate", "install", file, "--data", made.data),
    ):
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
        assert "copy it again" in done.stderr


def test_online_keys_wait_for_a_change(made: TrustedFleet) -> None:
    done = run("renew", "director", "message", "--data", made.data)
    assert done.exit_code == 0, done.stderr
    assert "skerry keys rotate begin" in done.stderr
    listed = json.loads(run("list", "--data", made.data, "--json").stdout)["keys"]
    assert {"waiting director", "waiting message"} <= {key["name"] for key in listed}
    assert run("renew", "root-1", "--data", made.data).exit_code == 2
    wrong = run("renew", "director", "--data", made.data, SKERRY_KEY_PASSPHRASE="not this one")
    assert (wrong.exit_code, "SKERRY_KEY_PASSPHRASE" in wrong.stderr) == (7, True)


def test_an_authority_is_replaced(made: TrustedFleet, tmp_path: Path) -> None:
    data, out, issuing = made.data, tmp_path / "new", tmp_path / "issuing.crt"
    made_new = run("authority", "new", "--data", data, "--out", out)
    assert made_new.stdout.startswith("sha256:")
    assert run("authority", "trust", out / "authority.crt", "--data", data).exit_code == 0
    signed = run(
        "authority", "certify", "--data", data, "--key", out / "authority.pem", "--certificate",
        out / "authority.crt", "--out", issuing,
    )  # fmt: skip
    assert signed.exit_code == 0, signed.stderr
    installed = run("authority", "install", issuing, "--data", data, "--json")
    assert [one["issues"] for one in json.loads(installed.stdout)] == [False, True]
    former = json.loads(installed.stdout)[0]["fingerprint"]
    assert run("authority", "distrust", former, "--data", data).exit_code == 0
    assert len(json.loads(run("authority", "list", "--data", data, "--json").stdout)) == 1
    assert run("authority", "distrust", made_new.stdout.strip(), "--data", data).exit_code == 4
