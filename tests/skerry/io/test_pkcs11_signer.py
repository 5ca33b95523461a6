"""A key on a token signs, and every way in which a token can refuse is told apart."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pkcs11 import TokenFlag, exceptions
from securesystemslib.signer import SSlibKey

from skerry.errors import NotFoundError, SkerryError, TrustError, UnreachableError, UsageError
from skerry.io import pkcs11_signer
from skerry.io.pkcs11_signer import MODULE_VARIABLE, Pkcs11Signer
from skerry.io.signers import TokenName, open_signer, public_pem, read_public
from tests.fakes.softhsm import ED25519, PIN, SoftHsm, softhsm

pytestmark = pytest.mark.softhsm


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    with softhsm(tmp_path_factory.mktemp("hsm")) as made:
        made.make_token("acme")
        made.make_token("Other Token")
        made.put("acme", "copied", "a1", ec.generate_private_key(ec.SECP256R1()))
        made.put("acme", "copied-ed", "a2", ed25519.Ed25519PrivateKey.generate())
        made.put("acme", "rsa", "a3", rsa.generate_private_key(65537, 2048))
        made.put("acme", "p384", "a4", ec.generate_private_key(ec.SECP384R1()))
        made.make_key("acme", "release")
        made.make_key("acme", "release-ed", ED25519)
        made.make_key("acme", "careful", ask_each_time=True)
        made.make_key("acme", "half", public=False)
        made.make_key("acme", "no-sign", sign=False)
        made.make_key("acme", "twice")
        made.put("acme", "twice", "b1", ec.generate_private_key(ec.SECP256R1()))
        made.make_secret("acme", "aes")
        made.make_key("Other Token", "clé; of = é%")
        made.make_token("SoftHSM v2")  # named like its model
        yield made


def pin(_: str) -> bytes:
    return PIN


def never(what: str) -> bytes:
    raise AssertionError(f"asked for the PIN of {what}")


class Asked:
    """Says what it was asked for, so that a test sees that it was, and how often."""

    def __init__(self, answer: bytes = PIN) -> None:
        self.answer = answer
        self.names: list[str] = []

    def __call__(self, name: str) -> bytes:
        self.names.append(name)
        return self.answer


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("release", "ecdsa-sha2-nistp256"),
        ("copied", "ecdsa-sha2-nistp256"),
        ("careful", "ecdsa-sha2-nistp256"),
        ("release-ed", "ed25519"),
        ("copied-ed", "ed25519"),
    ],
)
def test_a_key_on_a_token_signs(hsm: SoftHsm, name: str, scheme: str) -> None:
    asked = Asked()
    signer = open_signer(f"pkcs11:token=acme;object={name}", asked)
    key = signer.public_key
    assert key.scheme == scheme
    for message in (b"", b"message", bytes(100_000)):
        key.verify_signature(signer.sign(message), message)
    assert asked.names == ["token acme"]  # once, and in words for a prompt
    assert isinstance(asked.names[0], TokenName)


def test_the_public_half_can_be_kept_in_a_file(hsm: SoftHsm, tmp_path: Path) -> None:
    for name in ("release", "release-ed"):
        key = open_signer(f"pkcs11:token=acme;object={name}", pin).public_key
        assert isinstance(key, SSlibKey)
        (tmp_path / "key.pub").write_bytes(public_pem(key))
        assert read_public(tmp_path / "key.pub") == key


def test_a_key_is_found_by_each_attribute(hsm: SoftHsm) -> None:
    wanted = open_signer("pkcs11:token=acme;object=copied", pin).public_key
    serial = hsm_serial("acme")
    for uri in (
        "pkcs11:token=acme;id=%a1",
        f"pkcs11:serial={serial};id=%A1",
        "pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;"
        f"serial={serial};token=acme;id=%A1;object=copied;type=private",
        f"PKCS11:token=acme;id=%A1;type=public?module-path={hsm.module}",
    ):
        assert open_signer(uri, pin).public_key == wanted


def test_names_with_special_signs_are_escaped(hsm: SoftHsm) -> None:
    uri = "pkcs11:token=Other%20Token;object=cl%C3%A9%3B%20of%20%3D%20%C3%A9%25"
    assert open_signer(uri, pin).sign(b"message")


def test_two_keys_of_one_token_sign_in_turn(hsm: SoftHsm) -> None:
    first = open_signer("pkcs11:token=acme;object=release", pin)
    second = open_signer("pkcs11:token=acme;object=copied", pin)
    for signer in (first, second, first):
        signer.public_key.verify_signature(signer.sign(b"message"), b"message")


def test_it_opens_through_the_library_s_own_door(hsm: SoftHsm) -> None:
    uri = "pkcs11:token=acme;object=release"
    key = open_signer(uri, pin).public_key
    other = open_signer("pkcs11:token=acme;object=copied", pin).public_key
    assert Pkcs11Signer.from_priv_key_uri(uri, key, lambda _: PIN.decode()).public_key == key
    with pytest.raises(TrustError, match="expected key"):
        Pkcs11Signer.from_priv_key_uri(uri, other, lambda _: PIN.decode())
    with pytest.raises(UsageError, match="asks for the PIN"):
        Pkcs11Signer.from_priv_key_uri(uri, key)


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("given", [b"wrong-pin", b"1", b"4321-pin\n", b"x" * 5000])
def test_a_wrong_pin_is_tried_once_and_named(hsm: SoftHsm, given: bytes) -> None:
    asked = Asked(given)
    with pytest.raises(TrustError, match="did not try again") as refused:
        open_signer("pkcs11:token=acme;object=release", asked)
    assert refused.value.code == "key_unreadable"
    assert asked.names == ["token acme"]
    assert given.decode() not in str(refused.value) or given == b"1"
    assert open_signer("pkcs11:token=acme;object=release", pin).sign(b"message")


@pytest.mark.parametrize("given", [b"", b"\xff\xfe"])
def test_what_can_be_no_pin_is_not_tried(
    hsm: SoftHsm, given: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def login(*_: object) -> None:
        raise AssertionError("tried")

    monkeypatch.setattr(pkcs11_signer, "_login", login)
    with pytest.raises(TrustError, match="got none") as refused:
        open_signer("pkcs11:token=acme;object=release", Asked(given))
    assert refused.value.code == "key_unreadable"


class WornToken:
    """SoftHSM never locks; of a real token these flags and this error would come."""

    label = "worn"

    def __init__(self, flags: TokenFlag) -> None:
        self.flags = flags

    def open(self, **_: object) -> None:
        raise exceptions.PinLocked


def test_a_locked_token_is_named_before_and_after_it_locks() -> None:
    def refused(act: Callable[[], object]) -> str:
        with pytest.raises(TrustError, match="locked after too many") as refusal:
            act()
        return refusal.value.code

    locked, open_yet = WornToken(TokenFlag.USER_PIN_LOCKED), WornToken(TokenFlag(0))
    assert refused(lambda: pkcs11_signer._pin(locked, never)) == "key_unreadable"  # type: ignore[arg-type]
    login = pkcs11_signer._login(open_yet, "1234")  # type: ignore[arg-type]
    assert refused(login.__enter__) == "key_unreadable"


def test_who_has_one_try_left_is_told_when_asked() -> None:
    asked = Asked()
    token = WornToken(TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_COUNT_LOW)
    assert pkcs11_signer._pin(token, asked) == PIN.decode()  # type: ignore[arg-type]
    assert asked.names == ["token worn (one try left before it locks)"]


def test_the_pin_that_changed_meanwhile_is_named_too(hsm: SoftHsm) -> None:
    signer = open_signer("pkcs11:token=acme;object=release", pin)
    assert isinstance(signer, Pkcs11Signer)
    signer._pin = "other-pin"
    with pytest.raises(TrustError) as refused:
        signer.sign(b"message")
    assert refused.value.code == "key_unreadable"


Refusal = tuple[str, type[SkerryError], str, str, Callable[[str], bytes]]


@pytest.mark.parametrize(
    ("uri", "kind", "code", "said", "ask"),
    [
        ("pkcs11:token=lost;object=x", NotFoundError, "", "'Other Token' (serial", never),
        ("pkcs11:token=acme;serial=1;object=x", NotFoundError, "", "'acme' (serial", never),
        ("pkcs11:object=release", UsageError, "", "fits 3 of", never),
        ("pkcs11:token=SoftHSM%20v3;model=SoftHSM%20v2;id=a", NotFoundError, "", "insert it", never),
        ("pkcs11:token=SoftHSM%20v2;model=SoftHSM%20v3;id=a", NotFoundError, "", "insert it", never),
        ("pkcs11:token=SoftHSM%20v2;object=x", NotFoundError, "", "found none", pin),
        ("pkcs11:token=acme;object=nix", NotFoundError, "", "object 'careful' (id", pin),
        ("pkcs11:token=acme;object=nix", NotFoundError, "", " and 1 more", pin),
        ("pkcs11:token=acme;object=release;id=%99", NotFoundError, "", "found object", pin),
        ("pkcs11:token=acme;object=twice", UsageError, "", "both object and id", pin),
        ("pkcs11:token=acme;object=rsa", TrustError, "key_type", "got RSA", never),
        ("pkcs11:token=acme;object=p384", TrustError, "key_type", "got curve", never),
        ("pkcs11:token=acme;object=aes", NotFoundError, "", "expected the key", pin),
        ("pkcs11:token=acme;object=no-sign", TrustError, "key_type", "may sign", pin),
        ("pkcs11:token=acme;object=half", NotFoundError, "", "one public key", pin),
    ],
)  # fmt: skip
def test_a_refusal_says_what_was_found(
    hsm: SoftHsm, uri: str, kind: type[SkerryError], code: str, said: str,
    ask: Callable[[str], bytes],
) -> None:  # fmt: skip
    with pytest.raises(kind) as refused:
        open_signer(uri, ask)
    assert said in str(refused.value)
    assert getattr(refused.value, "code", "") == code


def test_a_key_whose_halves_do_not_fit_is_found_out_before_its_signature_is_used(
    hsm: SoftHsm,
) -> None:
    signer = open_signer("pkcs11:token=acme;object=release", pin)
    assert isinstance(signer, Pkcs11Signer)
    key = open_signer("pkcs11:token=acme;object=copied", pin).public_key
    assert isinstance(key, SSlibKey)
    signer._key = key
    with pytest.raises(TrustError, match="none"):
        signer.sign(b"message")


def test_a_token_that_lost_its_key_is_not_found(hsm: SoftHsm) -> None:
    import pkcs11

    hsm.make_key("acme", "short-lived")
    signer = open_signer("pkcs11:token=acme;object=short-lived", pin)
    token = pkcs11.lib(hsm.module).get_token(token_label="acme")
    with token.open(rw=True, user_pin=PIN.decode()) as session:
        for half in list(session.get_objects({pkcs11.Attribute.LABEL: "short-lived"})):
            half.destroy()
    with pytest.raises(NotFoundError, match="expected the key"):
        signer.sign(b"message")


# --- the module ---------------------------------------------------------------------


def test_without_a_module_it_says_how_to_name_one(
    hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MODULE_VARIABLE)
    with pytest.raises(UsageError, match=MODULE_VARIABLE):
        open_signer("pkcs11:token=acme;object=release", never)


def test_a_module_that_is_none_is_named(hsm: SoftHsm, tmp_path: Path) -> None:
    damaged = tmp_path / "module.so"
    damaged.write_bytes(b"\x7fELF, but no more")
    for path, kind in (
        (tmp_path / "absent.so", NotFoundError),
        (tmp_path, NotFoundError),
        (damaged, UnreachableError),
        (Path("no-such-module.so"), UnreachableError),
        (Path(os.path.realpath("/proc/self/exe")), UnreachableError),
    ):
        with pytest.raises(kind, match=path.name):
            open_signer(f"pkcs11:token=acme;object=release?module-path={path}", never)


def test_without_the_package_it_says_what_to_install(
    hsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pkcs11_signer, "MISSING", "No module named 'pkcs11'")
    with pytest.raises(UsageError, match=r"skerry\[pkcs11\]"):
        open_signer("pkcs11:token=acme;object=release", never)


def hsm_serial(label: str) -> str:
    import pkcs11

    token = pkcs11.lib(os.environ[MODULE_VARIABLE]).get_token(token_label=label)
    return str(token.serial.decode())
