"""HTTP/1.1 on listening sockets, TCP or Unix: who is answered when, bounded everywhere.

Connections read whole requests, which wait in one line; one is answered between two looks at
the sockets. What arrives while the line is full is answered 429, with the seconds after which
it should be shorter. An answer may be made in another thread, and is then sent when it is there.

Draining answers what is open with ``Connection: close``, and closes a connection that
has sent no byte of a request once it was idle for a moment.
"""

import logging
import socket
import zlib
from collections.abc import Callable, Sequence
from typing import Final

from agent.connection import Connection
from agent.http_types import Limits, Load, Request, Response, error_response
from agent.loop import Loop
from skerry.errors import SkerryError

__all__ = ["HttpError", "HttpServer"]

MAX_ACCEPTS: Final = 16  # at one look
ACCEPT_PAUSE_S: Final = 0.5  # where no descriptor is left
DRAIN_IDLE_S: Final = 1.0
DRAIN_STEP_S: Final = 0.05
_LOG: Final = logging.getLogger(__name__)


class HttpError(SkerryError):
    """A refusal with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Handler = Callable[[Request], Response | None]


class HttpServer:
    """Answers requests on listening sockets.

    Args:
        loop: waits for the sockets.
        handler: called once per request, in the loop's thread; where it returns None, it calls
            `Request.reply` later.
        limits: what peers may take.
        flush: called after the handler, before the sockets are looked at again.
    """

    def __init__(
        self, loop: Loop, handler: Handler, limits: Limits, flush: Callable[[], None] = lambda: None
    ) -> None:
        self._loop = loop
        self._handler = handler
        self._flush = flush
        self.load: Final = Load(limits)
        self._listeners: list[socket.socket] = []
        loop.set_work(self._work)

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Begin to accept connections."""
        for listener in listeners:
            listener.setblocking(False)
            self._listen(listener)

    def drain(self, timeout_s: float, done: Callable[[], None]) -> None:
        """Accept no more, answer what is open, and call back when every connection is closed."""
        self.load.draining = True
        for listener in self._listeners:
            self._loop.forget(listener.fileno())
            listener.close()  # others hold it, or who is started next may have the port at once
        end = self._loop.time() + timeout_s
        for connection in self.load.connections:
            connection.hurry(self._loop.time() + DRAIN_IDLE_S)

        def step() -> None:
            self.expire()
            if self.load.connections and self._loop.time() < end:
                self._loop.later(DRAIN_STEP_S, step)
                return
            for connection in list(self.load.connections):
                connection.close()
            done()

        step()

    def expire(self) -> None:
        """End every connection whose deadline has passed; to be called now and then."""
        now = self._loop.time()
        for connection in list(self.load.connections):
            if connection.deadline < now:
                connection.expire()

    def _listen(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        self._loop.watch(listener.fileno(), lambda _: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor, or no memory, is left
                _LOG.warning("cannot accept a connection: %s", error)
                self._loop.forget(listener.fileno())
                self._listeners.remove(listener)
                self._loop.later(ACCEPT_PAUSE_S, lambda: self._listen_again(listener))
                return
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self._loop, sock, self.load)
            if self.load.draining:
                connection.hurry(self._loop.time() + DRAIN_IDLE_S)

    def _listen_again(self, listener: socket.socket) -> None:
        if not self.load.draining:
            self._listen(listener)

    def _work(self) -> bool:
        """Answer one request, or hand over several; then the sockets are looked at again."""
        turns = self.load.turns
        while turns:
            connection = turns.popleft()
            request = connection.take()
            if request is None:
                continue
            response = self._handle(request)
            if response is not None:
                request.reply(response)
                break
        self._flush()
        return bool(turns)

    def _handle(self, request: Request) -> Response | None:
        try:
            encoding = request.headers.get(b"content-encoding")
            if encoding is not None:
                body = _inflate(request.body, encoding, self.load.limits.body_bytes)
                self.load.held_bytes += len(body) - len(request.body)
                request.body = body
            return self._handler(request)
        except HttpError as error:
            return error_response(error.status, str(error))
        except Exception:
            _LOG.exception("request %s %r failed", request.method, request.target[:200])
            return error_response(500, "internal error; see the agent's log")


def _inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    if encoding == b"identity":
        return body
    if encoding not in (b"gzip", b"deflate"):
        raise HttpError(415, f"expected gzip or deflate, got {encoding[:40]!r}")
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip and zlib, told apart by their header
    try:
        data = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise HttpError(400, f"expected a {encoding.decode()} body: {error}") from None
    if len(data) > limit:
        raise HttpError(413, f"expected a body of at most {limit} bytes, decompressed")
    if not decoder.eof:
        raise HttpError(400, f"the {encoding.decode()} body ends too early")
    return data
