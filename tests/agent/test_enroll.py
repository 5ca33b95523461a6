"""Enrolment, against a small server: what a device keeps, and what it does not believe.

`tests/fleet/test_device_api.py` has the same against the real fleet.
"""

import json
import ssl
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import agent.identity
from agent.certificates import make_key, read_key, signing_request, validity_of
from agent.enroll import enroll
from agent.identity import load_identity
from fleet.ca import Authority, issuing_request, make_root, sign_issuing
from fleet.certificates import make_ec_key
from skerry.canonical import from_json, to_json
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

NOTHING = timedelta()
MESSAGE = Signer.generate()
DIRECTOR_ROOT = json.dumps(
    {"signed": {"x-skerry-message-keys": {MESSAGE.key_id: MESSAGE.public.raw.hex()}}}
).encode()
CATALOG_ROOT = b'{"signed": {}}'


class Fleet:
    """A fleet that answers every request; `twist` changes its answers."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", age: timedelta = NOTHING) -> None:
        self.folder = folder
        self.authority = authority("demo")
        self.requests: list[EnrolRequest] = []
        self.twist: Callable[[EnrolAnswer], EnrolAnswer] = lambda answer: answer
        self.status, self.problem = 200, b""
        self.server = FileServer(self.context(self.authority, host, age))
        self.server.files["/ca"] = self.authority.pem.encode()
        self.server.posted = self.answer

    def context(self, by: Authority, host: str, age: timedelta = NOTHING) -> ssl.SSLContext:
        """Of a server whose certificate was made so long ago."""
        made = by.server([host], datetime.now(UTC) - age)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "server.pem").write_bytes(made.key + made.chain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem")
        return context

    def token(self) -> EnrolmentToken:
        return EnrolmentToken(
            device_id="cam-1",
            secret=b"s" * 32,
            fleet_url=self.server.url,
            ca_fingerprint=self.authority.fingerprint,
            roots_digest=roots_digest(CATALOG_ROOT, DIRECTOR_ROOT),
        )

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        assert path == "/enrol"
        if self.status != 200:
            return self.status, self.problem
        request = from_json(body, EnrolRequest)
        self.requests.append(request)
        made = self.authority.issue("cam-1", request.csr, datetime.now(UTC))
        answer = EnrolAnswer(
            device_id="cam-1",
            client_id="cam-1",
            fleet_id="demo",
            certificate=made.pem,
            ca=self.authority.pem,
            catalog_root=CATALOG_ROOT,
            director_root=DIRECTOR_ROOT,
            broker_url="mqtts://127.0.0.1:8883",
            shards=4,
        )
        return 200, to_json(self.twist(answer))


def authority(name: str) -> Authority:
    """A fleet's authority, with a new root."""
    now = datetime.now(UTC) - timedelta(days=600)
    root_key, issuing_key = make_ec_key(), make_ec_key()
    root = make_root(root_key, name, now)
    issuing = sign_issuing(root_key, root, issuing_request(issuing_key, name), name, now)
    return Authority(issuing_key, issuing, root)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "fleet")
    with fleet.server:
        yield fleet


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
    ca = authority("demo").pem
    fleet.twist = lambda answer: msgspec.structs.replace(answer, ca=ca)
    with pytest.raises(TrustError) as caught:
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert caught.value.code == "ca"


def test_a_server_with_another_fingerprint_never_sees_the_secret(
    fleet: Fleet, tmp_path: Path
) -> None:
    fleet.server.files["/ca"] = authority("demo").pem.encode()
    with pytest.raises(TrustError, match="not the one that the token names") as caught:
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert (caught.value.code, fleet.requests) == ("ca", [])


def test_a_server_that_only_repeats_the_authority_never_sees_the_secret(
    fleet: Fleet, tmp_path: Path
) -> None:
    with FileServer(fleet.context(authority("demo"), "127.0.0.1")) as between:
        between.files["/ca"] = fleet.authority.pem.encode()
        seen: list[bytes] = []
        between.posted = lambda _, body: (seen.append(body), (200, b""))[1]
        token = msgspec.structs.replace(fleet.token(), fleet_url=between.url)
        with pytest.raises(TrustError, match="stand between") as caught:
            enroll(tmp_path / "identity", token, Inventory())
    assert (caught.value.code, seen) == ("ca", [])


def test_a_server_of_another_name_is_refused(tmp_path: Path) -> None:
    elsewhere = Fleet(tmp_path / "fleet", host="192.0.2.1")
    with elsewhere.server, pytest.raises(TrustError, match="advertise_host") as caught:
        enroll(tmp_path / "identity", elsewhere.token(), Inventory())
    assert (caught.value.code, elsewhere.requests) == ("host_name", [])


@pytest.mark.parametrize(
    ("age", "code"), [(timedelta(days=-9), "not_yet_valid"), (timedelta(days=370), "expired")]
)
def test_a_wrong_clock_is_named(
    tmp_path: Path, age: timedelta, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.ask.time", SimpleNamespace(time=lambda: 60.0))
    fleet = Fleet(tmp_path / "fleet", age=age)
    with fleet.server, pytest.raises(TrustError, match="clock says 1970-01-01 00:01") as caught:
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert (caught.value.code, fleet.requests) == (code, [])


def test_an_endless_authority_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    fleet.server.files["/ca"] = fleet.authority.pem.encode() * 100
    with pytest.raises(FormatError, match="at most 8192 bytes"):
        enroll(tmp_path / "identity", fleet.token(), Inventory())


def test_nobody_is_sent_elsewhere_with_a_token(fleet: Fleet, tmp_path: Path) -> None:
    fleet.status = 302
    with FileServer(fleet.context(fleet.authority, "127.0.0.1")) as elsewhere:
        fleet.server.headers = {"Location": f"{elsewhere.url}/enrol"}
        with pytest.raises(RefusedError, match="HTTP 302"):
            enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert elsewhere.requests == []


def test_an_answer_without_tls_is_not_asked_for(fleet: Fleet, tmp_path: Path) -> None:
    url = fleet.server.url.replace("https", "http")
    token = msgspec.structs.replace(fleet.token(), fleet_url=url)
    with pytest.raises(RefusedError, match="https"):
        enroll(tmp_path / "identity", token, Inventory())


def test_key_and_certificate_lie_in_one_file(fleet: Fleet, tmp_path: Path) -> None:
    identity = tmp_path / "identity"
    enroll(identity, fleet.token(), Inventory())
    ssl.create_default_context().load_cert_chain(identity / "device.pem")
    assert validity_of(identity / "device.pem").ends > datetime.now(UTC).timestamp()
    assert read_key(identity / "device.pem").curve.name == "secp256r1"
    assert not (identity / "enrolling.pem").exists()


def test_a_second_authority_to_trust_is_kept(fleet: Fleet, tmp_path: Path) -> None:
    both = fleet.authority.pem + authority("next").pem
    fleet.twist = lambda answer: msgspec.structs.replace(answer, ca=both)
    enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert (tmp_path / "identity" / "ca.crt").read_text() == both


def test_a_directory_that_cannot_be_written_spends_no_token(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "identity").write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    assert fleet.requests == []


@pytest.mark.parametrize("file", ["report.pem", "enrolling.pem", "device.pem", "identity.json"])
def test_a_disk_that_becomes_read_only_costs_no_token(
    fleet: Fleet, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, write = tmp_path / "identity", agent.identity.write_private

    def read_only(path: Path, data: bytes) -> None:
        if path.name == file:
            raise OSError(30, "Read-only file system", str(path))
        write(path, data)

    for module in ("agent.identity", "agent.enroll"):
        monkeypatch.setattr(f"{module}.write_private", read_only)
    with pytest.raises(OSError, match="Read-only file system"):
        enroll(identity, fleet.token(), Inventory())
    with pytest.raises(NotFoundError):
        load_identity(identity)
    for module in ("agent.identity", "agent.enroll"):
        monkeypatch.setattr(f"{module}.write_private", write)
    enroll(identity, fleet.token(), Inventory())
    # the same request, for which the fleet has the same answer
    assert len({(request.csr, request.report_key) for request in map(keys_of, fleet.requests)}) == 1
    assert len(fleet.requests) == (1 if file in ("report.pem", "enrolling.pem") else 2)


def keys_of(request: EnrolRequest) -> EnrolRequest:
    """The request, with its key in place of a signature that is another each time."""
    csr = x509.load_pem_x509_csr(request.csr.encode())
    key = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return msgspec.structs.replace(request, csr=key.hex())


@pytest.mark.parametrize("fault", ["key", "name", "issuer"])
def test_a_certificate_for_another_is_refused(fleet: Fleet, tmp_path: Path, fault: str) -> None:
    def twist(answer: EnrolAnswer) -> EnrolAnswer:
        (request,) = fleet.requests
        by = authority("demo") if fault == "issuer" else fleet.authority
        csr = signing_request(make_key(), "cam-1") if fault == "key" else request.csr
        made = by.issue("cam-2" if fault == "name" else "cam-1", csr, datetime.now(UTC))
        return msgspec.structs.replace(answer, certificate=made.pem)

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
        url = gone.url.replace("http", "https")
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


def test_a_fleet_that_drips_is_given_up(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow retrieval, of answers that are as small as a certificate."""
    monkeypatch.setattr("agent.ask.MIN_BYTES_S", 1000)
    monkeypatch.setattr("agent.ask.SLOW_S", 0.3)
    fleet.server.drip_s = 0.01
    with pytest.raises(UnreachableError, match="fewer than 1000 bytes a second"):
        enroll(tmp_path / "identity", fleet.token(), Inventory())
    fleet.server.drip_s = 0.0
    assert enroll(tmp_path / "identity", fleet.token(), Inventory()).device_id == "cam-1"
