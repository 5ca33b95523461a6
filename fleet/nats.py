"""The fleet's side of nats-server's service port: a connection in a thread of its own.

It is made again whenever it breaks, for as long as the fleet runs. The login questions of the
broker come over it, and the order to end a connection goes over it.
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from fleet.broker_config import LOGIN_TIMEOUT_S
from skerry.errors import UnreachableError

__all__ = ["Cutter", "ServiceClient"]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 2
RETRY_S: Final = 0.05
PING_S: Final = 10
REQUEST_TIMEOUT_S: Final = 2.0
CUT_TRIES: Final = 10
ASK_CONNECTIONS: Final = "$SYS.REQ.SERVER.PING.CONNZ"

Answer = Callable[[bytes], bytes]


class ServiceClient:
    """One connection to the service port.

    Args:
        port: on loopback.
        user: of the configuration.
        password: of the configuration.
        subject: questions to answer; empty for none.
        answer: called in this connection's thread with each question.
    """

    def __init__(
        self, port: int, user: str, password: str, *, subject: str = "", answer: Answer = bytes
    ) -> None:
        self._port, self._user, self._password = port, user, password
        self._subject, self._answer = subject, answer
        self._client = Client()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fleet-nats-{user}", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return self._ready.is_set() and self._client.is_connected

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the first connection; tell whether it came in time."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """End the connection and the thread; a second time changes nothing."""
        if self._loop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                self._loop.call_soon_threadsafe(self._over.set)
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def submit(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done in this connection's thread.

        Raises:
            UnreachableError: there is no such thread now.
        """
        if self._loop is None or not self._thread.is_alive():
            work.close()
            raise UnreachableError("expected a connection to the broker's service port, found none")
        asyncio.run_coroutine_threadsafe(work, self._loop)

    async def request(self, subject: str, body: object) -> Any:
        """Ask the server something; in this connection's thread only.

        Raises:
            UnreachableError: no answer in time.
        """
        try:
            answer = await self._client.request(
                subject, json.dumps(body).encode(), timeout=REQUEST_TIMEOUT_S
            )
            return json.loads(answer.data)
        except (nats.errors.Error, OSError, ValueError, TimeoutError) as error:
            raise UnreachableError(f"the broker's service port does not answer: {error}") from None

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception:
            log.exception("the connection to the broker's service port ended")

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        over = asyncio.create_task(self._over.wait())
        while not over.done():
            holding = asyncio.create_task(self._hold())
            await asyncio.wait({over, holding}, return_when=asyncio.FIRST_COMPLETED)
            holding.cancel()
            with contextlib.suppress(asyncio.CancelledError, nats.errors.Error, OSError):
                await holding
            await self._client.close()
            if not over.done():
                await asyncio.sleep(RETRY_S)

    async def _hold(self) -> None:
        """Connect, and stay as long as the library makes the connection again by itself."""
        self._client, lost = Client(), asyncio.Event()

        async def closed() -> None:
            lost.set()

        await self._client.connect(
            f"nats://127.0.0.1:{self._port}",
            user=self._user,
            password=self._password,
            connect_timeout=CONNECT_TIMEOUT_S,
            reconnect_time_wait=RETRY_S,  # type: ignore[arg-type]  # it only sleeps so long
            max_reconnect_attempts=-1,
            ping_interval=PING_S,
            error_cb=_quiet,
            closed_cb=closed,
        )
        if self._subject:
            await self._client.subscribe(self._subject, queue="skerry", cb=self._asked)
            await self._client.flush()
        self._ready.set()
        await lost.wait()

    async def _asked(self, message: Msg) -> None:
        try:
            answer = self._answer(message.data)
        except Exception:
            # no answer is a refusal; the next question must find us here
            log.exception("a question of the broker could not be answered")
            return
        await message.respond(answer)


async def _quiet(error: Exception) -> None:
    log.debug("broker's service port: %s", error)


class Cutter:
    """Ends the live connections of devices that may not connect any more."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    def cut(self, device: str) -> None:
        """End a device's connection; returns at once, and never fails.

        It is ended again a moment later: a login may have been under way that was allowed before.
        """
        try:
            self._client.submit(self._cut_twice(device))
        except UnreachableError:
            log.warning("%s keeps its connection until the broker is back", device)

    async def _cut_twice(self, device: str) -> None:
        await self._cut_surely(device)
        await asyncio.sleep(LOGIN_TIMEOUT_S)
        await self._cut_surely(device)

    async def _cut_surely(self, device: str) -> None:
        for attempt in range(CUT_TRIES):
            try:
                await self._cut_now(device)
                return
            except UnreachableError as error:
                if attempt == CUT_TRIES - 1:
                    log.warning("the connection of %s could not be ended: %s", device, error)
                await asyncio.sleep(RETRY_S)

    async def _cut_now(self, device: str) -> None:
        found = await self._client.request(ASK_CONNECTIONS, {"mqtt_client": device, "auth": True})
        server = found["server"]["id"]
        for connection in found.get("data", {}).get("connections", []):
            cid = {"cid": connection["cid"]}
            answer = await self._client.request(f"$SYS.REQ.SERVER.{server}.KICK", cid)
            if "error" not in answer:
                log.info("ended the connection of %s", device)
