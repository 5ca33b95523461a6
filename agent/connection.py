"""One HTTP/1.1 connection of the serve process: its parser, its turns, its deadline.

Bytes become whole requests (`httptools`); a request waits for its turn, and the next of the
same connection for the answer to the one before, so that answers leave in order. Whatever a
peer sends is bounded, and so is the time it may take in the middle of anything.
"""

import contextlib
import logging
import math
import select
import socket
from collections import deque
from time import perf_counter
from typing import Final

import httptools

from agent.http_types import Load, Request, Response, error_response
from agent.loop import READ, WRITE, Loop

__all__ = ["Connection"]

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADERS: Final = 64
MAX_PIPELINED: Final = 16
IDLE_S: Final = 120.0  # between two requests
HEAD_S: Final = 10.0  # from a request's first byte to the end of its headers
BODY_S: Final = 60.0
LINGER_S: Final = 2.0  # for a peer to read a refusal, before the connection goes
READ_BYTES: Final = 1 << 16
MAX_READS: Final = 8  # before another connection has its turn
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
_LOG: Final = logging.getLogger(__name__)


class Connection:
    """One peer.

    Args:
        loop: waits for the socket.
        sock: accepted, not blocking; it belongs to the connection from here on.
        load: of the server.
    """

    def __init__(self, loop: Loop, sock: socket.socket, load: Load) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._load = load
        self._parser = httptools.HttpRequestParser(self)
        self._in_message = self._in_head = False
        self._refused = False  # whatever still arrives is thrown away
        self._ended = False  # the peer sends no more
        self._keep_alive = True
        self._turns: deque[Request | Response] = deque()
        self._asked: Request | None = None  # whose answer is being made
        self._head_bytes = self._more_head_bytes = 0
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._out = bytearray()  # what the peer does not take yet
        self._closing = False  # after the last byte of it
        self.gone = False
        self.deadline = loop.time() + IDLE_S
        full = len(load.connections) >= load.limits.connections
        load.connections.add(self)
        loop.watch(self._fd, self._on_ready)
        if full:
            self._refuse(429, "too many connections; try again later")

    @property
    def others_wait(self) -> bool:
        """Whether other requests, of any connection, wait for their answers."""
        return self._load.waiting > 1

    def take(self) -> Request | None:
        """Take the next request to answer; what is only a refusal is sent here."""
        while self._turns and self._asked is None:
            item = self._turns.popleft()
            if isinstance(item, Request):
                self._asked = item
                return item
            self._answer(item, head_only=False)
        return None

    def reply(self, request: Request, response: Response) -> None:
        """Send the answer to a request that `take` returned."""
        if self._asked is not request:
            return  # the peer has gone meanwhile
        self._asked = None
        self._load.answered()
        self._release(request)
        self._answer(response, head_only=request.method == "HEAD")
        if self._turns:
            self._load.turns.append(self)

    def hurry(self, deadline: float) -> None:
        """Bring the deadline forward where the peer is in the middle of nothing."""
        if not self._in_message and not self._pending:
            self.deadline = min(self.deadline, deadline)

    def expire(self) -> None:
        """End the connection: with a word to a peer that is too slow, silently if it is idle."""
        if self._in_message and not self._refused:
            self._refuse(408, "expected the rest of the request sooner")
        else:
            self.close()

    def close(self) -> None:
        """End the connection now, and forget what was asked on it."""
        if self.gone:
            return
        self.gone = True
        self._loop.forget(self._fd)
        self._sock.close()
        self._load.connections.discard(self)
        self._drop_body()
        if self._asked is not None:
            self._release(self._asked)
            self._asked = None
        for item in self._turns:
            if isinstance(item, Request):
                self._release(item)
        self._turns.clear()

    # httptools calls these

    def on_message_begin(self) -> None:  # noqa: D102
        self._in_message = self._in_head = True
        self._head_bytes = self._more_head_bytes = self._body_bytes = 0
        self._target = b""
        self._headers = {}
        self._body = []
        self.deadline = self._loop.time() + HEAD_S

    def on_url(self, url: bytes) -> None:  # noqa: D102
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        self._headers[name.lower()] = value
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:  # noqa: D102
        self._in_head = False
        self.deadline = self._loop.time() + BODY_S
        length = self._headers.get(b"content-length", b"0")
        most = self._load.limits.body_bytes
        # llhttp has refused a length that is no number
        if len(length) > 18 or int(length) > most:
            self._refuse(413, f"expected a body of at most {most} bytes")
        elif b"expect" in self._headers and not self._refused:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:  # noqa: D102
        if self._refused:
            return
        load = self._load
        self._body.append(body)
        self._body_bytes += len(body)
        load.held_bytes += len(body)
        if self._body_bytes > load.limits.body_bytes:
            self._refuse(413, f"expected a body of at most {load.limits.body_bytes} bytes")
        elif load.held_bytes > load.limits.held_bytes:
            self._refuse(429, "too many bytes are waiting; try again later")

    def on_message_complete(self) -> None:  # noqa: D102
        self._in_message = False
        if self._refused:
            return
        if self._pending >= MAX_PIPELINED:
            self._refuse(429, f"expected at most {MAX_PIPELINED} requests ahead of their answers")
            return
        self._keep_alive = self._keep_alive and self._parser.should_keep_alive()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        method = self._parser.get_method().decode("ascii", "replace")
        self.deadline = math.inf  # it is our turn
        self._body, self._body_bytes = [], 0  # the request holds it now
        load = self._load
        if load.waiting >= load.limits.queue:
            load.held_bytes -= len(body)
            self._enqueue(load.overloaded())
            return
        load.waiting += 1
        self._enqueue(Request(method, self._target, self._headers, body, perf_counter(), self))

    # bytes in

    def _on_ready(self, events: int) -> None:
        try:
            if events & WRITE:
                self._flush()
            if events & ~WRITE and not self.gone:
                self._read(events)
        except OSError:  # the peer broke the connection
            self.close()
        except Exception:
            _LOG.exception("a connection failed")
            self.close()

    def _read(self, events: int) -> None:
        for _ in range(MAX_READS):
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._end(events)
                return
            self._feed(data)
            if len(data) < READ_BYTES or self.gone:
                return

    def _end(self, events: int) -> None:
        self._ended = True
        if events & BROKEN or not (self._pending or self._out):
            self.close()
        else:  # a peer may stop sending and still read its answer
            self._wait_for()

    def _feed(self, data: bytes) -> None:
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

    # bytes out

    def _answer(self, response: Response, *, head_only: bool) -> None:
        last = not self._pending and (
            self._refused or self._load.draining or self._ended or not self._keep_alive
        )
        try:
            self._send(response.encode(last=last, head_only=head_only))
        except OSError:
            self.close()
            return
        if not last:
            if not self._in_message and not self._pending:
                self.deadline = self._loop.time() + IDLE_S
        elif self._refused and not self._ended:
            # closing with unread bytes would reset the connection under the answer
            if not self._out:
                self._say_no_more()
            self.deadline = self._loop.time() + LINGER_S
        elif self._out:
            self._closing = True
            self.deadline = self._loop.time() + IDLE_S
        else:
            self.close()

    def _send(self, data: bytes) -> None:
        if self._out:
            self._out += data
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._out += memoryview(data)[sent:]
            self._wait_for()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._out:
                del self._out[: self._sock.send(self._out)]
        if self._out:
            return
        if self._closing:
            self.close()
            return
        if self._refused and not self._pending:
            self._say_no_more()
        self._wait_for()

    def _wait_for(self) -> None:
        """Wait for room where something is to be written, for bytes where some may come."""
        self._loop.change(self._fd, WRITE if self._out else 0 if self._ended else READ)

    def _say_no_more(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    # bookkeeping

    @property
    def _pending(self) -> int:
        return len(self._turns) + (self._asked is not None)

    def _enqueue(self, item: Request | Response) -> None:
        self._turns.append(item)
        if len(self._turns) == 1 and self._asked is None:
            self._load.turns.append(self)

    def _release(self, request: Request) -> None:
        self._load.waiting -= 1
        self._load.held_bytes -= len(request.body)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) > MAX_HEADERS:
            self._refuse(
                431, f"expected at most {MAX_HEADERS} headers of {MAX_HEAD_BYTES} bytes in all"
            )

    def _drop_body(self) -> None:
        self._load.held_bytes -= self._body_bytes
        self._body, self._body_bytes = [], 0

    def _refuse(self, status: int, message: str) -> None:
        if not self._refused:
            self._refused = True
            self._drop_body()
            self.deadline = math.inf
            self._enqueue(error_response(status, message))
