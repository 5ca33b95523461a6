"""Renewal: when it is due, and what a crash, a refusal or a lost answer leaves behind.

Against a real device listener. TLS knows no time but the present, so that time passes by letting
the device enrol in the past.
"""

import asyncio
import dataclasses
import logging
import random
import shutil
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import agent.identity
from agent.ask import ask
from agent.certificates import (
    Validity,
    key_pem,
    make_key,
    read_key,
    signing_request,
    validity_of,
)
from agent.download import Fetcher
from agent.enroll import enroll
from agent.identity import Identity, load_identity, save_certificate
from agent.renewal import DUE_AT, SPREAD, Keeper, Need, Plan, go_back, renew
from fleet.ca import Authority, issuing_request, make_root, sign_issuing
from fleet.certificates import make_ec_key, serial_of
from skerry.errors import ConflictError, RefusedError, SkerryError, TrustError
from skerry.profile import Inventory
from skerry.states import DeviceState
from skerry.token import EnrolmentToken
from tests.fakes.disk import Crash
from tests.fakes.listener import DEVICE, Listening, open_listener, utc_now
from tests.fakes.registry_store import MemoryRegistryStore

DAY = 86400.0
MONTH = Validity(0.0, 30 * DAY)
FILE = "/tuf/catalog/metadata/1.root.json"


# --- the rule ------------------------------------------------------------------------------


def test_it_is_due_at_two_thirds_each_device_at_its_own_time() -> None:
    for spread, due in ((0.0, 20.0), (0.5, 20.5), (1.0, 21.0)):
        plan = Plan(spread)
        assert plan.need(MONTH, (due - 0.01) * DAY, 0.0) is Need.NOTHING
        assert plan.need(MONTH, (due + 0.01) * DAY, 0.0) is Need.RENEWAL
    assert DUE_AT + SPREAD < 1


def test_after_its_end_only_an_operator_helps() -> None:
    plan = Plan(0.0)
    assert plan.need(MONTH, 29.9 * DAY, 0.0) is Need.RENEWAL
    assert plan.need(MONTH, 30 * DAY, 0.0) is Need.PREAUTHORIZATION
    plan.failed(0.0, 1.0)
    assert plan.need(MONTH, 40 * DAY, 0.0) is Need.PREAUTHORIZATION


def test_failures_put_it_off_ever_longer_up_to_a_few_hours() -> None:
    plan, mono, waits = Plan(0.0), 1000.0, []
    for _ in range(50):
        plan.failed(mono, 0.0)
        waits.append(plan.again_at - mono)
        assert plan.need(MONTH, 25 * DAY, plan.again_at - 0.1) is Need.NOTHING
        assert plan.need(MONTH, 25 * DAY, plan.again_at) is Need.RENEWAL
        mono = plan.again_at
    assert waits[:3] == [30.0, 60.0, 120.0]
    assert max(waits) == waits[-1] == 2 * 3600.0
    # three times over within the ten days that are left, whatever happens
    assert sum(waits[:20]) < 10 * DAY / 3
    plan.renewed()
    assert plan.need(MONTH, 25 * DAY, 0.0) is Need.RENEWAL


def test_a_clock_in_1970_asks_for_nothing() -> None:
    later = Validity(MONTH.starts + 1e9, MONTH.ends + 1e9)
    assert Plan(0.0).need(later, 60.0, 0.0) is Need.NOTHING


# --- the act -------------------------------------------------------------------------------


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    async with open_listener(tmp_path, age=timedelta(days=22)) as listening:
        yield listening


def identity_of(listening: Listening) -> Identity:
    return load_identity(listening.identity)


def serial(listening: Listening) -> int:
    return serial_of((listening.identity / "device.pem").read_text())


def keeper(listening: Listening, renewed: list[str], *, ahead: timedelta = timedelta(0)) -> Keeper:
    return Keeper(
        identity_of(listening), listening.url, now=lambda: (utc_now() + ahead).timestamp(),
        renewed=lambda: renewed.append("renewed"), connected=lambda: False, rng=random.Random(1),
    )  # fmt: skip


async def works(listening: Listening, context: ssl.SSLContext | None = None) -> bool:
    try:
        await asyncio.to_thread(
            ask, listening.url + FILE, context or listening.context, limit=1 << 20
        )
    except RefusedError as error:
        if error.code != "certificate_refused":
            raise
        return False
    return True


async def test_a_new_certificate_for_a_new_key_ends_the_old_one(listening: Listening) -> None:
    file = listening.identity / "device.pem"
    old, before = listening.context, validity_of(file)
    key = file.read_text().partition("-----BEGIN CERTIFICATE")[0]
    renewed: list[str] = []
    assert await keeper(listening, renewed).look() is Need.RENEWAL
    after = validity_of(file)
    assert 29 * DAY < after.ends - utc_now().timestamp() <= 30 * DAY < 40 * DAY
    assert after.ends > before.ends + 20 * DAY
    assert file.read_text().partition("-----BEGIN CERTIFICATE")[0] != key
    assert file.stat().st_mode & 0o777 == 0o600
    assert await works(listening)
    assert not await works(listening, old)
    assert renewed == ["renewed"]
    assert await keeper(listening, renewed).look() is Need.NOTHING


async def test_an_open_fetcher_uses_the_new_certificate(listening: Listening) -> None:
    identity = identity_of(listening)
    fetcher = Fetcher(
        listening.url, timeout_s=5, ca_file=identity.ca_file, cert_file=identity.device_file,
        key_file=identity.device_file,
    )  # fmt: skip
    for _ in range(3):
        assert await asyncio.to_thread(fetcher.small, FILE, 1 << 20)
        await asyncio.to_thread(renew, identity, listening.url)


async def test_a_time_far_ahead_does_not_let_the_certificate_lapse(listening: Listening) -> None:
    """A stolen message key tells any time; the system's clock says that renewal is due."""
    former, renewed = serial(listening), list[str]()
    kept = keeper(listening, renewed, ahead=timedelta(days=400))
    for _ in range(3):
        assert await kept.look() is Need.PREAUTHORIZATION
    assert renewed == ["renewed"]
    assert serial(listening) != former
    assert await works(listening)


async def test_the_old_one_holds_until_the_new_one_was_used(listening: Listening) -> None:
    record = listening.store.record(DEVICE)
    assert record is not None
    old = listening.context
    for _ in range(2):  # an answer that never arrived, twice
        new = listening.registry.renew(
            DEVICE, serial_of(record.certificate), signing_request(make_key(), DEVICE), utc_now()
        )
        assert await works(listening, old)
    assert listening.registry.may_connect(DEVICE, serial_of(new.pem))
    assert not await works(listening, old)


@pytest.mark.parametrize("file", ["ca.crt", "device.pem", "nothing"])
async def test_a_crash_leaves_a_key_with_its_own_certificate(
    listening: Listening, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = agent.identity.write_private

    def crash(path: Path, data: bytes) -> None:
        if path.name == file:
            raise Crash
        write(path, data)
        if path.name == "device.pem":
            raise Crash

    before = serial(listening)
    monkeypatch.setattr("agent.identity.write_private", crash)
    with pytest.raises(Crash):
        await asyncio.to_thread(renew, identity_of(listening), listening.url)
    monkeypatch.setattr("agent.identity.write_private", write)
    assert (serial(listening) == before) == (file != "nothing")
    # the fleet knows two certificates, and the device has one of them
    assert await works(listening)
    await asyncio.to_thread(renew, identity_of(listening), listening.url)
    assert await works(listening)


async def test_a_disk_that_cannot_be_written_costs_nothing(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    before = (listening.identity / "device.pem").read_bytes()
    renewed: list[str] = []
    kept = keeper(listening, renewed)
    with monkeypatch.context() as patch:
        patch.setattr("agent.identity.write_private", read_only)
        assert await kept.look() is Need.RENEWAL
    assert "Read-only file system" in caplog.text
    assert ((listening.identity / "device.pem").read_bytes(), renewed) == (before, [])
    assert await works(listening)
    assert await kept.look() is Need.NOTHING  # not at once again


@pytest.mark.parametrize("state", [DeviceState.REJECTED, DeviceState.DECOMMISSIONED])
async def test_a_device_that_was_put_out_gets_no_certificate(
    listening: Listening, state: DeviceState
) -> None:
    before = listening.store.records[DEVICE].certificate
    listening.registry.move(DEVICE, state, utc_now())
    with pytest.raises(RefusedError) as caught:
        await asyncio.to_thread(renew, identity_of(listening), listening.url)
    assert caught.value.code == "certificate_refused"
    assert listening.store.records[DEVICE].certificate == before


async def test_a_device_put_out_while_it_renews_gets_no_certificate(listening: Listening) -> None:
    record = listening.store.records[DEVICE]
    listening.store.states[DEVICE] = DeviceState.ACCEPTED
    stale = listening.store.record(DEVICE)
    listening.store.record = lambda _: stale  # type: ignore[method-assign]  # read just before
    listening.store.states[DEVICE] = DeviceState.REJECTED
    with pytest.raises(RefusedError):
        listening.registry.renew(
            DEVICE, serial_of(record.certificate), signing_request(make_key(), DEVICE), utc_now()
        )
    assert listening.store.records[DEVICE].certificate == record.certificate


async def test_the_same_key_is_not_certified_again(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = read_key(listening.identity / "device.pem")
    monkeypatch.setattr("agent.renewal.make_key", lambda: key)
    with pytest.raises(SkerryError, match="new key"):
        await asyncio.to_thread(renew, identity_of(listening), listening.url)


async def test_a_second_authority_comes_with_the_renewal(listening: Listening) -> None:
    """An authority is replaced in steps: first every device trusts both."""
    next_root = make_root(make_ec_key(), "next", utc_now())
    both = listening.trusted.authority.pem + next_root.decode()
    listening.answers_ca(both)
    await asyncio.to_thread(renew, identity_of(listening), listening.url)
    assert (listening.identity / "ca.crt").read_text() == both
    assert await works(listening)
    assert len(listening.context.get_ca_certs()) == 2


async def test_an_answer_signed_by_nobody_known_is_not_kept(listening: Listening) -> None:
    before = (listening.identity / "device.pem").read_bytes()
    listening.answers_ca(make_root(make_ec_key(), "next", utc_now()).decode())
    with pytest.raises(TrustError) as caught:
        await asyncio.to_thread(renew, identity_of(listening), listening.url)
    assert caught.value.code == "certificate"
    assert (listening.identity / "device.pem").read_bytes() == before
    assert await works(listening)


async def test_a_fleet_that_has_forgotten_a_renewal_is_met_with_the_former_certificate(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = dict(listening.store.records)
    renewed: list[str] = []
    kept = keeper(listening, renewed)
    assert await kept.look() is Need.RENEWAL
    new = serial(listening)
    monkeypatch.setattr("agent.renewal.APART_S", 0.0)
    assert await kept.look() is Need.NOTHING
    assert (serial(listening), renewed) == (new, ["renewed"])  # nothing is wrong with it
    listening.store.records = backup
    assert not await works(listening)
    assert await kept.look() is Need.NOTHING
    assert await works(listening)
    assert await kept.look() is Need.RENEWAL
    assert await works(listening)
    assert renewed == ["renewed"] * 3
    assert serial(listening) != new


async def test_a_device_that_was_put_out_keeps_the_certificate_that_it_has(
    listening: Listening,
) -> None:
    await asyncio.to_thread(renew, identity_of(listening), listening.url)
    before = serial(listening)
    listening.registry.move(DEVICE, DeviceState.REJECTED, utc_now())
    assert not await asyncio.to_thread(go_back, identity_of(listening), listening.url)
    assert serial(listening) == before


def authority(*roots: tuple[ec.EllipticCurvePrivateKey, bytes]) -> Authority:
    """An issuing authority that the first root signed; all are trusted."""
    key = make_ec_key()
    request = issuing_request(key, "demo")
    issuing = sign_issuing(roots[0][0], roots[0][1], request, "demo", utc_now())
    return Authority(key, issuing, b"".join(pem for _, pem in roots))


async def test_an_authority_is_replaced_in_steps_and_every_device_comes_along(
    tmp_path: Path,
) -> None:
    old, new = ((key, make_root(key, "demo", utc_now())) for key in (make_ec_key(), make_ec_key()))
    store = MemoryRegistryStore()
    async with open_listener(tmp_path / "0") as first:  # only to have an identity to begin with
        identity = identity_of(first)
        store.records, store.states = first.store.records, first.store.states
        key, begin = make_key(), authority(old)
        made = begin.issue(DEVICE, signing_request(key, DEVICE), utc_now())
        record = store.records[DEVICE]
        store.records[DEVICE] = dataclasses.replace(record, certificate=made.pem)
        save_certificate(identity.folder, key_pem(key), made.pem, begin.pem)
    late = tmp_path / "late"
    shutil.copytree(identity.folder, late)
    steps = ((old, new), (new, old), (new,))
    for n, roots in enumerate(steps, 1):
        step = authority(*roots)
        async with open_listener(tmp_path / str(n), store=store, authority=step) as listening:
            await asyncio.to_thread(renew, identity, listening.url)
            assert identity.ca_file.read_text() == step.pem
            assert store.records[DEVICE].previous_certificate is None
            if n > 1:  # one that has slept through the first step does not know this server
                sleeper = dataclasses.replace(identity, folder=late)
                with pytest.raises(TrustError) as caught:
                    await asyncio.to_thread(renew, sleeper, listening.url)
                assert caught.value.code == "ca"


# --- a device that was away too long ---------------------------------------------------------


async def test_after_forty_days_it_says_what_to_do_and_enrols_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_listener(tmp_path, age=timedelta(days=40)) as listening:
        report_key = (listening.identity / "report.pem").read_bytes()
        kept = keeper(listening, [])
        for _ in range(3):
            assert await kept.look() is Need.PREAUTHORIZATION
        (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert f"skerry devices preauthorize {DEVICE} --again" in told.getMessage()
        with pytest.raises((SkerryError, OSError)):
            await asyncio.to_thread(renew, identity_of(listening), listening.url)
        token = listening.token(DEVICE, again=True)
        with pytest.raises(ConflictError, match="--again"):
            await enrol(listening, token, again=False)
        await enrol(listening, token, again=True)
        assert await kept.look() is Need.NOTHING
        assert await works(listening)
        assert (listening.identity / "report.pem").read_bytes() == report_key


async def enrol(listening: Listening, token: EnrolmentToken, *, again: bool) -> None:
    await asyncio.to_thread(enroll, listening.identity, token, Inventory(), again=again)


async def test_again_is_for_the_same_device_of_the_same_fleet(
    listening: Listening, tmp_path: Path
) -> None:
    before = (listening.identity / "identity.json").read_bytes()
    with pytest.raises(ConflictError, match="the token is for dev-9"):
        await enrol(listening, listening.token("dev-9"), again=True)
    async with open_listener(tmp_path / "other", fleet_id="other") as other:
        token = other.token(DEVICE, again=True)
        with pytest.raises(TrustError) as caught:
            await enrol(listening, token, again=True)
        assert caught.value.code == "another_fleet"
    assert (listening.identity / "identity.json").read_bytes() == before
    assert await works(listening)


async def test_again_is_not_for_another_ceremony(listening: Listening, tmp_path: Path) -> None:
    """The device would go on to believe the keys of the ceremony before it."""
    before = {path.name: path.read_bytes() for path in listening.identity.glob("*-root.json")}
    async with open_listener(tmp_path / "other") as other:
        with pytest.raises(TrustError, match="move the state directory away") as caught:
            await enrol(listening, other.token(DEVICE, again=True), again=True)
        assert caught.value.code == "another_ceremony"
    for name, root in before.items():
        assert (listening.identity / name).read_bytes() == root
    await enrol(listening, listening.token(DEVICE, again=True), again=True)
    assert await works(listening)
