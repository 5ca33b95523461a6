"""One thread that drives a few MQTT connections, each of which reconnects with jitter.

paho's own loops use select(), which fails in a process with more than 1,024 open files,
and reconnect without jitter. This one waits on epoll, and everything that touches a
client runs in its thread: `post` is the only way in from outside.
"""

import contextlib
import logging
import random
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

__all__ = ["Link", "MqttLoop"]

log = logging.getLogger(__name__)

KEEPALIVE_S: Final = 15
CONNECT_TIMEOUT_S: Final = 3.0
BACKOFF_BASE_S: Final = 0.1
BACKOFF_CAP_S: Final = 5.0
TICK_S: Final = 0.5  # keep-alives and reconnects are looked after so often
SUCCESS: Final = MQTTErrorCode.MQTT_ERR_SUCCESS

OnMessage = Callable[["Link", paho.MQTTMessage], None]


class Link:
    """One MQTT connection: a session of its own, made again whenever it breaks.

    `generation` counts connections: packet ids of an earlier one mean nothing now.
    Everything but the properties belongs to the loop's thread.
    """

    def __init__(
        self,
        client_id: str,
        *,
        subscribe: str | None = None,
        on_message: OnMessage | None = None,
        on_ready: Callable[[], None] | None = None,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Describe a connection.

        Args:
            client_id: with a subscription it names a persistent session.
            subscribe: a topic filter, QoS 1, acknowledged by `ack` alone.
            on_message: called with each message.
            on_ready: called each time the connection stands.
            on_sent: called for each message that the broker took.
        """
        self.client_id: Final = client_id
        self.generation = 0
        self.ready = False
        self._filter = subscribe
        self._on_message = on_message
        self._on_ready = on_ready
        self._on_sent = on_sent
        self._failures = 0
        self._retry_at = 0.0
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=subscribe is None,
            protocol=MQTTProtocolVersion.MQTTv311,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.max_inflight_messages_set(1024)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._received
        self._client.on_publish = self._published

    def secure(self, context: ssl.SSLContext) -> None:
        """Speak TLS, in every connection from now on."""
        self._client.tls_set_context(context)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Send a message with QoS 1; it is sent again if the connection breaks."""
        self._client.publish(topic, payload, qos=1, retain=retain)

    def ack(self, generation: int, mid: int) -> None:
        """Acknowledge a message to the broker, unless it came over an earlier connection.

        A message of QoS 0 has the packet id 0, and a broker breaks with who acknowledges that.
        """
        if generation == self.generation and mid != 0:
            self._client.ack(mid, 1)

    def close(self) -> None:
        """End the connection; a persistent session stays at the broker."""
        self.ready = False
        self._client.disconnect()
        self._client.loop_write()

    def drop(self) -> None:
        """Break the connection, so that the broker delivers again what is not acknowledged."""
        connection: Any = self._client.socket()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def socket(self) -> Any:
        """Return the socket, None while there is no connection."""
        return self._client.socket()

    def wants_write(self) -> bool:
        """Tell whether there is something to write."""
        return bool(self._client.want_write())

    def turn(self, readable: bool, writable: bool) -> None:
        """Read and write what is possible."""
        if readable:
            self._client.loop_read()
            # TLS may hold bytes back that make no socket readable
            while getattr(self._client.socket(), "pending", int)():
                self._client.loop_read()
        if writable and self._client.socket() is not None:
            self._client.loop_write()

    def tend(self, host: str, port: int, now: float) -> None:
        """Keep the connection alive, or make it again when it is time.

        Args:
            host: of the broker.
            port: of the broker.
            now: monotonic seconds.
        """
        if self._client.socket() is not None:
            self._client.loop_misc()
        elif now >= self._retry_at:
            try:
                self._client.connect(host, port, KEEPALIVE_S)
            except OSError as error:  # a TLS failure is one, too
                self._failed(f"{error}", now)

    def _failed(self, why: str, now: float) -> None:
        self._failures += 1
        if self._failures == 1:
            log.warning("%s: no connection to the broker: %s; trying on", self.client_id, why)
        ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(self._failures, 16))
        self._retry_at = now + random.uniform(0.0, ceiling)

    def _connected(self, _c: Any, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        if reason.is_failure:
            self._failed(str(reason), time.monotonic())
            return
        if self._failures:
            log.info("%s: connected again", self.client_id)
        self._failures = 0
        self.generation += 1
        self.ready = True
        if self._filter is not None:
            self._client.subscribe(self._filter, qos=1)
        if self._on_ready is not None:
            self._on_ready()

    def _disconnected(self, _c: Any, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        was_ready, self.ready = self.ready, False
        self.generation += 1
        if was_ready:
            self._failed(f"it broke ({reason})", time.monotonic())

    def _received(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        if self._on_message is not None:
            self._on_message(self, message)

    def _published(self, _c: Any, _u: Any, _mid: int, _r: Any, _p: Any) -> None:
        if self._on_sent is not None:
            self._on_sent()


class MqttLoop:
    """The thread that drives the links.

    Args:
        host: of the broker; its certificate must name it.
        port: of the broker.
        links: the connections.
        context: the fleet's client certificate, and whom it trusts.
    """

    def __init__(self, host: str, port: int, links: list[Link], context: ssl.SSLContext) -> None:
        for link in links:
            link.secure(context)
        self._host, self._port, self._links = host, port, links
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-mqtt", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def post(self, work: Callable[[], None]) -> None:
        """Have something done in the loop's thread, soon and in order."""
        self._posted.append(work)
        with contextlib.suppress(OSError):  # full: it is being woken already
            self._wake_out.send(b"\0")

    def stop(self) -> None:
        """End every connection and the thread; a second time changes nothing."""
        if self._thread.is_alive():
            self._stop.set()
            self.post(lambda: None)
            self._thread.join(5.0)
        self._wake_in.close()
        self._wake_out.close()

    def _run(self) -> None:
        next_tick = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= next_tick or any(link.socket() is None for link in self._links):
                next_tick = now + TICK_S
                for link in self._links:
                    self._guarded(link.tend, self._host, self._port, now)
            self._wait(0.02 if any(link.socket() is None for link in self._links) else TICK_S)
        self._wait(0.0)  # what was posted last is done
        for link in self._links:
            self._guarded(link.close)

    def _wait(self, timeout_s: float) -> None:
        # a handful of sockets, some of them new each time: registering anew is cheap and safe
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_in, selectors.EVENT_READ)
            for link in self._links:
                connection = link.socket()
                if connection is not None:
                    writes = selectors.EVENT_WRITE if link.wants_write() else 0
                    selector.register(connection, selectors.EVENT_READ | writes, link)
            events = selector.select(timeout_s)
        for key, mask in events:
            link = key.data
            if link is not None:
                readable, writable = mask & selectors.EVENT_READ, mask & selectors.EVENT_WRITE
                self._guarded(link.turn, bool(readable), bool(writable))
        with contextlib.suppress(OSError):
            while self._wake_in.recv(4096):
                pass
        while self._posted:
            self._guarded(self._posted.popleft())

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        # one bad message must not end the thread that carries all the others
        try:
            work(*arguments)
        except Exception:
            log.exception("unexpected error in the MQTT loop")
