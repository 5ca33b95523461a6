"""Login questions: answered for the right device alone, by whoever of two is there."""

import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fleet.access import WELCOME, log_in
from fleet.broker_config import Rights
from fleet.callout import Callout, Issuer, Refusals, load_issuer
from skerry.errors import RefusedError, TrustError, UnreachableError
from tests.fakes.brokers import HOST, Book, NatsServer, context_for
from tests.fakes.mqtt_client import NOT_AUTHORIZED, MqttClient
from tests.fakes.mqtt_device import until
from tests.fakes.pki import Pki

DEVICE = "dev-01"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    started = NatsServer(tmp_path)
    started.accept(DEVICE)
    yield started
    started.stop()


def login(server: NatsServer, device: str = DEVICE, client_id: str = "") -> int:
    return log_in(HOST, server.port, context_for(server, device), client_id or device)


def test_one_of_two_that_answer_may_fail(server: NatsServer) -> None:
    assert login(server) == WELCOME
    server.access.responders[0].stop()
    assert [login(server) for _ in range(5)] == [WELCOME] * 5
    server.access.responders[1].stop()
    assert login(server) == NOT_AUTHORIZED  # nobody answers, so nobody gets in


def test_a_new_broker_is_answered_again(server: NatsServer) -> None:
    server.kill()
    until("a second broker", lambda: len(server.pids) == 2)
    until("logins", lambda: login(server) == WELCOME)
    client = MqttClient(server.port, context_for(server, DEVICE), DEVICE)
    server.revoke(DEVICE)
    until("the cut", lambda: not client.connected, 2.0)
    client.close()


def test_a_device_that_nobody_knows_is_refused(server: NatsServer) -> None:
    server.pki.client("dev-02")
    assert login(server, "dev-02") == NOT_AUTHORIZED
    assert server.book.asked == ["dev-02"]


def test_a_certificate_that_was_replaced_is_refused(server: NatsServer) -> None:
    server.pki.client(DEVICE)  # newer, and not in the book
    assert login(server) == NOT_AUTHORIZED
    server.accept(DEVICE)
    assert login(server) == WELCOME


@pytest.mark.parametrize("name", ["_fleet-2", "Dev-01", "de", "dev-01.", "a/b/c", "dev-*", ">"])
def test_a_name_that_no_device_can_have_is_refused(server: NatsServer, name: str) -> None:
    server.pki.client(name, file="odd")
    server.book.allowed[name] = {server.pki.serials["odd"]}
    assert login(server, "odd", name) != WELCOME


@pytest.mark.parametrize("name", ["auth", "sys"])
def test_a_device_called_as_a_user_of_the_service_port_is_a_device(
    server: NatsServer, name: str
) -> None:
    server.accept(name)
    client = MqttClient(server.port, context_for(server, name), name, username=name)
    assert client.connected
    assert client.subscribe("$SYS/#", "#", f"skerry/v1/demo/dn/{name}/#") == [128, 128, 1]
    client.close()


def test_a_connection_ends_with_its_certificate(server: NatsServer) -> None:
    server.pki.client(DEVICE, end=timedelta(seconds=3))
    server.accept(DEVICE)
    client = MqttClient(server.port, context_for(server, DEVICE), DEVICE)
    assert client.connected
    until("the end", lambda: not client.connected, 6.0)
    client.close()


def test_a_login_under_way_while_it_is_revoked_does_not_stay(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = server.book.may_connect

    def slow(device_id: str, serial: int) -> bool:
        allowed = real(device_id, serial)
        server.revoke(device_id)  # the order to cut it finds nobody yet
        time.sleep(0.3)
        return allowed

    monkeypatch.setattr(server.book, "may_connect", slow)
    client = MqttClient(server.port, context_for(server, DEVICE), DEVICE)
    until("a cut", lambda: not client.connected, 4.0)
    client.close()


def test_the_service_port_lets_nobody_in_without_the_password(server: NatsServer) -> None:
    from fleet.nats import ServiceClient

    for user, password in (("sys", "guess"), ("auth", ""), ("", ""), ("_fleet", "")):
        client = ServiceClient(server.settings.service_port, user, password)
        client.start()
        assert not client.wait_connected(0.5)
        client.stop()
    good = ServiceClient(server.settings.service_port, "sys", server.settings.password)
    good.start()
    assert good.wait_connected(5.0)
    good.stop()
    with pytest.raises(UnreachableError):
        good.submit(_nothing())


async def _nothing() -> None:
    return None


def test_a_broker_that_takes_no_word_from_us_fails_the_self_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_issuer(_folder(tmp_path / "other"))
    real = Callout.answer

    def answer(self: Callout, question: bytes) -> bytes:
        return real(Callout(other, self.gate, self.rights, self.clock), question)

    started: list[NatsServer] = []
    monkeypatch.setattr(Callout, "answer", answer)
    monkeypatch.setattr("tests.fakes.brokers.AskedAccess.start", lambda _: None)
    server = NatsServer(tmp_path)
    started.append(server)
    monkeypatch.undo()
    monkeypatch.setattr(Callout, "answer", answer)
    try:
        with pytest.raises(UnreachableError, match=r"refused; that takes nats-server 2\.10"):
            server.access.start()
    finally:
        server.stop()


# --- without a broker ---------------------------------------------------------


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def callout(tmp_path: Path, book: Book) -> Callout:
    return Callout(
        load_issuer(tmp_path), book, lambda _: Rights(("p",), ("s",)), lambda: datetime.now(UTC)
    )


def question(pki: Pki, signer: Issuer, **changes: Any) -> bytes:
    about = {
        "user_nkey": "U1",
        "server_id": {"id": signer.public},
        "client_info": {"type": "mqtt", "mqtt_id": DEVICE},
        "client_tls": {"verified_chains": [[pki.client(DEVICE).certificate.read_text()]]},
    }
    return signer.sign({"nats": about | changes}).encode()


def answered(callout: Callout, asked: bytes) -> dict[str, Any]:
    return claims(callout.answer(asked))["nats"]


def claims(token: bytes | str) -> Any:
    from fleet.callout import _unb64

    data = token.encode() if isinstance(token, str) else token
    return json.loads(_unb64(data.split(b".")[1]))


def test_an_answer_is_for_one_device_until_its_certificate_ends(
    callout: Callout, book: Book, tmp_path: Path
) -> None:
    pki, server = Pki(tmp_path / "pki"), load_issuer(_folder(tmp_path / "server"))
    asked = question(pki, server)
    book.allowed[DEVICE] = {pki.serials[DEVICE]}
    user = claims(answered(callout, asked)["jwt"])
    assert (user["sub"], user["aud"], user["name"]) == ("U1", "SKERRY", DEVICE)
    assert abs(user["exp"] - time.time() - 86400) < 60
    assert user["nats"]["pub"] == {"allow": ["p"]}
    assert user["nats"]["allowed_connection_types"] == ["MQTT"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"client_info": {"type": "nats", "mqtt_id": DEVICE}}, "does not speak MQTT"),
        ({"client_info": {"type": "mqtt", "mqtt_id": "dev-02"}}, "is not the certificate's name"),
        ({"client_info": {"type": "mqtt"}}, "is not the certificate's name"),
        ({"client_tls": {}}, "without a verified certificate"),
        ({"client_tls": {"certs": ["x"], "verified_chains": []}}, "without a verified"),
        ({"client_tls": {"verified_chains": [["junk"]]}}, "without a verified"),
        ({}, "may not connect"),
    ],
)
def test_what_is_refused_says_why(
    callout: Callout,
    tmp_path: Path,
    changes: dict[str, Any],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pki, server = Pki(tmp_path / "pki"), load_issuer(_folder(tmp_path / "server"))
    with caplog.at_level(logging.WARNING):
        reply = answered(callout, question(pki, server, **changes))
    assert "jwt" not in reply
    assert why in reply["error"]
    assert why in caplog.text


def test_who_tries_for_ever_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for second in range(50):
        refusals.tell("no", 1000.0 + second)
    assert len(caplog.records) == 20
    refusals.tell("again", 1060.0)
    assert caplog.messages[-2:] == ["30 more logins were refused", "a login was refused: again"]


@pytest.mark.parametrize("asked", [b"", b"a.b.c", b"x" * 70_000, b"e30.e30.e30"])
def test_what_no_server_asked_is_not_answered(callout: Callout, asked: bytes) -> None:
    with pytest.raises(RefusedError, match="a question"):
        callout.answer(asked)


def test_a_question_signed_by_another_than_its_server_is_not_answered(
    callout: Callout, tmp_path: Path
) -> None:
    pki, server = Pki(tmp_path / "pki"), load_issuer(_folder(tmp_path / "server"))
    with pytest.raises(RefusedError, match="not signed"):
        callout.answer(question(pki, server, server_id={"id": "N-another"}))
    head, body, signature = question(pki, server).split(b".")
    with pytest.raises(RefusedError):
        callout.answer(b".".join((head, body, signature[::-1])))


def test_the_issuer_is_made_once_and_kept_from_others(tmp_path: Path) -> None:
    first, second = load_issuer(tmp_path), load_issuer(tmp_path)
    assert first.public == second.public
    assert (len(first.public), first.public[0]) == (56, "A")
    assert (tmp_path / "callout.seed").stat().st_mode & 0o777 == 0o600
    (tmp_path / "callout.seed").write_bytes(b"short")
    with pytest.raises(TrustError, match="expected 32 bytes"):
        load_issuer(tmp_path)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
