"""A command signs; whatever it answers is checked, bounded and in time, or it is an error."""

import os
import shlex
import stat
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import SSlibKey

from skerry.errors import NotFoundError, SkerryError, TrustError, UnreachableError, UsageError
from skerry.io.exec_signer import ExecSigner, open_exec
from skerry.io.signers import open_signer, public_key, public_pem, read_public
from tests.fakes.command_signer import command_for

MESSAGE = b'{"a":1}\n\0\xff' * 20_000


def never(what: str) -> bytes:
    raise AssertionError(f"asked for the passphrase of {what}")


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Of a key that no command here has."""
    path = tmp_path / "some key.pub"
    path.write_bytes(public_pem(public_key(ed25519.Ed25519PrivateKey.generate().public_key(), "")))
    return path


def script(code: str, public: Path) -> str:
    return f"exec:{shlex.join([sys.executable, '-c', code])}?public={public}"


@pytest.mark.parametrize(
    "key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())]
)
def test_a_command_signs(
    tmp_path: Path, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    signer = open_signer(command_for(tmp_path / "a folder", key), never)
    for message in (b"", b"message", MESSAGE):
        signer.public_key.verify_signature(signer.sign(message), message)


def test_openssl_signs_with_p256_as_it_is(tmp_path: Path) -> None:
    """The plainest command that there is, without any glue."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem, public = tmp_path / "key.pem", tmp_path / "key.pub"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(public_pem(public_key(key.public_key(), "")))
    signer = open_signer(f"exec:openssl dgst -sha256 -sign {pem}?public={public}", never)
    signer.public_key.verify_signature(signer.sign(MESSAGE), MESSAGE)


def test_the_command_is_split_as_a_shell_would_and_no_shell_runs(
    tmp_path: Path, public: Path
) -> None:
    code = "import sys; sys.stderr.write('|'.join(sys.argv[1:])); sys.exit(3)"
    words = (
        f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} 'a b' $HOME ';' touch{tmp_path}/x"
    )
    with pytest.raises(TrustError, match=r"a b\|\$HOME\|;\|touch"):
        open_signer(f"exec:{words}?public={public}", never).sign(b"message")


def test_a_question_mark_in_the_command_is_no_end_of_it(public: Path) -> None:
    spec = f"exec:sh -c 'exit 3' 'key?public=no'?public={public}"
    with pytest.raises(TrustError, match="exit code 3"):
        open_signer(spec, never).sign(b"message")


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("spec", [
    "exec:", "exec:sign", "exec:sign?public=", "exec:?public=KEY", "exec:  ?public=KEY",
    "exec:sign 'half?public=KEY", "exec:sign?Public=KEY",
])  # fmt: skip
def test_what_is_no_command_with_a_public_key_is_refused(spec: str, public: Path) -> None:
    with pytest.raises(UsageError):
        open_signer(spec.replace("KEY", str(public)), never)


def test_the_public_key_is_read_before_anything_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(NotFoundError, match="no such file"):
        open_signer(f"exec:touch {mark}?public={tmp_path / 'absent.pub'}", never)
    (tmp_path / "not.pub").write_bytes(b"no key")
    with pytest.raises(TrustError) as refused:
        open_signer(f"exec:touch {mark}?public={tmp_path / 'not.pub'}", never)
    assert refused.value.code == "key_unreadable"
    assert not mark.exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("pass", "0 bytes that are none"),
        ("import os; os.write(1, bytes(64))", "64 bytes that are none"),
        ("import sys; sys.stdout.write(sys.stdin.read()[:64])", "bytes that are none"),
    ],
)
def test_an_answer_that_is_no_signature_is_not_used(public: Path, code: str, said: str) -> None:
    with pytest.raises(TrustError, match=said) as refused:
        open_signer(script(code, public), never).sign(b"message" * 40)
    assert refused.value.code == "signature_invalid"


def test_a_signature_by_another_key_is_not_used(tmp_path: Path, public: Path) -> None:
    spec = command_for(tmp_path, ed25519.Ed25519PrivateKey.generate())
    other = f"{spec.rpartition('?public=')[0]}?public={public}"
    with pytest.raises(TrustError, match="public key is the one of this private key") as refused:
        open_signer(other, never).sign(b"message")
    assert refused.value.code == "signature_invalid"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('first\\nquota exceeded\\n\\n')", "exit code 1: quota exceeded"),
        ("import sys; sys.exit(9)", "exit code 9: nothing on stderr"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("import os; os.write(2, b'\\x1b[31m\\xff red' + b'.' * 10**6); os._exit(1)", r"exit code 1: \."),
        ("import os; os.write(2, b'\\x1b[31mred'); os._exit(1)", r"exit code 1: \?\[31mred"),
        ("import os\nwhile True: os.write(1, bytes(4096))", "at most 1024 bytes"),
    ],
)  # fmt: skip
def test_a_command_that_fails_says_why(public: Path, code: str, said: str) -> None:
    with pytest.raises(TrustError, match=said) as refused:
        open_signer(script(code, public), never).sign(b"message")
    assert refused.value.code == "signer_failed"
    assert len(str(refused.value)) < 500


def test_a_failure_counts_even_with_a_good_signature(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    spec = command_for(tmp_path, key, then="sys.exit(4)")
    with pytest.raises(TrustError, match="exit code 4"):
        open_signer(spec, never).sign(b"message")


@pytest.mark.parametrize("code", [
    "import time; time.sleep(60)",
    "import os, time; os.close(1); os.close(2); time.sleep(60)",
    "import os\nwhile True: os.write(2, b'still at it\\n')",
    "import subprocess; subprocess.Popen(['sleep', '60'])",
])  # fmt: skip
def test_a_command_that_takes_too_long_is_ended(public: Path, code: str) -> None:
    signer = open_exec(script(code, public))
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="within a minute"):
        ExecSigner(signer._command, read_public(public), timeout_s=0.5).sign(b"message")
    assert time.monotonic() - began < 10


def test_a_program_that_cannot_start_is_named(tmp_path: Path, public: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"\x7fELF")
    damaged.chmod(damaged.stat().st_mode | stat.S_IXUSR)
    for program, kind in (
        ("no-such-program", NotFoundError),
        (tmp_path / "absent", NotFoundError),
        (plain, UsageError),
        (damaged, UsageError),
        (tmp_path, UsageError),
    ):
        with pytest.raises(kind, match=Path(program).name):
            open_signer(f"exec:{program}?public={public}", never).sign(b"message")


def test_it_gets_the_environment_without_our_secrets(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_KEY_PASSPHRASE", "secret-1")
    monkeypatch.setenv("SKERRY_TOKEN", "secret-2")
    monkeypatch.setenv("SKERRY_KEY_PIN", "secret-3")
    monkeypatch.setenv("KMS_REGION", "north")
    code = "import os, sys; sys.exit(' '.join(os.environ.values()).replace('\\n', ' ')[-100000:])"
    with pytest.raises(TrustError) as refused:
        open_signer(script(code, public), never).sign(b"message")
    assert "secret" not in str(refused.value)
    code = "import os, sys; sys.exit(os.environ['KMS_REGION'] + str(len(os.environ)))"
    with pytest.raises(TrustError, match=f"north{len(os.environ) - 3}"):
        open_signer(script(code, public), never).sign(b"message")


def test_it_opens_through_the_library_s_own_door(tmp_path: Path, public: Path) -> None:
    spec = command_for(tmp_path, ed25519.Ed25519PrivateKey.generate())
    key = open_exec(spec).public_key
    assert isinstance(key, SSlibKey)
    assert ExecSigner.from_priv_key_uri(spec, key).sign(b"message")
    with pytest.raises(SkerryError, match="expected key"):
        ExecSigner.from_priv_key_uri(spec, read_public(public))
