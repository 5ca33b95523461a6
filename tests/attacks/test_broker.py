"""Attacks of one device on another through the broker: what counts is what is delivered.

Every test runs against both brokers, with the configuration that Skerry generates. A fence, a
message that may pass and is sent last, proves that whatever was to arrive before it would have.
"""

import ssl
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.access import BROKEN_OFF, WELCOME, log_in
from fleet.broker_config import FLEET_USER
from fleet.tls_files import context_of
from skerry import topics
from tests.fakes.brokers import HOST, Mosquitto, NatsServer, Server, context_for
from tests.fakes.mqtt_client import NOT_AUTHORIZED, REFUSED_FILTER, MqttClient
from tests.fakes.mqtt_device import until
from tests.fakes.pki import SERVER, Pki
from tests.fakes.reporter import FLEET, SHARDS

A, B = "dev-01", "dev-02"
SECOND = timedelta(seconds=1)
Connect = Callable[..., MqttClient]


@pytest.fixture(
    params=[
        pytest.param(NatsServer, id="nats"),
        pytest.param(Mosquitto, id="mosquitto", marks=pytest.mark.mosquitto),
    ]
)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    started: Server = request.param(tmp_path / "broker")
    started.accept(A, B)
    yield started
    started.stop()


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    made: list[MqttClient] = []

    def connect(certificate: str, client_id: str = "", **options: object) -> MqttClient:
        context = (
            server.pki.context(FLEET_USER)
            if certificate == FLEET_USER
            else context_for(server, certificate)
        )
        client = MqttClient(server.port, context, client_id or certificate, **options)  # type: ignore[arg-type]
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()


def down(device: str, kind: str = "cmd") -> str:
    return topics.down(FLEET, device, kind)


def up(device: str) -> str:
    return topics.up(FLEET, SHARDS, device, "telemetry")


FILTERS = [
    down(A),
    topics.down_filter(FLEET, A),
    f"skerry/v1/{FLEET}/dn/+/#",
    f"skerry/v1/{FLEET}/dn/+/cmd",
    f"skerry/v1/{FLEET}/+/{A}/#",
    f"skerry/v1/{FLEET}/#",
    "skerry/#",
    "#",
    "+/+/+/+/+/+",
    f"skerry/v1/{FLEET}/up/#",
    up(A),
    up(B),
    f"skerry/v1/{FLEET}/presence/#",
    "$SYS/#",
    "$JS/#",
    "$MQTT/#",
    f"$share/group/{topics.down_filter(FLEET, A)}",
]


def test_row_29_subscribing_to_another_devices_topics(server: Server, connect: Connect) -> None:
    fleet, a, b = connect(FLEET_USER), connect(A), connect(B)
    b_own = topics.down_filter(FLEET, B)
    codes = b.subscribe(*FILTERS)
    if isinstance(server, NatsServer):  # Mosquitto grants what it will not deliver
        assert set(codes) == {REFUSED_FILTER}
    assert (a.subscribe(topics.down_filter(FLEET, A)), b.subscribe(b_own)) == ([1], [1])
    fleet.publish(down(A, "desired"), b"for a, retained", retain=True)
    fleet.publish(down(A), b"for a")
    a.publish(up(A), b"from a")
    a.publish(topics.presence(FLEET, A), b"a is here", retain=True)
    until("what the fleet tells a", lambda: len(a.heard) == 2)
    b.subscribe(*FILTERS)  # now for what is retained
    fleet.publish(down(B), b"for b")
    until("what the fleet tells b", lambda: b"for b" in b.payloads())
    assert set(b.heard) == {(down(B), b"for b")}


FORBIDDEN = [
    down(A),
    down(A, "desired"),
    down(A, "ack"),
    down(B, "desired"),
    topics.policy(FLEET),
    up(A),
    topics.presence(FLEET, A),
    f"skerry/v1/other/up/{topics.shard_of(B, SHARDS)}/{B}/telemetry",
    f"skerry/v1/{FLEET}/pub/{A}/predictions",
    f"skerry/v1/{FLEET}/anything",
]
# what only nats-server has or can tell apart
FORBIDDEN_NATS = [
    f"skerry/v1/{FLEET}/up/ff/{B}/telemetry",
    "$JS/API/STREAM/DELETE/$MQTT_rmsgs",
    "$SYS/REQ/SERVER/PING",
    f"$MQTT/rmsgs/skerry/v1/{FLEET}/dn/{A}/desired",
]


def test_row_29_publishing_on_another_devices_topics(server: Server, connect: Connect) -> None:
    fleet, a, b = connect(FLEET_USER), connect(A), connect(B)
    fleet.subscribe("skerry/#")
    a.subscribe(topics.down_filter(FLEET, A), f"skerry/v1/{FLEET}/dn/all/#")
    fleet.publish(down(A, "desired"), b"true", retain=True)
    until("the true word", lambda: a.payloads() == [b"true"])
    for topic in FORBIDDEN + (FORBIDDEN_NATS if isinstance(server, NatsServer) else []):
        for retain in (False, True):
            b.publish(topic, b"forged", retain=retain)
    b.publish(down(A, "desired"), b"", retain=True)  # would clear what is retained
    b.publish(up(B), b"fence")
    until("the fence", lambda: b"fence" in fleet.payloads())
    fleet.publish(down(A), b"fence")
    until("the fence at a", lambda: b"fence" in a.payloads())
    assert a.payloads() == [b"true", b"fence"]
    assert b"forged" not in fleet.payloads()
    a.close()
    again = connect(A)
    again.subscribe(topics.down_filter(FLEET, A))
    until("what is retained", lambda: again.payloads() == [b"true"])
    if isinstance(server, NatsServer):
        assert "Publish Violation" in server.log.read_text()


@pytest.mark.parametrize("topic", [down(A), up(A), topics.presence(FLEET, A), topics.policy(FLEET)])
def test_row_30_a_will_on_another_devices_topic(
    server: Server, connect: Connect, topic: str
) -> None:
    fleet, a = connect(FLEET_USER), connect(A)
    fleet.subscribe("skerry/#")
    a.subscribe(topics.down_filter(FLEET, A), f"skerry/v1/{FLEET}/dn/all/#")
    own = topics.presence(FLEET, B)
    connect(B, will=topic).break_off()
    time.sleep(0.2)  # before a second connection under this name takes the session over
    connect(B, will=own).break_off()
    until("the will that may be", lambda: (own, b"will") in fleet.heard)
    fleet.publish(down(A), b"fence")
    until("the fence", lambda: b"fence" in a.payloads())
    assert (a.payloads(), fleet.payloads().count(b"will")) == ([b"fence"], 1)


def test_row_31_connecting_with_the_client_id_of_another_device(
    server: Server, connect: Connect
) -> None:
    fleet = connect(FLEET_USER)
    a = connect(A, clean=False)
    assert not a.session_present
    a.subscribe(topics.down_filter(FLEET, A))
    thief = connect(B, A, clean=True)
    # Mosquitto names every connection by its certificate, whatever it calls itself
    code = NOT_AUTHORIZED if isinstance(server, NatsServer) else WELCOME
    assert thief.code == code
    connect(B, A, username=A)
    fleet.publish(down(A), b"one")
    until("what is for a", lambda: a.payloads() == [b"one"])
    assert a.connected
    assert b"one" not in thief.payloads()


def test_row_31_wiping_the_session_of_a_device_that_is_away(
    server: Server, connect: Connect
) -> None:
    fleet = connect(FLEET_USER)
    a = connect(A, clean=False)
    a.subscribe(topics.down_filter(FLEET, A))
    a.close()
    fleet.subscribe(down(A))
    fleet.publish(down(A), b"waits")
    until("the broker has it", lambda: fleet.payloads() == [b"waits"])
    connect(B, A, clean=True).close()
    connect(B, A, clean=True, username=A).close()
    back = connect(A, clean=False)
    until("what waited", lambda: back.payloads() == [b"waits"])
    assert back.session_present


def test_row_32_certificates_that_are_not_good(server: Server, tmp_path: Path) -> None:
    pki, foreign = server.pki, Pki(tmp_path / "foreign")
    stranger = foreign.client(B)
    chosen = ssl.create_default_context(cafile=str(pki.ca))
    chosen.load_cert_chain(str(stranger.certificate), str(stranger.key))
    bad = {
        "none": ssl.create_default_context(cafile=str(pki.ca)),
        "foreign": chosen,
        "expired": context_of(pki.client(B, file="old", start=-9 * SECOND, end=-SECOND)),
        "early": context_of(pki.client(B, file="early", start=99 * SECOND, end=999 * SECOND)),
        "server": context_of(pki.client(B, file="wrong", usage=SERVER)),
    }
    codes = {name: log_in(HOST, server.port, context, B) for name, context in bad.items()}
    assert codes == dict.fromkeys(bad, BROKEN_OFF)
    assert log_in(HOST, server.port, context_for(server, B), B) == WELCOME


def test_row_32_a_revoked_certificate(server: Server) -> None:
    contexts = {device: context_for(server, device) for device in (A, B)}
    assert log_in(HOST, server.port, contexts[B], B) == WELCOME
    server.revoke(B)
    refused = NOT_AUTHORIZED if isinstance(server, NatsServer) else BROKEN_OFF
    until("refusal", lambda: log_in(HOST, server.port, contexts[B], B) == refused, 1.0)
    assert log_in(HOST, server.port, contexts[A], A) == WELCOME


def test_row_33_revoked_while_connected(server: Server, connect: Connect) -> None:
    fleet, a, b = connect(FLEET_USER), connect(A), connect(B)
    fleet.subscribe(f"skerry/v1/{FLEET}/up/#")
    for device, client in ((A, a), (B, b)):
        client.subscribe(topics.down_filter(FLEET, device))
        client.publish(up(device), f"{device} before".encode())
    until("both before", lambda: len(fleet.heard) == 2)
    began = time.monotonic()
    server.revoke(B)
    if isinstance(server, NatsServer):
        until("the cut", lambda: not b.connected, 1.0)
        assert time.monotonic() - began < 1.0
    else:
        time.sleep(0.9)  # it stays connected, and is neither heard nor told anything
    if b.connected:
        b.publish(up(B), b"after")
    fleet.publish(down(B), b"secret")
    a.publish(up(A), b"fence")
    fleet.publish(down(A), b"fence")
    until("both fences", lambda: b"fence" in a.payloads() and b"fence" in fleet.payloads())
    assert b"after" not in fleet.payloads()
    assert b.payloads() == []
    assert log_in(HOST, server.port, context_for(server, B), B) != WELCOME
    assert (a.connected, fleet.connected) == (True, True)
