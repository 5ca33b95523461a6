"""A tiny device on real MQTT: paho, its own thread, keeps what it hears."""

import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleet.ingest import Message
from skerry.keys import PublicKey
from skerry.topics import down_filter
from skerry.wire import Ack, Desired, Down, DownBody, open_down
from tests.fakes.reporter import FLEET


class MqttDevice:
    """Connects under one client id with a persistent session, as an agent does."""

    def __init__(self, device: str, port: int, key: PublicKey, context: ssl.SSLContext) -> None:
        self.device, self._keys = device, {key.key_id: key}
        self.heard: list[tuple[Down, DownBody]] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=device, clean_session=False,
            protocol=MQTTProtocolVersion.MQTTv311,
        )  # fmt: skip
        self._client.tls_set_context(context)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._connected
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._received
        self._client.connect("127.0.0.1", port, 5)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def _connected(self, *_: Any) -> None:
        self._client.subscribe(down_filter(FLEET, self.device), qos=1)

    def _received(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        self.heard.append(
            open_down(message.payload, self._keys, device=self.device, now=time.time())
        )

    def send(self, message: Message, qos: int = 1) -> None:
        until("a connection", self._client.is_connected)
        self._client.publish(message.topic, message.payload, qos=qos).wait_for_publish(10)

    @property
    def upto(self) -> dict[str, int]:
        """The highest ack of each boot."""
        highest: dict[str, int] = {}
        for _, body in list(self.heard):
            if isinstance(body, Ack):
                for boot, upto in body.upto.items():
                    highest[boot] = max(upto, highest.get(boot, 0))
        return highest

    @property
    def desired(self) -> list[tuple[int, Desired]]:
        return [
            (down.version, body) for down, body in list(self.heard) if isinstance(body, Desired)
        ]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def until(what: str, holds: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.01)
