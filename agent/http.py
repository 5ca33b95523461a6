"""HTTP/1.1 on a listening socket: an asyncio protocol over httptools, bounded everywhere.

Bytes become whole requests, requests wait in one queue, and the event loop answers
one of them between two looks at the sockets. What arrives while the queue is full is
answered 429. A connection has a deadline for whatever it is in the middle of.

Draining answers what is open with ``Connection: close``, and closes a connection that
has sent no byte of a request once it was idle for a moment.
"""

import asyncio
import logging
import math
import socket
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import Final, cast

import httptools
import msgspec

from skerry.errors import SkerryError

__all__ = ["HttpError", "HttpServer", "Limits", "Request", "Response", "error_response"]

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 64
MAX_PIPELINED: Final = 16
IDLE_S: Final = 120.0  # between two requests
HEAD_S: Final = 10.0  # from a request's first byte to the end of its headers
BODY_S: Final = 60.0
LINGER_S: Final = 2.0  # for a peer to read a refusal, before the connection goes
BACKLOG: Final = 256
DRAIN_IDLE_S: Final = 1.0
DRAIN_STEP_S: Final = 0.05
_LOG: Final = logging.getLogger(__name__)
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Limits:
    """What peers may take."""

    body_bytes: int = 16 << 20
    queue: int = 128
    connections: int = 256
    held_bytes: int = 64 << 20  # of all bodies that are not answered yet


@dataclass(slots=True)
class Request:
    """A whole request; `body` is decompressed, `received` is on `perf_counter`'s clock."""

    method: str
    target: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    received: float


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back."""

    status: int
    parts: list[bytes]
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class HttpError(SkerryError):
    """A refusal with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Handler = Callable[[Request], Response]


def error_response(status: int, message: str) -> Response:
    """Return a refusal as the Open Inference Protocol has it: JSON with `error`."""
    return Response(status, [msgspec.json.encode({"error": message})])


class HttpServer:
    """Answers requests on a listening socket.

    Args:
        handler: called once per request, in the event loop.
        limits: what peers may take.
    """

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self._handler = handler
        self.limits: Final = limits
        self.connections: Final[set[_Connection]] = set()
        self.draining = False
        self.refused = 0
        self.held_bytes = 0  # of bodies that are on their way in, or wait
        self._queue: deque[tuple[_Connection, Request | Response]] = deque()
        self._waiting = 0  # requests in the queue; refusals are not among them
        self._scheduled = False
        self._server: asyncio.Server | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self, listener: socket.socket) -> None:
        """Begin to accept connections; TCP or Unix, the socket decides."""
        self._server = await self._loop.create_server(
            lambda: _Connection(self), sock=listener, backlog=BACKLOG
        )

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, answer what is open, and return when every connection is closed."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        end = self._loop.time() + timeout_s
        for connection in self.connections:
            connection.hurry(self._loop.time() + DRAIN_IDLE_S)
        while self.connections and self._loop.time() < end:
            await asyncio.sleep(DRAIN_STEP_S)
            self.expire()
        for connection in list(self.connections):
            connection.abort()

    def expire(self) -> None:
        """End every connection whose deadline has passed; to be called now and then."""
        now = self._loop.time()
        for connection in list(self.connections):
            if connection.deadline < now:
                connection.expire()

    def submit(self, connection: "_Connection", item: Request | Response) -> None:
        """Queue a request, or an answer that is already known, in its place."""
        if isinstance(item, Request):
            if self._waiting >= self.limits.queue:
                self.refused += 1
                self.held_bytes -= len(item.body)
                item = _OVERLOADED
            else:
                self._waiting += 1
        self._queue.append((connection, item))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        connection, item = self._queue.popleft()
        if isinstance(item, Request):
            self._waiting -= 1
            self.held_bytes -= len(item.body)
            if not connection.gone:
                connection.answer(self._handle(item), head_only=item.method == "HEAD")
        else:
            connection.answer(item)
        # one at a time, so that sockets are looked at in between and the queue is seen as it is
        if self._queue:
            self._loop.call_soon(self._work)
        else:
            self._scheduled = False

    def _handle(self, request: Request) -> Response:
        try:
            encoding = request.headers.get(b"content-encoding")
            if encoding is not None:
                request.body = _inflate(request.body, encoding, self.limits.body_bytes)
            return self._handler(request)
        except HttpError as error:
            return error_response(error.status, str(error))
        except Exception:
            _LOG.exception("request %s %r failed", request.method, request.target[:200])
            return error_response(500, "internal error; see the agent's log")


class _Connection(asyncio.Protocol):
    """One connection: its parser, its place in the conversation, its deadline."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._in_message = self._in_head = False
        self._refused = False  # whatever still arrives is thrown away
        self._keep_alive = True
        self._pending = 0
        self._head_bytes = self._more_head_bytes = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self.gone = False
        self.deadline = self._loop.time() + IDLE_S

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connections = self._server.connections
        full = len(connections) >= self._server.limits.connections
        connections.add(self)
        if self._server.draining:
            self.hurry(self._loop.time() + DRAIN_IDLE_S)
        if full:
            self._refuse(429, "too many connections; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._server.connections.discard(self)
        self._drop_body()

    def eof_received(self) -> bool:
        return self._pending > 0  # a peer may stop sending and still read its answer

    def pause_writing(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        assert self._transport is not None
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        began_before = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._keep_alive = False  # the request itself is answered; no other protocol follows
            self._refused = True
        except httptools.HttpParserError as error:
            self._refuse(400, f"expected an HTTP/1.1 request: {error}")
        if began_before and self._in_head:
            self._more_head_bytes += len(data)
            if self._more_head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"expected at most {MAX_HEAD_BYTES} bytes of headers")

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._in_message = self._in_head = True
        self._head_bytes = self._more_head_bytes = self._body_bytes = 0
        self._target = b""
        self._headers = {}
        self._body = []
        self.deadline = self._loop.time() + HEAD_S

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.deadline = self._loop.time() + BODY_S
        length = self._headers.get(b"content-length", b"0")
        # llhttp has refused a length that is no number
        if len(length) > 18 or int(length) > self._server.limits.body_bytes:
            self._refuse(413, f"expected a body of at most {self._server.limits.body_bytes} bytes")
        elif b"expect" in self._headers and not self._refused and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._body.append(body)
        self._body_bytes += len(body)
        self._server.held_bytes += len(body)
        limits = self._server.limits
        if self._body_bytes > limits.body_bytes:
            self._refuse(413, f"expected a body of at most {limits.body_bytes} bytes")
        elif self._server.held_bytes > limits.held_bytes:
            self._refuse(429, "too many bytes are waiting; try again later")

    def on_message_complete(self) -> None:
        self._in_message = False
        if self._refused:
            return
        if self._pending >= MAX_PIPELINED:
            self._refuse(429, f"expected at most {MAX_PIPELINED} requests ahead of their answers")
            return
        self._keep_alive = self._keep_alive and self._parser.should_keep_alive()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        method = self._parser.get_method().decode("ascii", "replace")
        self._pending += 1
        self.deadline = math.inf  # it is our turn
        request = Request(method, self._target, self._headers, body, perf_counter())
        self._body, self._body_bytes = [], 0  # the queue holds it now
        self._server.submit(self, request)

    # what the server asks for

    def answer(self, response: Response, *, head_only: bool = False) -> None:
        """Send a response; close if it was the last one."""
        self._pending -= 1
        transport = self._transport
        if self.gone or transport is None:
            return
        last = self._pending == 0 and (
            self._refused or self._server.draining or not self._keep_alive
        )
        transport.write(_encode(response, last=last, head_only=head_only))
        if not last:
            if not self._in_message and not self._pending:
                self.deadline = self._loop.time() + IDLE_S
        elif self._refused:
            # closing with unread bytes would reset the connection under the answer
            if transport.can_write_eof():
                transport.write_eof()
            self.deadline = self._loop.time() + LINGER_S
        else:
            transport.close()

    def hurry(self, deadline: float) -> None:
        """Bring the deadline forward where the peer is in the middle of nothing."""
        if not self._in_message and not self._pending:
            self.deadline = min(self.deadline, deadline)

    def expire(self) -> None:
        """End the connection: with a word to a peer that is too slow, silently if it is idle."""
        if self._in_message and not self._refused:
            self._refuse(408, "expected the rest of the request sooner")
        elif self._transport is not None and not self._transport.get_write_buffer_size():
            self._transport.close()
        else:
            self.abort()  # it does not read its answer

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) > MAX_HEADERS:
            self._refuse(
                431, f"expected at most {MAX_HEADERS} headers of {MAX_HEAD_BYTES} bytes in all"
            )

    def _drop_body(self) -> None:
        self._server.held_bytes -= self._body_bytes
        self._body, self._body_bytes = [], 0

    def _refuse(self, status: int, message: str) -> None:
        if not self._refused:
            self._refused = True
            self._drop_body()
            self._pending += 1
            self.deadline = math.inf
            self._server.submit(self, error_response(status, message))


_OVERLOADED: Final = Response(
    429,
    [msgspec.json.encode({"error": "too many requests are waiting; try again later"})],
    headers={"Retry-After": "1"},
)


def _encode(response: Response, *, last: bool, head_only: bool) -> bytes:
    length = sum(map(len, response.parts))
    head = (
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\n"
        f"Content-Type: {response.content_type}\r\nContent-Length: {length}\r\n"
    )
    for name, value in response.headers.items():
        head += f"{name}: {value}\r\n"
    head += "Connection: close\r\n\r\n" if last else "\r\n"
    return b"".join((head.encode("latin-1"), *(() if head_only else response.parts)))


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
