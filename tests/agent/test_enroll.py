"""Enrolment, against a small server: what a device keeps, and what it does not believe.

`tests/fleet/test_device_api.py` has the same against the real fleet.
"""

import datetime
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.enroll import enroll
from agent.identity import load_identity
from skerry.canonical import from_json, sha256, to_json
from skerry.enrolment import EnrolAnswer, EnrolRequest, roots_digest
from skerry.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
)
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.token import EnrolmentToken
from tests.fakes.http_files import FileServer

DAY = datetime.timedelta(days=1)
MESSAGE = Signer.generate()
DIRECTOR_ROOT = json.dumps(
    {"signed": {"x-skerry-message-keys": {MESSAGE.key_id: MESSAGE.public.raw.hex()}}}
).encode()
CATALOG_ROOT = b'{"signed": {}}'


def certificate(
    name: str, key: ec.EllipticCurvePublicKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .sign(signer, hashes.SHA256())
    )


def pem(made: x509.Certificate) -> str:
    return made.public_bytes(serialization.Encoding.PEM).decode()


class Fleet:
    """A fleet that answers every request; `twist` changes its answers."""

    def __init__(self, server: FileServer) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ca = certificate("ca", self.key.public_key(), "ca", self.key)
        self.requests: list[EnrolRequest] = []
        self.twist: Callable[[EnrolAnswer], EnrolAnswer] = lambda answer: answer
        self.status, self.problem = 200, b""
        self.server = server
        server.posted = self.answer

    def token(self) -> EnrolmentToken:
        return EnrolmentToken(
            device_id="cam-1",
            secret=b"s" * 32,
            fleet_url=self.server.url,
            ca_fingerprint=sha256(self.ca.public_bytes(serialization.Encoding.DER)),
            roots_digest=roots_digest(CATALOG_ROOT, DIRECTOR_ROOT),
        )

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert path == "/enrol"
        if self.status != 200:
            return self.status, self.problem
        request = from_json(body, EnrolRequest)
        self.requests.append(request)
        csr = x509.load_pem_x509_csr(request.csr.encode())
        assert csr.is_signature_valid
        public = csr.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        answer = EnrolAnswer(
            device_id="cam-1",
            client_id="cam-1",
            fleet_id="demo",
            certificate=pem(certificate("cam-1", public, "ca", self.key)),
            ca=pem(self.ca),
            catalog_root=CATALOG_ROOT,
            director_root=DIRECTOR_ROOT,
            broker_url="mqtt://127.0.0.1:1883",
            shards=4,
        )
        return 200, to_json(self.twist(answer))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with FileServer() as server:
        yield Fleet(server)


def test_a_device_keeps_who_it_is(fleet: Fleet, tmp_path: Path) -> None:
    record = enroll(tmp_path / "identity", fleet.token(), Inventory(platform="linux-x86_64"))
    assert (record.device_id, record.fleet_url) == ("cam-1", fleet.server.url)
    identity = load_identity(tmp_path / "identity")
    assert identity.record == record
    (request,) = fleet.requests
    assert request.report_key == identity.signer.public.raw
    assert request.inventory.platform == "linux-x86_64"
    assert list(identity.message_keys()) == [MESSAGE.key_id]


def test_nobody_else_reads_the_keys(fleet: Fleet, tmp_path: Path) -> None:
    enroll(tmp_path / "identity", fleet.token(), Inventory())
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "identity").iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE((tmp_path / "identity").stat().st_mode) == 0o700


def test_it_enrols_once(fleet: Fleet, tmp_path: Path) -> None:
    enroll(tmp_path / "identity", fleet.token(), Inventory())
    with pytest.raises(ConflictError, match="enrolled already"):
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert len(fleet.requests) == 1


def test_after_a_lost_answer_it_asks_with_the_same_keys(fleet: Fleet, tmp_path: Path) -> None:
    fleet.status = 503
    with pytest.raises(UnreachableError):
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    keys = (tmp_path / "identity" / "report.pem").read_bytes()
    fleet.status = 200
    enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert (tmp_path / "identity" / "report.pem").read_bytes() == keys


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("device_id", "cam-2", "wrong_device"),
        ("catalog_root", b'{"signed": {"evil": 1}}', "roots"),
        ("director_root", b"{}", "roots"),
        ("certificate", "no pem", "certificate"),
        ("ca", "no pem", "certificate"),
    ],
)
def test_an_answer_that_does_not_fit_the_token_is_not_kept(
    fleet: Fleet, tmp_path: Path, field: str, value: str | bytes, code: str
) -> None:
    fleet.twist = lambda answer: msgspec.structs.replace(answer, **{field: value})
    with pytest.raises(TrustError) as caught:
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert caught.value.code == code
    assert not (tmp_path / "identity" / "identity.json").exists()


def test_another_authority_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    ca = pem(certificate("ca", other.public_key(), "ca", other))
    fleet.twist = lambda answer: msgspec.structs.replace(answer, ca=ca)
    with pytest.raises(TrustError) as caught:
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert caught.value.code == "ca"


@pytest.mark.parametrize("fault", ["key", "name", "issuer"])
def test_a_certificate_for_another_is_refused(fleet: Fleet, tmp_path: Path, fault: str) -> None:
    other = ec.generate_private_key(ec.SECP256R1())

    def twist(answer: EnrolAnswer) -> EnrolAnswer:
        (real,) = x509.load_pem_x509_certificates(answer.certificate.encode())
        public = other.public_key() if fault == "key" else real.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        made = certificate(
            "cam-2" if fault == "name" else "cam-1", public, "ca",
            other if fault == "issuer" else fleet.key,
        )  # fmt: skip
        return msgspec.structs.replace(answer, certificate=pem(made))

    fleet.twist = twist
    with pytest.raises(TrustError) as caught:
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert caught.value.code == "certificate"


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, RefusedError), (404, NotFoundError), (409, ConflictError), (502, UnreachableError)],
)
def test_a_refusal_says_why_and_what_to_do(
    fleet: Fleet, tmp_path: Path, status: int, error: type[SkerryError]
) -> None:
    fleet.status, fleet.problem = status, b'{"detail": "the token is spent"}'
    with pytest.raises(error, match="the token is spent"):
        enroll(tmp_path / "identity", fleet.token(), Inventory())


def test_a_fleet_that_is_not_there_is_unreachable(fleet: Fleet, tmp_path: Path) -> None:
    with FileServer() as gone:
        url = gone.url
    token = msgspec.structs.replace(fleet.token(), fleet_url=url)
    with pytest.raises(UnreachableError, match="check that it runs"):
        enroll(tmp_path / "identity", token, Inventory())


def test_an_answer_that_is_too_long_or_no_answer_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    fleet.twist = lambda answer: msgspec.structs.replace(answer, ca="x" * 400_000)
    with pytest.raises(FormatError, match="at most"):
        enroll(tmp_path / "identity", fleet.token(), Inventory())


def test_a_device_that_is_not_enrolled_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="skerry-agent enroll"):
        load_identity(tmp_path / "identity")
