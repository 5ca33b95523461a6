"""Every command: data on stdout, people on stderr, one message and an exit code for an error."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from compiler import cli, cli_release, cli_sign
from compiler.build import Built
from compiler.record import open_record
from compiler.verify import tuf_key
from skerry.io.signers import public_pem, read_key
from skerry.keys import Signer
from tests.fakes.command_signer import command_for
from tests.fakes.models import Task, write_recipe
from tests.fakes.softhsm import PIN, softhsm

PHRASE = "correct horse"


def run(command: click.Command, *arguments: str | Path, **environment: str) -> Result:
    env = {"SKERRY_KEY_PASSPHRASE": "", "SKERRY_FLEET": "", "SKERRY_TOKEN": ""} | environment
    return CliRunner().invoke(command, [str(a) for a in arguments], env=env)


@pytest.fixture(scope="module")
def key() -> Signer:
    return Signer.generate()


@pytest.fixture
def pem(tmp_path: Path, key: Signer) -> Path:
    path = tmp_path / "acme.pem"
    path.write_bytes(key.to_pem(PHRASE.encode()))
    return path


@pytest.fixture
def public(tmp_path: Path, key: Signer) -> Path:
    path = tmp_path / "acme.pub"
    raw = key.private_key.public_key()
    path.write_bytes(raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


@pytest.fixture
def bundle(tmp_path: Path, built: Built) -> Path:
    path = tmp_path / "shapes-1.0.0.skerry"
    path.write_bytes(built.bundle)
    return path


@pytest.fixture
def metadata(tmp_path: Path, bundle: Path, pem: Path) -> Path:
    out = tmp_path / "acme.json"
    done = run(
        cli_sign.sign, bundle, "--publisher", "acme", "--key", pem, "--out", out,
        SKERRY_KEY_PASSPHRASE=PHRASE,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return out


# --- build -----------------------------------------------------------------------------


def test_build_prints_one_json_and_writes_its_files(recipe_path: Path, tmp_path: Path) -> None:
    done = run(cli.build, recipe_path, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    int8, fp32 = said["variants"]
    assert (int8["precision"], int8["chosen"], fp32["chosen"]) == ("int8", True, False)
    assert {"bytes", "accuracy", "latency_ratio", "latency_interval", "reason"} <= set(int8)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        Path(said[name]).name for name in ("bundle", "lock", "record", "report", "text")
    )
    assert said["digest"].removeprefix("sha256:")[:16] in Path(said["record"]).name


def test_build_prints_the_bundles_path_and_tells_people_why(
    recipe_path: Path, tmp_path: Path
) -> None:
    done = run(cli.build, recipe_path, "--out", tmp_path)
    assert done.stdout.strip() == str(tmp_path / "shapes-1.0.0.skerry")
    assert "int8: accuracy" in done.stderr


def test_a_lock_repeats_a_build(recipe_path: Path, tmp_path: Path) -> None:
    first = json.loads(run(cli.build, recipe_path, "--out", tmp_path / "a", "--json").stdout)
    done = run(cli.build, recipe_path, "--out", tmp_path / "b", "--lock", first["lock"], "--json")
    assert json.loads(done.stdout)["digest"] == first["digest"]


def test_the_record_is_signed_where_a_key_is_given(
    recipe_path: Path, tmp_path: Path, pem: Path, key: Signer
) -> None:
    phrase = tmp_path / "phrase"
    phrase.write_text(PHRASE + "\n")
    done = run(
        cli.build, recipe_path, "--out", tmp_path / "o", "--json", "--key", pem,
        "--passphrase-file", phrase,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (
        open_record(Path(said["record"]).read_bytes(), tuf_key(key.public)).bundle == said["digest"]
    )


def test_a_failed_gate_leaves_with_6_and_nothing_behind(scales_task: Task, tmp_path: Path) -> None:
    sets = {name: (x, 1 - y) for name, (x, y) in scales_task.sets.items()}
    recipe = write_recipe(tmp_path / "r", Task(scales_task.model, "x", "y", sets), min_value=0.8)
    done = run(cli.build, recipe, "--out", tmp_path / "out")
    assert done.exit_code == 6
    assert done.stdout == ""
    assert "at least 0.8000 (gate.min_value), got 0.0000" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_wrong_key_leaves_with_2_and_a_missing_file_with_3(
    recipe_path: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(recipe_path.read_text().replace("max_drop", "max_dorp"))
    done = run(cli.build, wrong, "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean gate.max_drop" in done.stderr
    done = run(cli.build, tmp_path / "none.toml", "--out", tmp_path / "out")
    assert done.exit_code == 3
    assert done.stderr.count("\n") == 1


def test_a_place_that_cannot_be_written_is_named(recipe_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(cli.build, recipe_path, "--out", tmp_path / "file")
    assert done.exit_code == 2
    assert "cannot write" in done.stderr


# --- inspect, sign, verify ---------------------------------------------------------------


def test_inspect_shows_the_manifest(bundle: Path, built: Built) -> None:
    said = json.loads(run(cli_release.inspect, bundle, "--json").stdout)
    assert said["digest"] == built.digest
    assert said["manifest"]["variants"][0]["id"] == "int8-cpu"
    done = run(cli_release.inspect, bundle)
    assert done.stdout.strip() == built.digest
    assert "shapes 1.0.0" in done.stderr


@pytest.mark.parametrize("command", [cli_release.inspect, cli_release.verify])
def test_a_corrupt_bundle_is_one_clear_error(command: click.Command, bundle: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    done = run(command, bundle)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


def test_verify_leaves_with_7_where_nothing_is_signed(bundle: Path) -> None:
    done = run(cli_release.verify, bundle)
    assert done.exit_code == 7
    assert "signed with `skerry sign`" in done.stderr


def test_what_sign_writes_verify_accepts(bundle: Path, metadata: Path, public: Path) -> None:
    done = run(
        cli_release.verify,
        bundle,
        "--publisher",
        "acme",
        "--metadata",
        metadata,
        "--key",
        public,
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["target"], said["release_counter"]) == ("models/acme/shapes@1.0.0", 1)


def test_verify_refuses_another_publishers_key(
    bundle: Path, metadata: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Signer.generate().to_pem(None))
    done = run(
        cli_release.verify, bundle, "--publisher", "acme", "--metadata", metadata, "--key", other
    )
    assert done.exit_code == 7
    assert "expected metadata signed by key" in done.stderr


def test_sign_adds_to_the_metadata_that_it_is_given(
    bundle: Path, metadata: Path, pem: Path, tmp_path: Path
) -> None:
    done = run(
        cli_sign.sign, bundle, "--publisher", "acme", "--key", pem, "--metadata", metadata,
        "--out", metadata, "--json", SKERRY_KEY_PASSPHRASE=PHRASE,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (said["version"], said["release_counter"]) == (2, 1)


def test_sign_notices_metadata_older_than_what_was_signed_last(
    bundle: Path, metadata: Path, pem: Path
) -> None:
    done = run(
        cli_sign.sign, bundle, "--publisher", "acme", "--key", pem, "--out", metadata,
        SKERRY_KEY_PASSPHRASE=PHRASE,
    )  # fmt: skip
    assert done.exit_code == 5
    assert "older than what was signed last" in done.stderr


@pytest.mark.softhsm
def test_a_release_is_signed_and_verified_with_a_key_in_any_form(
    bundle: Path, tmp_path: Path
) -> None:
    with softhsm(tmp_path / "hsm") as hsm:
        hsm.make_token("acme")
        token = hsm.make_key("acme", "release")
        command = command_for(tmp_path / "kms", ec.generate_private_key(ec.SECP256R1()))
        for name, spec in (("token", token), ("command", command)):
            out, public = tmp_path / f"{name}.json", tmp_path / f"{name}.pub"
            done = run(
                cli_sign.sign, bundle, "--publisher", "acme", "--key", spec, "--out", out,
                SKERRY_KEY_PIN=PIN.decode(),
            )  # fmt: skip
            assert done.exit_code == 0, done.stderr
            public.write_bytes(public_pem(read_key(spec, lambda _: PIN)))
            checked = ("--publisher", "acme", "--metadata", out, "--key")
            done = run(cli_release.verify, bundle, *checked, public)
            assert done.exit_code == 0, done.stderr
            done = run(cli_release.verify, bundle, *checked, spec, SKERRY_KEY_PIN=PIN.decode())
            assert done.exit_code == 0, done.stderr
        failing = command_for(
            tmp_path / "f", ec.generate_private_key(ec.SECP256R1()), "sys.exit('no')"
        )
        out = tmp_path / "none.json"
        done = run(cli_sign.sign, bundle, "--publisher", "acme", "--key", failing, "--out", out)
        assert (done.exit_code, done.stdout) == (7, "")
        assert "exit code 1: no" in done.stderr
        assert not out.exists()
        other = tmp_path / "token.pub"
        done = run(cli_release.verify, bundle, *checked, other)
        assert (done.exit_code, done.stdout) == (7, "")


@pytest.mark.parametrize("phrase", ["", "wrong"])
def test_a_key_without_its_passphrase_leaves_with_7(
    bundle: Path, pem: Path, tmp_path: Path, phrase: str
) -> None:
    done = run(
        cli_sign.sign, bundle, "--publisher", "acme", "--key", pem, "--out", tmp_path / "x.json",
        SKERRY_KEY_PASSPHRASE=phrase,
    )  # fmt: skip
    assert done.exit_code == 7
    assert "passphrase" in done.stderr
    assert not (tmp_path / "x.json").exists()


# --- publish ---------------------------------------------------------------------------


def test_publish_wants_a_fleet_and_a_token(bundle: Path, metadata: Path) -> None:
    done = run(cli_release.publish, bundle, metadata)
    assert done.exit_code == 2
    assert "--fleet" in done.stderr
    done = run(cli_release.publish, bundle, metadata, "--fleet", "http://127.0.0.1:9")
    assert done.exit_code == 2
    assert "--token-file" in done.stderr


def test_publish_without_a_fleet_leaves_with_8(bundle: Path, metadata: Path) -> None:
    done = run(
        cli_release.publish, bundle, metadata, "--fleet", "http://127.0.0.1:1", SKERRY_TOKEN="t0ken"
    )
    assert done.exit_code == 8
    assert "is it running" in done.stderr


def test_publish_looks_at_what_it_sends(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    done = run(cli_release.publish, bundle, tmp_path / "m.json", "--fleet", "http://127.0.0.1:1")
    assert done.exit_code == 1
    assert "signed metadata" in done.stderr
