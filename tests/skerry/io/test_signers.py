"""A key is named in one of three forms, and each gives a signer whose signatures TUF accepts."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from securesystemslib.signer import SSlibKey

from skerry.errors import NotFoundError, SkerryError, TrustError, UsageError
from skerry.io.signers import open_signer, public_pem, read_public

SECRET = b"a passphrase"


def pem_of(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
           secret: bytes | None = SECRET, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:  # fmt: skip
    how = BestAvailableEncryption(secret) if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, how)


MAKERS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa-sha2-nistp256": lambda: ec.generate_private_key(ec.SECP256R1()),
}


def right(_: str) -> bytes:
    return SECRET


def never(what: str) -> bytes:
    raise AssertionError(f"asked for the passphrase of {what}")


@pytest.fixture(params=sorted(MAKERS))
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pem(tmp_path: Path, scheme: str) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(pem_of(MAKERS[scheme]()))
    return path


def test_an_encrypted_file_signs_once_its_passphrase_is_given(pem: Path, scheme: str) -> None:
    asked: list[str] = []

    def passphrase(what: str) -> bytes:
        asked.append(what)
        return SECRET

    signer = open_signer(str(pem), passphrase)
    key = signer.public_key
    assert key.scheme == scheme
    key.verify_signature(signer.sign(b"message"), b"message")
    assert asked == [str(pem)]


def test_the_public_half_is_read_back_as_the_same_key(pem: Path) -> None:
    key = open_signer(str(pem), right).public_key
    assert isinstance(key, SSlibKey)
    public = pem.with_suffix(".pub")
    public.write_bytes(public_pem(key))
    assert read_public(public) == key


def test_a_file_that_is_not_encrypted_is_opened_without_asking(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem_of(MAKERS["ed25519"](), None))
    assert open_signer(str(path), never).sign(b"message")


def test_an_older_encrypted_form_is_opened_too(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(pem_of(key, form=PrivateFormat.TraditionalOpenSSL))
    assert b"Proc-Type" in path.read_bytes()
    assert open_signer(str(path), right).sign(b"message")


@pytest.mark.parametrize("given", [b"wrong", b"", SECRET + b"\n", bytes(2000)])
def test_a_wrong_passphrase_is_named(pem: Path, given: bytes) -> None:
    with pytest.raises(TrustError, match="does not open it") as refused:
        open_signer(str(pem), lambda _: given)
    assert refused.value.code == "key_unreadable"


@pytest.mark.parametrize(
    "content",
    [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\0\xff"],
)
def test_a_file_that_holds_no_key_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    for opened in (lambda: open_signer(str(path), never), lambda: read_public(path)):
        with pytest.raises(TrustError, match=str(path)) as refused:
            opened()
        assert refused.value.code == "key_unreadable"


def test_the_two_halves_are_not_taken_for_each_other(pem: Path) -> None:
    public = pem.with_suffix(".pub")
    public.write_bytes(public_pem(open_signer(str(pem), right).public_key))  # type: ignore[arg-type]
    with pytest.raises(TrustError, match="public half"):
        open_signer(str(public), never)
    with pytest.raises(TrustError, match="private half"):
        read_public(pem)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ec.generate_private_key(ec.SECP384R1()), "secp384r1"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
    ],
)
def test_a_key_of_another_kind_is_refused(
    tmp_path: Path, key: rsa.RSAPrivateKey, named: str
) -> None:
    from cryptography.hazmat.primitives.serialization import PublicFormat

    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(pem_of(key))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for opened in (lambda: open_signer(str(private), right), lambda: read_public(public)):
        with pytest.raises(TrustError, match=named) as refused:
            opened()
        assert refused.value.code == "key_type"


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        open_signer(str(tmp_path / "key.pem"), never)
    with pytest.raises(NotFoundError, match="no such file"):
        read_public(tmp_path / "key.pub")


def test_a_folder_an_endless_file_and_an_impossible_name_are_errors(tmp_path: Path) -> None:
    for spec in (str(tmp_path), "/dev/zero", "a\0b", "x" * 5000):
        with pytest.raises(UsageError):
            open_signer(spec, never)


@pytest.mark.parametrize("spec", ["", "hsm:2", "awskms:alias/x", "file:key.pem", "https://x/y"])
def test_an_unknown_form_is_answered_with_the_three_known(spec: str) -> None:
    with pytest.raises(UsageError) as refused:
        open_signer(spec, never)
    for form in ("PEM", "pkcs11:", "exec:"):
        assert form in str(refused.value)


def test_a_file_with_a_colon_in_its_name_is_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old:key.pem").write_bytes(pem_of(MAKERS["ed25519"](), None))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SkerryError):
        open_signer("old:key.pem", never)
    assert open_signer("./old:key.pem", never)
