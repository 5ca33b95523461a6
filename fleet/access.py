"""Who may use the embedded broker: asked at each login, or named in a file for old servers.

`AskedAccess` answers the broker's questions over two connections, so that one may fail, and ends
live connections by order. `ListedAccess` keeps the file of names as the registry has it.
"""

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from typing import Final, Protocol

from sqlalchemy import select

from fleet.broker import Broker
from fleet.broker_config import AUTH_USER, SYSTEM_USER
from fleet.callout import SELF_TEST_USER, SUBJECT, Callout
from fleet.database import Database
from fleet.nats import Cutter, ServiceClient
from fleet.schema import devices
from skerry.errors import UnreachableError
from skerry.states import DeviceState

__all__ = ["Access", "AskedAccess", "ListedAccess", "accepted_devices", "log_in"]

log = logging.getLogger(__name__)

RESPONDERS: Final = 2
READY_TIMEOUT_S: Final = 10.0
LOGIN_TIMEOUT_S: Final = 5.0
LOOK_EVERY_S: Final = 1.0
WELCOME: Final = 0  # return code of CONNACK
BROKEN_OFF: Final = -1


class Access(Protocol):
    """Lets devices in, and puts them out."""

    def start(self) -> None:
        """Begin, once the broker runs.

        Raises:
            UnreachableError: logins do not work.
        """
        ...

    @property
    def ready(self) -> bool:
        """Whether devices can log in."""
        ...

    def cut(self, device: str) -> None:
        """End a device's connection, which may not connect any more; returns at once."""
        ...

    def stop(self) -> None:
        """End."""
        ...


class AskedAccess:
    """Answers each login.

    Args:
        broker: is running when `start` is called.
        callout: answers.
        context: with the certificate of `SELF_TEST_USER`.
    """

    def __init__(self, broker: Broker, callout: Callout, context: ssl.SSLContext) -> None:
        self._broker, self._context = broker, context
        port, password = broker.settings.service_port, broker.settings.password
        self.responders: Final = tuple(
            ServiceClient(port, AUTH_USER, password, subject=SUBJECT, answer=callout.answer)
            for _ in range(RESPONDERS)
        )
        self._system = ServiceClient(port, SYSTEM_USER, password)
        self._cutter = Cutter(self._system)

    def start(self) -> None:
        """Answer from now on, and check that the broker asks and listens.

        Raises:
            UnreachableError: it does not; the message says what it takes.
        """
        clients = (*self.responders, self._system)
        for client in clients:
            client.start()
        settings = self._broker.settings
        if not all(client.wait_connected(READY_TIMEOUT_S) for client in clients):
            raise UnreachableError(
                f"expected the broker's service port {settings.service_port} to take the fleet's "
                f"connections within {READY_TIMEOUT_S:g} s; see {settings.directory / 'nats.log'}"
            )
        host, port = settings.reachable, settings.mqtt_port
        itself = log_in(host, port, self._context, SELF_TEST_USER)
        another = log_in(host, port, self._context, f"{SELF_TEST_USER}-else")
        if itself != WELCOME or another == WELCOME:
            raise UnreachableError(
                "expected the broker to ask the fleet about each MQTT login, and the fleet's own "
                f"test was {'refused' if itself != WELCOME else 'let in under a false name'}; "
                "that takes nats-server 2.10 or newer: install one, set SKERRY_NATS_SERVER to it, "
                'or put broker_auth = "users" into fleet.toml'
            )

    @property
    def ready(self) -> bool:
        """Whether one that answers is connected, and who cuts, too."""
        return any(client.connected for client in self.responders) and self._system.connected

    def cut(self, device: str) -> None:
        """End a device's connection now, and once more when a login under way is over."""
        self._cutter.cut(device)

    def stop(self) -> None:
        """End the connections; nobody gets in any more."""
        for client in (*self.responders, self._system):
            client.stop()


class ListedAccess:
    """Names the accepted devices to the broker, and again whenever they change.

    Args:
        broker: is told to read its file again.
        accepted: returns the devices that may connect.
    """

    def __init__(self, broker: Broker, accepted: Callable[[], Collection[str]]) -> None:
        self._broker, self._accepted = broker, accepted
        self._known: frozenset[str] | None = None
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="fleet-access", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._update()
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the devices were named."""
        return self._known is not None

    def cut(self, device: str) -> None:
        """Name the devices anew at once; the broker ends the connection of who is not there."""
        self._wake.set()

    def stop(self) -> None:
        """End."""
        self._over = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
            try:
                self._update()
            except Exception:  # the database may be away for a while
                log.exception("the broker's users could not be written; tried again")

    def _update(self) -> None:
        accepted = frozenset(self._accepted())
        if accepted != self._known:
            self._broker.allow(accepted)
            self._known = accepted


def accepted_devices(database: Database) -> list[str]:
    """Return the devices that may connect."""
    query = select(devices.c.device).where(devices.c.state == DeviceState.ACCEPTED)
    with database.read() as connection:
        return [str(device) for device in connection.execute(query).scalars()]


def log_in(host: str, port: int, context: ssl.SSLContext, client_id: str) -> int:
    """Log in to a broker, leave, and return its answer: 0 for welcome.

    Args:
        host: of the broker.
        port: of the broker.
        context: with the certificate to show.
        client_id: of ASCII letters.
    """
    name = client_id.encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x05" + len(name).to_bytes(2, "big") + name
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), LOGIN_TIMEOUT_S) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        connection.sendall(b"\x10" + len(body).to_bytes(1, "big") + body)
        answer = connection.recv(4)
        if len(answer) == 4 and answer[0] == 0x20:
            connection.sendall(b"\xe0\x00")
            return answer[3]
    return BROKEN_OFF
