"""One certificate authority takes another's place, and whoever renews in time notices nothing."""

import contextlib
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.authority import certify, distrust, install, make, trust, trusted
from fleet.ca import Authority
from fleet.keystore import load_online_keys, make_next_keys, make_online_keys
from fleet.rotation import settle
from skerry.errors import ConflictError, NotFoundError, RefusedError, TrustError
from tests.fakes.trusted import ENVIRONMENT, NOW, PHRASE, TrustedFleet, make_fleet

MONTH = timedelta(days=30)


@pytest.fixture
def made(tmp_path: Path) -> TrustedFleet:
    return make_fleet(tmp_path)


def started(made: TrustedFleet) -> Authority:
    """The authority as a fleet that starts now has it."""
    settle(made.data, NOW)
    keys, folder = load_online_keys(made.data / "keys", ENVIRONMENT), made.data / "keys"
    return Authority(
        keys.issuing, (folder / "issuing.crt").read_bytes(), (folder / "authority.crt").read_bytes()
    )


def device_request() -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cam-1")])
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def is_let_in(certificate: str, authority: Authority, at: datetime) -> bool:
    """Whether a listener that trusts this authority takes a device's certificate."""
    leaf, issuing = x509.load_pem_x509_certificates(certificate.encode())
    leaf.verify_directly_issued_by(issuing)
    if not all(c.not_valid_before_utc <= at <= c.not_valid_after_utc for c in (leaf, issuing)):
        return False
    for root in x509.load_pem_x509_certificates(authority.pem.encode()):
        with contextlib.suppress(ValueError, InvalidSignature):  # another name, another key
            issuing.verify_directly_issued_by(root)
            return True
    return False


def another(made: TrustedFleet, name: str = "second") -> Path:
    out = made.data.parent / name
    make(made.data, out, passphrase=lambda _: PHRASE, now=NOW)
    return out


def test_an_authority_is_replaced_in_steps(made: TrustedFleet) -> None:
    first = started(made)
    early = first.issue("cam-1", device_request(), NOW)
    out = another(made)

    assert [one.issues for one in trust(made.data, out / "authority.crt")] == [True, False]
    trust(made.data, out / "authority.crt")  # once more changes nothing
    both = started(made)
    assert (both.fingerprint, both.pem.count("BEGIN")) == (first.fingerprint, 2)
    assert is_let_in(early.pem, both, NOW)

    later = NOW + MONTH
    renewed = both.issue("cam-1", device_request(), later)
    issuing = made.data.parent / "issuing.crt"
    certify(made.data, out / "authority.pem", out / "authority.crt", issuing,
            passphrase=lambda _: PHRASE, now=later)  # fmt: skip
    install(made.data, issuing)
    second = started(made)
    assert second.fingerprint != first.fingerprint
    assert is_let_in(renewed.pem, second, later)
    last = second.issue("cam-1", device_request(), later + MONTH)
    with pytest.raises(RefusedError, match="install another one first"):
        distrust(made.data, second.fingerprint)

    assert len(distrust(made.data, first.fingerprint)) == 1
    alone = started(made)
    assert is_let_in(last.pem, alone, later + MONTH)
    assert not is_let_in(renewed.pem, alone, later + timedelta(days=1))
    assert [one.issues for one in trusted(made.data)] == [True]


def test_an_issuing_key_is_replaced_under_the_same_authority(made: TrustedFleet) -> None:
    before = started(made)
    early = before.issue("cam-1", device_request(), NOW)
    make_next_keys(made.data / "keys", ["issuing"], ENVIRONMENT)
    assert started(made).fingerprint == before.fingerprint  # it waits
    issuing = made.data.parent / "issuing.crt"
    certify(made.data, made.out / "authority.pem", made.data / "keys" / "authority.crt", issuing,
            passphrase=lambda _: PHRASE, now=NOW)  # fmt: skip
    old = load_online_keys(made.data / "keys", ENVIRONMENT).issuing.public_key()
    install(made.data, issuing)
    after = started(made)
    keys = load_online_keys(made.data / "keys", ENVIRONMENT)
    assert keys.issuing.public_key() != old
    assert is_let_in(early.pem, after, NOW)
    assert is_let_in(after.issue("cam-1", device_request(), NOW).pem, before, NOW)


def test_another_fleets_authority_is_not_trusted(made: TrustedFleet, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_online_keys(other / "keys", "elsewhere", ENVIRONMENT)
    make(other, tmp_path / "elsewhere", passphrase=lambda _: PHRASE, now=NOW)
    with pytest.raises(TrustError, match="skerry demo root"):
        trust(made.data, tmp_path / "elsewhere" / "authority.crt")
    with pytest.raises(TrustError, match="skerry demo root"):
        trust(made.data, made.data / "keys" / "issuing.crt")  # not signed by itself
    assert len(trusted(made.data)) == 1


def test_what_does_not_belong_together_is_refused(made: TrustedFleet, tmp_path: Path) -> None:
    out, issuing = another(made), tmp_path / "new-issuing.crt"
    certify(made.data, out / "authority.pem", out / "authority.crt", issuing,
            passphrase=lambda _: PHRASE, now=NOW)  # fmt: skip
    with pytest.raises(TrustError, match="trust it first"):
        install(made.data, issuing)
    with pytest.raises(ConflictError):
        certify(made.data, out / "authority.pem", out / "authority.crt", issuing,
                passphrase=lambda _: PHRASE, now=NOW)  # fmt: skip
    with pytest.raises(TrustError, match="to be the key of"):
        certify(made.data, out / "authority.pem", made.data / "keys" / "authority.crt",
                tmp_path / "third.crt", passphrase=lambda _: PHRASE, now=NOW)  # fmt: skip
    with pytest.raises(TrustError):
        certify(made.data, out / "authority.pem", out / "authority.crt", tmp_path / "third.crt",
                passphrase=lambda _: b"not this one", now=NOW)  # fmt: skip
    stranger = make_fleet(tmp_path / "stranger")
    trust(made.data, out / "authority.crt")
    certify(stranger.data, out / "authority.pem", out / "authority.crt", tmp_path / "fourth.crt",
            passphrase=lambda _: PHRASE, now=NOW)  # fmt: skip
    with pytest.raises(TrustError, match="issuing key"):
        install(made.data, tmp_path / "fourth.crt")
    with pytest.raises(NotFoundError, match="there are sha256:"):
        distrust(made.data, "sha256:" + "0" * 64)
    with pytest.raises(ConflictError, match="new folder"):
        another(made)
    assert started(made).fingerprint == trusted(made.data)[0].fingerprint
