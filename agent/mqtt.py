"""The agent's connection to its broker: MQTT 3.1.1 by paho, driven by asyncio.

A connection is a fresh client on the same persistent session: what was under way is the
outbox's to send again, not the library's. After a break it comes back at random times in
a growing range (full jitter), so that a fleet does not return all at once. The broker may
lose anything; nothing here promises more than that bytes were handed over.
"""

import asyncio
import contextlib
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from agent.ask import tls_fault
from agent.threads import beside
from skerry.errors import UsageError
from skerry.io.tls import client_context

__all__ = ["BrokerAddress", "Link", "LinkConfig", "backoff_s", "parse_broker_url"]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 3.0
HANDSHAKE_TIMEOUT_S: Final = 15.0
MISC_S: Final = 1.0
STEADY_S: Final = 60.0  # a connection that held so long starts the jitter anew
MAX_QUEUED: Final = 64
_OK: Final = MQTTErrorCode.MQTT_ERR_SUCCESS


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """How to connect, and what to hear."""

    address: BrokerAddress
    client_id: str
    filters: Sequence[str]
    will_topic: str
    will: bytes
    keepalive_s: int
    base_s: float
    cap_s: float
    ca_file: Path
    cert_file: Path
    key_file: Path


def parse_broker_url(url: str) -> BrokerAddress:
    """Return the parts of ``mqtt://host:port`` or ``mqtts://host:port``.

    Raises:
        UsageError: not such an address.
    """
    parts = urlsplit(url)
    with contextlib.suppress(ValueError):
        if parts.scheme in {"mqtt", "mqtts"} and parts.hostname and not parts.path.strip("/"):
            tls = parts.scheme == "mqtts"
            return BrokerAddress(parts.hostname, parts.port or (8883 if tls else 1883), tls)
    raise UsageError(f"expected a broker address such as mqtt://host:1883, got {url[:120]!r}")


def backoff_s(attempt: int, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Return how long to wait before an attempt: anything from 0 to a doubling ceiling.

    Source: full jitter, "Exponential Backoff And Jitter", M. Brooker, 2015.
    """
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, 32)))


class Link:
    """One connection that is made again whenever it breaks.

    Args:
        config: how to connect.
        received: called with topic and payload of each message.
        connected: called when the subscriptions stand.
        rng: for the jitter.
    """

    def __init__(
        self,
        config: LinkConfig,
        *,
        received: Callable[[str, bytes], None],
        connected: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._config = config
        self._received = received
        self._connected_callback = connected
        self._rng = rng
        self._client: paho.Client | None = None
        self._broken = asyncio.Event()
        self._subscribed: int | None = None
        self._reason = ""
        self._attempt = 0
        self._wanted = False  # the break was asked for
        self.connected = False
        self.spread_s = 0.0  # the fleet asks that a return be spread over so long

    async def run(self) -> None:
        """Stay connected until cancelled."""
        failing = False
        while True:
            began = asyncio.get_running_loop().time()
            reason = await self._once()
            held = asyncio.get_running_loop().time() - began
            if held >= STEADY_S:
                self._attempt = 0
            if self._wanted:
                log.info("%s; connecting to the broker again", reason)
            elif not failing or held >= HANDSHAKE_TIMEOUT_S:
                address = self._config.address
                log.warning(
                    "no connection to the broker at %s:%d: %s; trying again",
                    address.host, address.port, reason,
                )  # fmt: skip
            failing, self._wanted = not self._wanted, False
            wait_s = backoff_s(self._attempt, self._config.base_s, self._config.cap_s, self._rng)
            if self._attempt == 0:
                wait_s += self._rng.uniform(0.0, self.spread_s)
            self._attempt += 1
            await asyncio.sleep(wait_s)

    def reconnect(self, reason: str) -> None:
        """End this connection in order, and make another, spread as after any break."""
        if self._client is not None:
            self._wanted = True
            self._break(reason)

    def proven(self) -> None:
        """The other side answers: the next break starts the jitter anew."""
        self._attempt = 0

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hand a message to the connection; False if there is none, or it is full."""
        if not self.connected or self._client is None:
            return False
        return self._client.publish(topic, payload, qos=qos, retain=retain).rc == _OK

    async def _once(self) -> str:
        """Connect once, stay as long as it holds; return why it ended."""
        loop = asyncio.get_running_loop()
        self._broken.clear()
        self._subscribed = None
        self._reason = "no answer"
        client = self._client = self._make(loop)
        keepalive = round(self._config.keepalive_s * self._rng.uniform(0.9, 1.1)) or 1
        address = self._config.address
        try:
            await beside(lambda: client.connect(address.host, address.port, keepalive), "connect")
            deadline = loop.time() + HANDSHAKE_TIMEOUT_S
            while not self._broken.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MISC_S):
                        await self._broken.wait()
                client.loop_misc()
                if not self.connected and loop.time() > deadline:
                    break
            return self._reason
        except ssl.SSLCertVerificationError as error:
            return str(tls_fault(error, f"{address.host}:{address.port}", time.time()))
        except (OSError, ValueError) as error:
            return str(error)
        finally:
            self.connected = False
            self._client = None
            self._close(client)

    def _make(self, loop: asyncio.AbstractEventLoop) -> paho.Client:
        config = self._config
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_queued_messages_set(MAX_QUEUED)
        client.will_set(config.will_topic, config.will, qos=1, retain=True)
        if config.address.tls:
            context = client_context(config.ca_file, config.cert_file, config.key_file)
            client.tls_set_context(context)
        home = threading.get_ident()

        # paho calls these from our thread, and once from the thread that connects
        def soon(sock: Any, work: Callable[[], None]) -> None:
            if threading.get_ident() == home:
                work()
            else:
                loop.call_soon_threadsafe(if_open, sock, work)

        def if_open(sock: Any, work: Callable[[], None]) -> None:
            if self._client is client and client.socket() is sock:
                work()

        def opened(_c: Any, _u: Any, sock: Any) -> None:
            soon(sock, lambda: loop.add_reader(sock, guarded, lambda: _read_all(client)))

        def closed(_c: Any, _u: Any, sock: Any) -> None:
            loop.remove_reader(sock)
            loop.remove_writer(sock)

        def writes(_c: Any, _u: Any, sock: Any) -> None:
            soon(sock, lambda: loop.add_writer(sock, guarded, client.loop_write))

        def written(_c: Any, _u: Any, sock: Any) -> None:
            loop.remove_writer(sock)

        def guarded(work: Callable[[], object]) -> None:
            try:
                work()
            except Exception:
                log.exception("unexpected error on the broker connection")
                self._break("an unexpected error")

        client.on_socket_open = opened
        client.on_socket_close = closed
        client.on_socket_register_write = writes
        client.on_socket_unregister_write = written
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(self, client: paho.Client, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        if reason.is_failure:
            self._break(f"refused: {reason}")
            return
        _, self._subscribed = client.subscribe([(name, 1) for name in self._config.filters])

    def _on_subscribe(self, client: paho.Client, _u: Any, mid: int, codes: Any, _p: Any) -> None:
        if mid != self._subscribed or self.connected:
            return
        if any(code.is_failure for code in codes):
            self._break("the broker refused a subscription")
            return
        self.connected = True
        log.info("connected to the broker")
        self._connected_callback()

    def _on_disconnect(self, _c: Any, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        # paho's word for a connection that ended without one
        self._break("it broke" if str(reason) == "Unspecified error" else str(reason))

    def _on_message(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        try:
            self._received(message.topic, bytes(message.payload))
        except Exception:
            # one bad message must not end the connection that carries all others
            log.exception("unexpected error in a message on %s", message.topic)

    def _break(self, reason: str) -> None:
        self._reason = reason
        self._broken.set()

    def _close(self, client: paho.Client) -> None:
        client.on_disconnect = None
        client.disconnect()
        client.loop_write()  # the DISCONNECT leaves, and paho closes the socket
        connection: Any = client.socket()
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection)
            asyncio.get_running_loop().remove_writer(connection)
            connection.close()


def _read_all(client: paho.Client) -> None:
    """Read what has come; TLS may hold bytes back that make no socket readable."""
    client.loop_read()
    while True:
        connection: Any = client.socket()
        pending = getattr(connection, "pending", None)
        if pending is None or not pending():
            return
        client.loop_read()
