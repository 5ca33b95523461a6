"""A token enrols one device, once, under the name it was made for; in memory and in the database."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fleet.ca import Authority, issuing_request, make_root, sign_issuing
from fleet.certificates import make_ec_key, serial_of
from fleet.registry import Registry, RegistryStore
from fleet.store import open_store
from skerry.enrolment import EnrolRequest, roots_digest
from skerry.errors import (
    ConflictError,
    InvalidTransition,
    NotFoundError,
    RefusedError,
    TrustError,
    UsageError,
)
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.states import DeviceState
from skerry.token import EnrolmentToken, parse_token, secret_hash
from tests.fakes.registry_store import MemoryRegistryStore
from tests.fakes.trusted import NOW

ROOT_KEY, ISSUING_KEY = make_ec_key(), make_ec_key()
ROOT = make_root(ROOT_KEY, "demo", NOW)
ISSUING = sign_issuing(ROOT_KEY, ROOT, issuing_request(ISSUING_KEY, "demo"), "demo", NOW)
AUTHORITY = Authority(ISSUING_KEY, ISSUING, ROOT)
ROOTS = (b"catalog root", b"director root")
URL = "http://127.0.0.1:8441"


@dataclass
class Machine:
    """A machine that wants to enrol: two keys, and the name it gives itself."""

    key: ec.EllipticCurvePrivateKey
    report: Signer
    calls_itself: str = "root"

    def request_text(self) -> str:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.calls_itself)])
        csr = x509.CertificateSigningRequestBuilder().subject_name(name)
        signed = csr.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM).decode()

    def request(self, token: EnrolmentToken) -> EnrolRequest:
        facts = Inventory(agent="0.1.0", platform="linux-x86_64", isa=["avx2"])
        return EnrolRequest(token.secret, self.request_text(), self.report.public.raw, facts)


def machine() -> Machine:
    return Machine(make_ec_key(), Signer.generate())


@pytest.fixture(params=["memory", "database"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryStore]:
    if request.param == "memory":
        yield MemoryRegistryStore()
        return
    opened = open_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    yield opened.devices
    opened.close()


@pytest.fixture
def registry(store: RegistryStore) -> Registry:
    return Registry(store, AUTHORITY, lambda: ROOTS)


def token_for(registry: Registry, device: str = "dev-1", *, again: bool = False) -> EnrolmentToken:
    text = registry.preauthorize(
        device, tags={"site": "north"}, fleet_url=URL, now=NOW, again=again
    )
    return parse_token(text)


def common_name(pem: str) -> object:
    certificate = x509.load_pem_x509_certificates(pem.encode())[0]
    return certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def test_a_token_says_where_the_fleet_is_and_how_to_know_it(registry: Registry) -> None:
    token = token_for(registry)
    assert (token.device_id, token.fleet_url) == ("dev-1", URL)
    assert token.ca_fingerprint == AUTHORITY.fingerprint
    assert token.roots_digest == roots_digest(*ROOTS)
    assert len(token.secret) == 32


def test_a_device_is_enrolled_under_the_name_of_its_token(
    registry: Registry, store: RegistryStore
) -> None:
    asking = machine()
    record = registry.enrol(asking.request(token_for(registry)), NOW).record
    assert record.device_id == "dev-1"
    assert common_name(record.certificate) == "dev-1"
    assert record.report_key == asking.report.public.raw
    assert record.client_id == "dev-1"
    assert record.certificate_expires <= NOW + timedelta(days=30)
    assert store.device_state("dev-1") is DeviceState.ACCEPTED
    assert store.record("dev-1") == record


def test_the_secret_is_not_kept(registry: Registry, store: RegistryStore) -> None:
    token = token_for(registry)
    claim = store.claim(secret_hash(token.secret))
    assert claim is not None
    assert token.secret.hex() not in repr(claim)


def test_the_client_id_may_be_a_secret_of_the_enrolment(store: RegistryStore) -> None:
    registry = Registry(store, AUTHORITY, lambda: ROOTS, client_id=lambda device: f"{device}-x7f")
    record = registry.enrol(machine().request(token_for(registry)), NOW).record
    assert record.client_id == "dev-1-x7f"


def test_a_spent_token_enrols_nobody_else(registry: Registry) -> None:
    token = token_for(registry)
    registry.enrol(machine().request(token), NOW)
    with pytest.raises(RefusedError):
        registry.enrol(machine().request(token), NOW)


def test_a_lost_answer_is_given_again(registry: Registry) -> None:
    asking, token = machine(), token_for(registry)
    first = registry.enrol(asking.request(token), NOW)
    second = registry.enrol(asking.request(token), NOW + timedelta(hours=1))
    assert (first.again, second.again) == (False, True)
    assert second.record == first.record


def test_half_the_keys_are_not_the_same_device(registry: Registry) -> None:
    asking, token = machine(), token_for(registry)
    registry.enrol(asking.request(token), NOW)
    for thief in (Machine(asking.key, Signer.generate()), Machine(make_ec_key(), asking.report)):
        with pytest.raises(RefusedError):
            registry.enrol(thief.request(token), NOW)


def test_an_expired_token_is_refused_even_to_its_device(registry: Registry) -> None:
    asking, token = machine(), token_for(registry)
    with pytest.raises(RefusedError):
        registry.enrol(asking.request(token), NOW + timedelta(hours=24))
    registry.enrol(asking.request(token), NOW + timedelta(hours=23))
    with pytest.raises(RefusedError):
        registry.enrol(asking.request(token), NOW + timedelta(hours=24))


def test_a_guessed_token_is_refused_in_the_same_words(registry: Registry) -> None:
    token = token_for(registry)
    registry.enrol(machine().request(token), NOW)
    refusals = set()
    for secret in (token.secret, bytes(32), b""):
        with pytest.raises(RefusedError) as refused:
            registry.enrol(machine().request(msgspec.structs.replace(token, secret=secret)), NOW)
        refusals.add(str(refused.value))
    assert len(refusals) == 1


def test_a_new_token_takes_the_place_of_the_old(registry: Registry) -> None:
    old, new = token_for(registry), token_for(registry)
    with pytest.raises(RefusedError):
        registry.enrol(machine().request(old), NOW)
    assert registry.enrol(machine().request(new), NOW).record.device_id == "dev-1"


def test_of_many_at_once_exactly_one_spends_the_token(registry: Registry) -> None:
    token = token_for(registry)
    requests = [machine().request(token) for _ in range(8)]
    enrolled, refused = [], []

    def enrol(request: EnrolRequest) -> None:
        try:
            enrolled.append(registry.enrol(request, NOW).record.report_key)
        except RefusedError:
            refused.append(request)

    threads = [threading.Thread(target=enrol, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(enrolled), len(refused)) == (1, 7)


def test_a_bad_request_does_not_spend_the_token(registry: Registry) -> None:
    asking, token = machine(), token_for(registry)
    good = asking.request(token)
    for bad in (
        msgspec.structs.replace(good, csr="none"),
        msgspec.structs.replace(good, report_key=b"short"),
    ):
        with pytest.raises(TrustError):
            registry.enrol(bad, NOW)
    assert not registry.enrol(good, NOW).again


def test_an_enrolled_device_gets_another_token_only_knowingly(
    registry: Registry, store: RegistryStore
) -> None:
    registry.enrol(machine().request(token_for(registry)), NOW)
    with pytest.raises(ConflictError, match="again"):
        token_for(registry)
    replacement = machine()
    registry.enrol(replacement.request(token_for(registry, again=True)), NOW)
    record = store.record("dev-1")
    assert record is not None
    assert record.report_key == replacement.report.public.raw


def test_a_decommissioned_device_never_comes_back(registry: Registry) -> None:
    asking, token = machine(), token_for(registry)
    registry.enrol(asking.request(token), NOW)
    registry.move("dev-1", DeviceState.DECOMMISSIONED, NOW)
    with pytest.raises(RefusedError):
        token_for(registry, again=True)
    with pytest.raises(RefusedError):
        registry.enrol(asking.request(token), NOW)
    with pytest.raises(InvalidTransition):
        registry.move("dev-1", DeviceState.ACCEPTED, NOW)


def test_a_device_is_rejected_and_accepted_again(registry: Registry, store: RegistryStore) -> None:
    registry.enrol(machine().request(token_for(registry)), NOW)
    registry.move("dev-1", DeviceState.REJECTED, NOW)
    registry.move("dev-1", DeviceState.ACCEPTED, NOW)
    assert store.device_state("dev-1") is DeviceState.ACCEPTED


@pytest.mark.parametrize("enrolled_before", [False, True])
def test_rejecting_a_device_voids_its_token(registry: Registry, enrolled_before: bool) -> None:
    if enrolled_before:
        registry.enrol(machine().request(token_for(registry)), NOW)
    token = token_for(registry, again=True)
    registry.move("dev-1", DeviceState.REJECTED, NOW)
    with pytest.raises(RefusedError):
        registry.enrol(machine().request(token), NOW)
    later = token_for(registry, again=True)  # an operator who knows
    assert registry.enrol(machine().request(later), NOW).record.state is DeviceState.ACCEPTED


def test_a_device_that_has_not_enrolled_is_not_accepted(registry: Registry) -> None:
    token_for(registry)
    with pytest.raises(RefusedError, match="not enrolled"):
        registry.move("dev-1", DeviceState.ACCEPTED, NOW)
    with pytest.raises(NotFoundError):
        registry.move("dev-2", DeviceState.REJECTED, NOW)


@pytest.mark.parametrize("device", ["", "d", "Dev-1", "dev/1", "dev-1\n", "../dev", "x" * 64])
def test_a_malformed_device_id_is_refused(registry: Registry, device: str) -> None:
    with pytest.raises(UsageError):
        token_for(registry, device)


@pytest.mark.parametrize(
    "tags",
    [{"Site": "north"}, {"site": ""}, {"site": "a b"}, {f"t{n}": "x" for n in range(33)}],
)
def test_tags_that_no_selector_can_name_are_refused(
    registry: Registry, tags: dict[str, str]
) -> None:
    with pytest.raises(UsageError):
        registry.preauthorize("dev-1", tags=tags, fleet_url=URL, now=NOW)


def renewed(registry: Registry, asking: Machine, serial: int) -> int:
    return serial_of(registry.renew("dev-1", serial, asking.request_text(), NOW).pem)


def enrolled(registry: Registry) -> int:
    record = registry.enrol(machine().request(token_for(registry)), NOW).record
    return serial_of(record.certificate)


def test_a_renewed_certificate_ends_the_former_one_when_it_is_first_used(
    registry: Registry, store: RegistryStore
) -> None:
    first = enrolled(registry)
    second = renewed(registry, machine(), first)
    assert registry.may_connect("dev-1", first)
    assert registry.may_connect("dev-1", first)
    assert registry.may_connect("dev-1", second)
    assert not registry.may_connect("dev-1", first)
    assert registry.may_connect("dev-1", second)
    record = store.record("dev-1")
    assert record is not None
    assert (serial_of(record.certificate), record.previous_certificate) == (second, None)
    assert record.certificate_expires <= NOW + timedelta(days=30)


def test_a_renewal_whose_answer_was_lost_is_made_again_with_the_former_one(
    registry: Registry,
) -> None:
    first = enrolled(registry)
    lost = renewed(registry, machine(), first)
    second = renewed(registry, machine(), first)
    assert not registry.may_connect("dev-1", lost)
    assert registry.may_connect("dev-1", first)
    assert registry.may_connect("dev-1", second)
    assert not registry.may_connect("dev-1", first)
    with pytest.raises(RefusedError):
        renewed(registry, machine(), first)
    assert registry.may_connect("dev-1", renewed(registry, machine(), second))


def test_an_enrolment_ends_every_certificate_before_it(store: RegistryStore) -> None:
    cut: list[str] = []
    registry = Registry(store, AUTHORITY, lambda: ROOTS, on_cut=cut.append)
    first = enrolled(registry)
    second = renewed(registry, machine(), first)
    assert cut == []
    token = token_for(registry, again=True)
    third = serial_of(registry.enrol(machine().request(token), NOW).record.certificate)
    assert [registry.may_connect("dev-1", n) for n in (first, second, third)] == [
        False,
        False,
        True,
    ]
    assert cut == ["dev-1"]


def test_only_its_own_certificate_renews(registry: Registry) -> None:
    first = enrolled(registry)
    registry.enrol(machine().request(token_for(registry, "dev-2")), NOW)
    for device, serial in (("dev-2", first), ("dev-3", first), ("dev-1", first + 1)):
        with pytest.raises(RefusedError, match="may not connect"):
            registry.renew(device, serial, machine().request_text(), NOW)
    renewed(registry, machine(), first)


@pytest.mark.parametrize("state", [DeviceState.REJECTED, DeviceState.DECOMMISSIONED])
def test_a_device_that_was_put_out_renews_nothing(registry: Registry, state: DeviceState) -> None:
    first = enrolled(registry)
    second = renewed(registry, machine(), first)
    registry.move("dev-1", state, NOW)
    for serial in (first, second):
        assert not registry.may_connect("dev-1", serial)
        with pytest.raises(RefusedError, match="may not connect"):
            renewed(registry, machine(), serial)


def test_a_renewal_wants_a_new_key(registry: Registry) -> None:
    asking = machine()
    record = registry.enrol(asking.request(token_for(registry)), NOW).record
    with pytest.raises(TrustError, match="new key"):
        renewed(registry, asking, serial_of(record.certificate))


def test_of_two_renewals_at_once_one_is_kept(registry: Registry, store: RegistryStore) -> None:
    first = enrolled(registry)
    stale = store.record("dev-1")
    assert stale is not None
    second = renewed(registry, machine(), first)
    assert not store.renew(stale, AUTHORITY.issue("dev-1", machine().request_text(), NOW), "")
    store.forget_previous(stale)  # what somebody else saw before the renewal
    assert registry.may_connect("dev-1", first)
    assert registry.may_connect("dev-1", second)


def test_a_device_that_is_decommissioned_while_it_enrols_stays_so(
    registry: Registry, store: RegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, token = machine(), token_for(registry)
    issue = AUTHORITY.issue

    def meanwhile(*words: Any) -> Any:  # after its state was read, before it is written
        store.move("dev-1", DeviceState.PREAUTHORIZED, DeviceState.DECOMMISSIONED, NOW)
        return issue(*words)

    monkeypatch.setattr(AUTHORITY, "issue", meanwhile)
    with pytest.raises(RefusedError):
        registry.enrol(asking.request(token), NOW)
    assert store.device_state("dev-1") is DeviceState.DECOMMISSIONED
