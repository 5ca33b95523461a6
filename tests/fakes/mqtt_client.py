"""A bare MQTT client over TLS that remembers everything it is told."""

import socket
import ssl
import threading
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.fakes.mqtt_device import until

WELCOME = 0
NOT_AUTHORIZED = 5
REFUSED_FILTER = 128


class MqttClient:
    """One connection; it is not made again when it breaks."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        client_id: str,
        *,
        clean: bool = True,
        username: str = "",
        will: str = "",
    ) -> None:
        self.code: int | None = None  # of CONNACK
        self.session_present = False
        self.heard: list[tuple[str, bytes]] = []
        self._codes: dict[int, list[int]] = {}
        self._gone = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=clean,
            protocol=MQTTProtocolVersion.MQTTv311, reconnect_on_failure=False,
        )  # fmt: skip
        self._client.tls_set_context(context)
        if username:
            self._client.username_pw_set(username, "guess")
        if will:
            self._client.will_set(will, b"will", qos=1, retain=False)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._gone.set()
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = lambda _c, _u, m: self.heard.append((m.topic, bytes(m.payload)))
        self._client.connect("127.0.0.1", port, 15)
        self._client.loop_start()
        until("an answer to CONNECT", lambda: self.code is not None or self._gone.is_set())

    def _on_connect(self, _c: Any, _u: Any, flags: Any, reason: Any, _p: Any) -> None:
        # paho tells the words of MQTT 5 for the codes of MQTT 3.1.1
        words = {"Success": WELCOME, "Not authorized": NOT_AUTHORIZED}
        self.session_present = flags.session_present
        self.code = words.get(str(reason), reason.value)

    def _on_subscribe(self, _c: Any, _u: Any, mid: int, codes: Any, _p: Any) -> None:
        self._codes[mid] = [code.value for code in codes]

    @property
    def connected(self) -> bool:
        return self.code == WELCOME and not self._gone.is_set()

    def subscribe(self, *filters: str) -> list[int]:
        """Subscribe one after another, and return the codes of the SUBACKs."""
        codes = []
        for name in filters:
            _, mid = self._client.subscribe(name, qos=1)
            assert mid is not None
            until(f"a SUBACK for {name}", lambda mid=mid: mid in self._codes)  # type: ignore[misc]
            codes += self._codes[mid]
        return codes

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish with QoS 1; whether the broker takes it is not asked."""
        self._client.publish(topic, payload, qos=1, retain=retain)

    def payloads(self) -> list[bytes]:
        return [payload for _, payload in list(self.heard)]

    def break_off(self) -> None:
        """End the connection without a word, so that the will is sent."""
        connection: Any = self._client.socket()
        connection.shutdown(socket.SHUT_RDWR)  # close() would wait for the thread that selects
        until("the end", self._gone.is_set)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
