"""Attacks on a device's identity: stolen, guessed and forged tokens, requests and certificates.

Against the fleet's device listener over TLS, with its registry in a real database. A request that
an attacker writes goes to it as bytes; where the honest device is part of it, it is the agent's own
enrolment. The device `DEVICE` has enrolled, and is accepted at the end of each attack as before.
"""

import asyncio
import secrets
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from agent.ask import ask
from agent.certificates import key_pem, read_key
from agent.enroll import enroll
from fleet.ca import DEVICE_VALID
from fleet.certificates import certificate_builder, make_ec_key, subject_of
from skerry.canonical import from_json, to_json
from skerry.enrolment import (
    ENROL_PATH,
    RENEW_PATH,
    EnrolAnswer,
    EnrolRequest,
    RenewAnswer,
    RenewRequest,
)
from skerry.errors import RefusedError, TrustError, UsageError
from skerry.ids import check_id
from skerry.profile import Inventory
from skerry.states import DeviceState
from tests.attacks.identity import (
    LIMIT,
    OK,
    THIEF,
    VICTIM,
    anybody,
    asked,
    forged,
    issued,
    refused_by_tls,
    request_of,
    signed,
)
from tests.fakes.listener import DEVICE, Listening, utc_now
from tests.fakes.pki import SERVER

# of the library that makes them here: the attacker's own affair
pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be:UserWarning")
BAD_NAMES = {
    "level": "cam/1",
    "one level of any name": "+",
    "all levels": "#",
    "all levels below": "cam-1/#",
    "300 bytes": "x" * 300,
    "Cyrillic a": "c\u0430m-1",
    "full width": "\uff43am-1",
    "combining accent": "ca\u0301m-1",
    "capital": "Cam-1",
    "nul": "cam-1\x00",
    "line end": "cam-1\n",
    "the fleet itself": "_fleet",
    "nothing": "",
}


# --- 35: tokens and requests ------------------------------------------------------------------


async def test_row_35_token_used_a_second_time(listening: Listening, tmp_path: Path) -> None:
    token = listening.token(VICTIM)
    await asyncio.to_thread(enroll, tmp_path / "first", token, Inventory())
    with pytest.raises(RefusedError, match="ask for a new token") as refused:
        await asyncio.to_thread(enroll, tmp_path / "second", token, Inventory())
    assert refused.value.code == "token_refused"
    assert not (tmp_path / "second" / "identity.json").exists()
    # the device that spent it is who it was
    assert await asked(listening, listening.shows(tmp_path / "first")) == OK


@pytest.mark.parametrize(("hours", "code"), [(23.9, OK), (24.0, "token_refused")])
async def test_row_35_token_after_its_time(listening: Listening, hours: float, code: str) -> None:
    request = request_of(listening.token(VICTIM))
    listening.clock = lambda: utc_now() + timedelta(hours=hours)
    assert await asked(listening, anybody(listening), ENROL_PATH, request) == code
    listening.clock = utc_now


GUESSES: dict[str, Callable[[bytes], bytes]] = {
    "random": lambda _: secrets.token_bytes(32),
    "one bit": lambda secret: bytes([secret[0] ^ 1]) + secret[1:],
    "shorter": lambda secret: secret[:-1],
    "longer": lambda secret: secret + b"\x00",
    "empty": lambda _: b"",
    "long": lambda _: b"x" * 10_000,
}


@pytest.mark.parametrize("guess", GUESSES)
async def test_row_35_token_guessed(listening: Listening, guess: str) -> None:
    token = listening.token(VICTIM)
    wrong = msgspec.structs.replace(token, secret=GUESSES[guess](token.secret))
    code = await asked(listening, anybody(listening), ENROL_PATH, request_of(wrong))
    assert code == "token_refused"
    # and nothing of the real one is spent
    assert await asked(listening, anybody(listening), ENROL_PATH, request_of(token)) == OK


async def test_row_35_token_replaced_by_a_later_one(listening: Listening) -> None:
    old, new = listening.token(VICTIM), listening.token(VICTIM)
    for token, code in ((old, "token_refused"), (new, OK)):
        assert await asked(listening, anybody(listening), ENROL_PATH, request_of(token)) == code


@pytest.mark.parametrize("state", [DeviceState.REJECTED, DeviceState.DECOMMISSIONED])
async def test_row_35_token_of_a_device_that_was_put_out(
    listening: Listening, state: DeviceState
) -> None:
    out, other = listening.token(VICTIM), listening.token(THIEF)
    listening.registry.move(VICTIM, state, utc_now())
    for token, code in ((out, "token_refused"), (other, OK)):
        assert await asked(listening, anybody(listening), ENROL_PATH, request_of(token)) == code


async def test_row_35_token_bound_to_another_device(listening: Listening, tmp_path: Path) -> None:
    """A token says who its device is; to write another name into it changes nothing at the fleet."""
    honest = listening.token(THIEF)
    altered = msgspec.structs.replace(honest, device_id=VICTIM)
    with pytest.raises(TrustError) as refused:
        await asyncio.to_thread(enroll, tmp_path / "altered", altered, Inventory())
    assert refused.value.code == "wrong_device"
    assert not (tmp_path / "altered" / "identity.json").exists()
    assert listening.store.device_state(VICTIM) is None
    token = listening.token(THIEF, again=True)
    record = await asyncio.to_thread(enroll, tmp_path / "honest", token, Inventory())
    assert record.device_id == THIEF


async def enrolled(listening: Listening, request: EnrolRequest) -> x509.Certificate:
    data = await asyncio.to_thread(
        ask, listening.url + ENROL_PATH, anybody(listening), body=to_json(request), limit=LIMIT
    )
    answer = from_json(data, EnrolAnswer)
    return x509.load_pem_x509_certificates(answer.certificate.encode())[0]


@pytest.mark.parametrize("name", [THIEF, DEVICE, "_fleet", *BAD_NAMES.values()])
async def test_row_35_request_in_anothers_name(listening: Listening, name: str) -> None:
    """The name is the claim's; what the request calls itself is not even looked at."""
    request = request_of(listening.token(VICTIM), csr=signed(name or " "))
    certificate = await enrolled(listening, request)
    assert subject_of(certificate) == VICTIM
    assert listening.store.device_state(THIEF) is None


async def test_row_35_request_to_be_an_authority(listening: Listening) -> None:
    request = request_of(listening.token(VICTIM), csr=signed(VICTIM, wishes=True))
    extensions = (await enrolled(listening, request)).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.critical) == (False, True)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign) == (False, False)
    assert SERVER not in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)


async def test_row_35_certificate_used_as_an_authority(
    listening: Listening, tmp_path: Path
) -> None:
    """A device signs a certificate for another with its own key; the chain ends at our root."""
    chain = (listening.identity / "device.pem").read_bytes()
    own = x509.load_pem_x509_certificate(chain)
    device_key = read_key(listening.identity / "device.pem")
    key, now = make_ec_key(), utc_now()
    made = certificate_builder(VICTIM, key.public_key(), now - DEVICE_VALID, now + DEVICE_VALID)
    made = made.issuer_name(own.subject)
    certificate = made.sign(device_key, hashes.SHA256()).public_bytes(Encoding.PEM)
    file = tmp_path / "made.pem"
    file.write_bytes(key_pem(key) + certificate + chain[chain.index(b"-----BEGIN CERT") :])
    context = anybody(listening)
    context.load_cert_chain(file)
    await refused_by_tls(listening, context)


REQUESTS: dict[str, Callable[[], str]] = {
    "bad signature": lambda: forged(signed(VICTIM)),
    "RSA": lambda: signed(VICTIM, rsa.generate_private_key(65537, 2048)),
    "Ed25519": lambda: signed(VICTIM, ed25519.Ed25519PrivateKey.generate()),
    "P-384": lambda: signed(VICTIM, ec.generate_private_key(ec.SECP384R1())),
    "none": lambda: "no request",
    "a certificate": lambda: signed(VICTIM).replace("CERTIFICATE REQUEST", "CERTIFICATE"),
    "too long": lambda: signed(VICTIM) + "x" * 9000,
}


@pytest.mark.parametrize("fault", REQUESTS)
async def test_row_35_request_that_proves_no_key(listening: Listening, fault: str) -> None:
    token = listening.token(VICTIM)
    request = request_of(token, csr=REQUESTS[fault]())
    assert await asked(listening, anybody(listening), ENROL_PATH, request) == "request"
    assert listening.store.record(VICTIM) is None
    # the token is not spent by it
    assert await asked(listening, anybody(listening), ENROL_PATH, request_of(token)) == OK


async def test_row_35_renewal_in_anothers_name(listening: Listening) -> None:
    await listening.enrol(VICTIM)
    before = listening.store.record(VICTIM)
    data = await asyncio.to_thread(
        ask, listening.url + RENEW_PATH, listening.context,
        body=to_json(RenewRequest(signed(VICTIM, wishes=True))), limit=LIMIT,
    )  # fmt: skip
    certificate = x509.load_pem_x509_certificate(from_json(data, RenewAnswer).certificate.encode())
    assert subject_of(certificate) == DEVICE
    assert listening.store.record(VICTIM) == before


async def test_row_35_renewal_without_a_certificate(listening: Listening) -> None:
    request = RenewRequest(signed(DEVICE))
    assert await asked(listening, anybody(listening), RENEW_PATH, request) == "certificate_missing"
    request = RenewRequest(forged(signed(DEVICE)))
    assert await asked(listening, listening.context, RENEW_PATH, request) == "request"
    request = RenewRequest(signed(DEVICE))
    assert await asked(listening, listening.context, RENEW_PATH, request) == OK


# --- 36: names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BAD_NAMES)
async def test_row_36_name_that_is_a_pattern_or_a_look_alike(
    listening: Listening, tmp_path: Path, what: str
) -> None:
    name = BAD_NAMES[what]
    with pytest.raises(UsageError):
        check_id(name, "device id")
    with pytest.raises(UsageError):
        listening.token(name)
    with pytest.raises(UsageError):
        listening.trusted.authority.issue(name, signed(VICTIM), utc_now())
    if name:  # and if somebody had such a certificate all the same
        context = issued(listening, name, tmp_path)
        assert await asked(listening, context) == "certificate_refused"
    # a plain name is preauthorised, certified, and let in
    assert await asked(listening, listening.shows(await listening.enrol(VICTIM))) == OK


async def test_row_36_plain_name_that_the_registry_never_gave(
    listening: Listening, tmp_path: Path
) -> None:
    """A certificate of our own authority: without its record in the registry it is worth nothing."""
    await listening.enrol(VICTIM)
    for name in (VICTIM, DEVICE, "cam-3"):
        assert await asked(listening, issued(listening, name, tmp_path)) == "certificate_refused"
