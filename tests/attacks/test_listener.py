"""Attacks on the device listener with certificates that are none, foreign, wrong, old or revoked."""

import asyncio
import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from agent.identity import load_identity
from agent.renewal import renew
from fleet.certificates import serial_of
from skerry.enrolment import (
    RENEW_PATH,
    RenewRequest,
)
from skerry.errors import RefusedError
from skerry.states import DeviceState
from tests.attacks.identity import (
    FILE,
    OK,
    VICTIM,
    anybody,
    asked,
    refused_by_tls,
    signed,
)
from tests.fakes.listener import DEVICE, Listening, open_listener, utc_now
from tests.fakes.pki import SERVER, Pki


async def test_row_32_listener_without_a_certificate(listening: Listening) -> None:
    for path in (FILE, "/v2/", RENEW_PATH, "/anything"):
        assert await asked(listening, anybody(listening), path) == "certificate_missing"
    assert await asked(listening, anybody(listening), "/ca") == OK


async def test_row_32_listener_with_a_certificate_of_another_fleet(
    listening: Listening, tmp_path: Path
) -> None:
    async with open_listener(tmp_path / "other") as other:
        assert load_identity(other.identity).record.device_id == DEVICE
        file = other.identity / "device.pem"
        context = anybody(listening)
        context.load_cert_chain(file)
        await refused_by_tls(listening, context)
        assert await asked(other, other.context) == OK


@pytest.mark.parametrize("fault", ["expired", "wrong purpose"])
async def test_row_32_listener_with_a_wrong_certificate(
    listening: Listening, tmp_path: Path, fault: str
) -> None:
    made = Pki(tmp_path / "pki")
    made._key, made.issuing = listening.trusted.keys.issuing, x509.load_pem_x509_certificate(
        (listening.trusted.data / "keys" / "issuing.crt").read_bytes()
    )  # fmt: skip
    made._name = made.issuing.subject
    week, good = timedelta(days=7), made.client(DEVICE, file="good")
    bad = (
        made.client(DEVICE, file="bad", start=-2 * week, end=-week)
        if fault == "expired"
        else made.client(DEVICE, file="bad", usage=SERVER)
    )
    context = anybody(listening)
    context.load_cert_chain(bad.certificate, bad.key)
    await refused_by_tls(listening, context)
    # made in the same way, and right: it comes as far as the registry
    context = anybody(listening)
    context.load_cert_chain(good.certificate, good.key)
    assert await asked(listening, context) == "certificate_refused"


async def test_row_32_listener_with_a_certificate_that_was_renewed_away(
    listening: Listening, tmp_path: Path
) -> None:
    """A copy of key and certificate is good until the next renewal, whoever of the two renews."""
    stolen = tmp_path / "stolen"
    stolen.mkdir()
    for name in ("device.pem", "ca.crt"):
        (stolen / name).write_bytes((listening.identity / name).read_bytes())
    assert await asked(listening, listening.shows(stolen)) == OK
    await asyncio.to_thread(renew, load_identity(listening.identity), listening.url)
    assert await asked(listening, listening.shows(stolen)) == "certificate_refused"
    thief = dataclasses.replace(load_identity(listening.identity), folder=stolen)
    with pytest.raises(RefusedError) as refused:
        await asyncio.to_thread(renew, thief, listening.url)
    assert refused.value.code == "certificate_refused"


@pytest.mark.parametrize("state", [DeviceState.REJECTED, DeviceState.DECOMMISSIONED])
async def test_row_32_listener_with_a_revoked_certificate(
    listening: Listening, state: DeviceState
) -> None:
    context = listening.shows(await listening.enrol(VICTIM))
    assert await asked(listening, context) == OK
    serial = serial_of((listening.folder / VICTIM / "device.pem").read_text())
    listening.registry.move(VICTIM, state, utc_now())
    assert await asked(listening, context) == "certificate_refused"
    assert await asked(listening, context, RENEW_PATH, RenewRequest(signed(VICTIM))) == (
        "certificate_refused"
    )
    assert not listening.registry.may_connect(VICTIM, serial)
