"""The public half of a key is shown wherever the key is, and nothing of the private one."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet.cli_keys import keys
from skerry.io.signers import read_public
from skerry.keys import Signer
from tests.fakes.softhsm import PIN, softhsm

PHRASE = "correct horse"


def run(*arguments: object, **environment: str) -> Result:
    env = {"SKERRY_KEY_PASSPHRASE": ""} | environment
    return CliRunner().invoke(keys, ["public", *map(str, arguments)], env=env)


@pytest.fixture
def signer() -> Signer:
    return Signer.generate()


@pytest.fixture
def pem(tmp_path: Path, signer: Signer) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(signer.to_pem(PHRASE.encode()))
    return path


def test_the_public_half_of_a_file_is_printed_or_written(
    tmp_path: Path, pem: Path, signer: Signer
) -> None:
    done = run("--key", pem, SKERRY_KEY_PASSPHRASE=PHRASE)
    assert done.exit_code == 0, done.stderr
    assert f"key {signer.key_id}, ed25519" in done.stderr
    out = tmp_path / "key.pub"
    wrote = run("--key", pem, "--out", out, SKERRY_KEY_PASSPHRASE=PHRASE)
    assert (wrote.exit_code, wrote.stdout) == (0, f"{out}\n")
    assert out.read_text() == done.stdout
    again = run("--key", out, "--json")
    assert json.loads(again.stdout) == {
        "key_id": signer.key_id, "scheme": "ed25519", "tuf_key_id": read_public(out).keyid,
        "pem": out.read_text(),
    }  # fmt: skip


@pytest.mark.softhsm
def test_the_public_half_of_a_key_on_a_token_is_written(tmp_path: Path) -> None:
    out, phrase = tmp_path / "key.pub", tmp_path / "pin"
    phrase.write_bytes(PIN + b"\n")
    with softhsm(tmp_path / "hsm") as hsm:
        hsm.make_token("acme")
        uri = hsm.make_key("acme", "release")
        done = run("--key", uri, "--out", out, "--passphrase-file", phrase)
    assert done.exit_code == 0, done.stderr
    assert read_public(out).scheme == "ecdsa-sha2-nistp256"


def test_errors_leave_with_their_exit_codes(tmp_path: Path, pem: Path) -> None:
    for arguments, code, said in (
        (["--key", tmp_path / "absent.pem"], 3, "no such file"),
        (["--key", pem], 7, "--passphrase-file"),
        (["--key", "hsm:2"], 2, "pkcs11:"),
    ):
        done = run(*arguments)
        assert (done.exit_code, done.stdout) == (code, "")
        assert said in done.stderr


def test_the_private_key_is_not_written_over(tmp_path: Path, pem: Path) -> None:
    before = pem.read_bytes()
    done = run("--key", pem, "--out", pem, SKERRY_KEY_PASSPHRASE=PHRASE)
    assert (done.exit_code, done.stdout) == (5, "")
    assert pem.read_bytes() == before
    done = run("--key", pem, "--out", tmp_path / "no folder" / "x", SKERRY_KEY_PASSPHRASE=PHRASE)
    assert done.exit_code == 2
    assert "cannot write" in done.stderr
