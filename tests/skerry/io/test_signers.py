"""A key is named in one of three forms, and each gives a signer whose signatures TUF accepts."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

from skerry.errors import NotFoundError, SkerryError, TrustError, UsageError
from skerry.io.signers import (
    TokenName,
    add_signature,
    key_id_of,
    open_signer,
    passphrase_from,
    public_key,
    public_pem,
    read_key,
    read_public,
)
from skerry.keys import Signer as OurSigner
from tests.fakes.command_signer import command_for
from tests.fakes.softhsm import PIN, softhsm

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


# --- all three forms ----------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One key in each form, and none of them alike."""
    folder = tmp_path_factory.mktemp("three")
    pem = folder / "key.pem"
    pem.write_bytes(pem_of(ed25519.Ed25519PrivateKey.generate()))
    with softhsm(folder / "hsm") as hsm:
        hsm.make_token("acme")
        yield {
            "file": str(pem),
            "token": hsm.make_key("acme", "release"),
            "command": command_for(folder / "kms", ec.generate_private_key(ec.SECP256R1())),
        }


def secret_of(what: str) -> bytes:
    return PIN if what.startswith("token") else SECRET


def delegate(keys: list[SSlibKey], threshold: int) -> Targets:
    role = DelegatedRole("acme", [key.keyid for key in keys], threshold, True, paths=["models/*"])
    delegations = Delegations({key.keyid: key for key in keys}, {"acme": role})
    # through its bytes, as a device gets it
    metadata = Metadata(Targets(delegations=delegations)).to_bytes()
    return Metadata[Targets].from_bytes(metadata).signed


@pytest.mark.softhsm
@pytest.mark.parametrize("form", ["file", "token", "command"])
def test_metadata_signed_in_each_form_is_accepted(three: dict[str, str], form: str) -> None:
    signer = open_signer(three[form], secret_of)
    delegator = delegate([tuf(signer)], 1)
    metadata = Metadata(Targets(version=7))
    with pytest.raises(UnsignedMetadataError):
        delegator.verify_delegate("acme", metadata.signed_bytes, metadata.signatures)
    metadata.sign(signer)
    delegator.verify_delegate("acme", metadata.signed_bytes, metadata.signatures)
    metadata.signed.version = 8
    with pytest.raises(UnsignedMetadataError):
        delegator.verify_delegate("acme", metadata.signed_bytes, metadata.signatures)


@pytest.mark.softhsm
@pytest.mark.parametrize("pair", [("file", "token"), ("token", "command"), ("command", "file")])
def test_two_of_three_keys_in_different_forms_suffice(
    three: dict[str, str], pair: tuple[str, str]
) -> None:
    signers = {form: open_signer(spec, secret_of) for form, spec in three.items()}
    delegator = delegate([tuf(signer) for signer in signers.values()], 2)
    metadata = Metadata(Targets())
    metadata.sign(signers[pair[0]])
    metadata.sign(signers[pair[0]], append=True)  # twice the same key counts once
    with pytest.raises(UnsignedMetadataError):
        delegator.verify_delegate("acme", metadata.signed_bytes, metadata.signatures)
    # the second person has the file, and nothing else
    metadata = Metadata[Targets].from_bytes(metadata.to_bytes())
    metadata.sign(signers[pair[1]], append=True)
    delegator.verify_delegate("acme", metadata.signed_bytes, metadata.signatures)


@pytest.mark.softhsm
def test_a_public_key_is_had_from_each_form(three: dict[str, str], tmp_path: Path) -> None:
    for spec in three.values():
        key = read_key(spec, secret_of)
        (tmp_path / "key.pub").write_bytes(public_pem(key))
        assert read_key(str(tmp_path / "key.pub"), never) == key
        assert key_id_of(key) == key_id_of(read_public(tmp_path / "key.pub"))


def test_what_a_signer_says_is_not_hidden(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    signer = open_signer(command_for(tmp_path, key, then="sys.exit('quota exceeded')"), never)
    metadata = Metadata(Targets())
    with pytest.raises(TrustError, match="quota exceeded") as refused:
        add_signature(metadata, signer)
    assert refused.value.code == "signer_failed"
    assert metadata.signatures == {}


def test_a_signature_is_added_to_others_or_replaces_them(tmp_path: Path) -> None:
    metadata = Metadata(Targets())
    one, two = CryptoSigner.generate_ecdsa(), CryptoSigner.generate_ed25519()
    add_signature(metadata, one)
    add_signature(metadata, two, append=True)
    assert set(metadata.signatures) == {one.public_key.keyid, two.public_key.keyid}
    add_signature(metadata, two)
    assert set(metadata.signatures) == {two.public_key.keyid}


def tuf(signer: Signer) -> SSlibKey:
    key = signer.public_key
    assert isinstance(key, SSlibKey)
    return key


# --- passphrases --------------------------------------------------------------------


def test_key_ids_are_those_that_people_have_compared_before() -> None:
    own = OurSigner.generate()
    assert key_id_of(tuf(CryptoSigner(own.private_key))) == own.key_id
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key_id_of(public_key(key, "")) == hashlib.sha256(der).hexdigest()[:16]


@pytest.mark.parametrize(
    ("keytype", "public"),
    [("ed25519", "no hex"), ("ecdsa", "no PEM"), ("ecdsa", "\ud800"), ("x", "")],
)
def test_a_key_that_cannot_be_read_is_called_by_its_own_id(keytype: str, public: str) -> None:
    assert key_id_of(SSlibKey("ab" * 32, keytype, "any", {"public": public})) == "ab" * 8


def test_a_passphrase_comes_from_the_file_then_the_environment_then_a_person(
    tmp_path: Path,
) -> None:
    file = tmp_path / "phrase"
    file.write_bytes(b" from the file \r\n")
    given = {"SKERRY_KEY_PASSPHRASE": "from outside"}
    asked: list[str] = []

    def ask(what: str) -> str:
        asked.append(what)
        return "from a person é"

    assert passphrase_from(file, given, ask)("key") == b" from the file "
    assert passphrase_from(None, given, ask)("key") == b"from outside"
    assert asked == []
    assert passphrase_from(None, {}, ask)("token acme") == "from a person é".encode()
    assert passphrase_from(None, {"SKERRY_KEY_PASSPHRASE": ""}, ask)("key")
    assert asked == ["token acme", "key"]


def test_what_opens_files_is_not_tried_on_a_token_nor_a_pin_on_files() -> None:
    both = {"SKERRY_KEY_PASSPHRASE": "phrase", "SKERRY_KEY_PIN": "1234"}
    passphrase = passphrase_from(None, both, None)
    assert passphrase("token acme") == b"phrase"  # a file of that name
    assert passphrase(TokenName("token acme")) == b"1234"
    only_phrase = passphrase_from(None, {"SKERRY_KEY_PASSPHRASE": "phrase"}, None)
    with pytest.raises(TrustError, match=r"PIN of token acme.*SKERRY_KEY_PIN"):
        only_phrase(TokenName("token acme"))


def test_where_nobody_can_be_asked_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="--passphrase-file") as refused:
        passphrase_from(None, {}, None)("keys/root-1.pem")
    assert refused.value.code == "key_unreadable"
    assert "keys/root-1.pem" in str(refused.value)
    for path, kind in (
        (tmp_path / "absent", NotFoundError),
        (tmp_path, UsageError),
        (Path("/dev/zero"), UsageError),
    ):
        with pytest.raises(kind):
            passphrase_from(path, {}, None)("key")
