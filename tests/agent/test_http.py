"""HTTP: whole requests in, answers in their order out, bounds on everything a peer sends."""

import asyncio
import gzip
import socket
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from agent import connection, http
from agent.http import HttpError, HttpServer
from agent.http_types import Limits, Request, Response
from agent.loop import Loop

T = TypeVar("T")


class Rig:
    """A server that repeats what it was asked, in a thread of its own, and connections to it."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.path = path
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(path))
        self.unix.listen(8)
        self.seen: list[Request] = []
        self.later: list[Request] = []
        self.loop = Loop()
        limits = Limits(1000, queue=4, connections=3, held_bytes=1500)
        self.server = HttpServer(self.loop, self.handle, limits)
        self.load = self.server.load
        self.server.start([self.listener, self.unix])
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def handle(self, request: Request) -> Response | None:
        self.seen.append(request)
        if request.target == b"/refuse":
            raise HttpError(404, "nothing is here")
        if request.target == b"/break":
            raise ZeroDivisionError
        if request.target == b"/large":
            return Response(200, [bytes(8 << 20)], "text/plain")
        if request.target.startswith(b"/later"):
            self.later.append(request)
            return None
        return self.answer(request)

    def answer(self, request: Request) -> Response:
        return Response(200, [request.target, b" ", request.body], "text/plain")

    def do(self, act: Callable[[], T]) -> T:
        """Act in the server's thread."""
        done: list[T] = []
        ready = threading.Event()

        def run() -> None:
            done.append(act())
            ready.set()

        self.loop.call(run)
        assert ready.wait(5)
        return done[0]

    def drain(self, timeout_s: float) -> threading.Event:
        drained = threading.Event()
        self.loop.call(lambda: self.server.drain(timeout_s, drained.set))
        return drained

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.listener.getsockname())

    async def ask(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, and read until it is closed."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer

    async def eventually(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not self.do(check):  # noqa: ASYNC110 - what it waits for is another thread's
                await asyncio.sleep(0.005)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "s")
    yield rig
    assert rig.drain(0.0).wait(5)
    rig.loop.call(rig.loop.stop)
    rig.thread.join(5)
    rig.loop.close()
    for listener in (rig.listener, rig.unix):
        listener.close()


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: device", *headers, "", ""]).encode()


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /p HTTP/1.1", "Host: device", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


CLOSE = "Connection: close"


async def test_a_request_is_answered(rig: Rig) -> None:
    answer = await rig.ask(post(b"hello", CLOSE))
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n")
    assert b"Connection: close" in head
    assert body == b"/p hello"
    assert rig.seen[0].method == "POST"
    assert rig.seen[0].headers[b"host"] == b"device"


async def test_a_connection_is_kept_and_answers_come_in_order(rig: Rig) -> None:
    answer = await rig.ask(get("/1") + get("/2") + post(b"x") + get("/3", CLOSE))
    assert [answer.index(b) for b in (b"/1 ", b"/2 ", b"/p x", b"/3 ")] == sorted(
        answer.index(b) for b in (b"/1 ", b"/2 ", b"/p x", b"/3 ")
    )
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.count(b"Connection: close") == 1


async def test_a_request_may_come_byte_by_byte(rig: Rig) -> None:
    reader, writer = await rig.connect()
    for byte in post(b"slow", CLOSE):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.read()).endswith(b"/p slow")
    writer.close()


async def test_chunks_and_old_http_are_understood(rig: Rig) -> None:
    chunked = (
        b"POST /p HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    assert (await rig.ask(chunked + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).endswith(b"/p abcde")
    assert (await rig.ask(b"GET /old HTTP/1.0\r\n\r\n")).endswith(b"/old ")


async def test_who_waits_for_a_go_ahead_gets_it(rig: Rig) -> None:
    reader, writer = await rig.connect()
    request = post(b"body", CLOSE, "Expect: 100-continue")
    writer.write(request[:-4])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(request[-4:])
    assert (await reader.read()).endswith(b"/p body")
    writer.close()


async def test_head_has_no_body(rig: Rig) -> None:
    answer = await rig.ask(b"HEAD /h HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
    assert b"Content-Length: 3" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_body_is_unpacked(
    rig: Rig, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    answer = await rig.ask(post(pack(b"hello"), f"Content-Encoding: {encoding}", CLOSE))
    assert answer.endswith(b"/p hello")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),  # TLS
        (b"POST /p HTTP/1.1\r\nHost: d\r\nContent-Length: 12\r\nContent-Length: 13\r\n\r\n", 400),
        (b"POST /p HTTP/1.1\r\nHost: d\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /p HTTP/1.1\r\nHost: d\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST /p HTTP/1.1\r\nHost: d\r\nContent-Length: 99999999999999999999\r\n\r\n", None),
        (post(bytes(1001)), 413),
        (
            b"POST /p HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n"
            + bytes(1001) + b"\r\n0\r\n\r\n", 413,
        ),
        (get("/" + "x" * 20_000), 431),
        (get("/", "X: " + "x" * 20_000), 431),
        (get("/", *(f"X-{i}: 1" for i in range(100))), 431),
        (post(b"no gzip", "Content-Encoding: gzip", CLOSE), 400),
        (post(gzip.compress(b"hello")[:-8], "Content-Encoding: gzip", CLOSE), 400),
        (post(gzip.compress(bytes(100_000)), "Content-Encoding: gzip", CLOSE), 413),
        (post(b"x", "Content-Encoding: br", CLOSE), 415),
        (get("/refuse", CLOSE), 404),
        (get("/break", CLOSE), 500),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_in_json(
    rig: Rig, request_bytes: bytes, status: int | None
) -> None:
    answer = await rig.ask(request_bytes)
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}".encode() if status else b"HTTP/1.1 4")
    assert body.startswith(b'{"error":"')
    assert (await rig.ask(get("/after", CLOSE))).endswith(b"/after ")


async def test_endless_headers_are_refused_before_they_end(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(40):
        writer.write(bytes(1024).replace(b"\0", b"x"))
        await asyncio.sleep(0.001)
    assert (await reader.read()).startswith(b"HTTP/1.1 431")
    writer.close()


async def test_too_much_ahead_of_the_answers_is_refused(rig: Rig) -> None:
    answer = await rig.ask(b"".join(get(f"/{i}") for i in range(100)))
    # four may wait; the connection may be ahead by sixteen; then it is closed
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.count(b"HTTP/1.1 429") == 13
    assert answer.count(b"Connection: close") == 1


async def test_too_many_connections_are_refused(rig: Rig) -> None:
    held = [await rig.connect() for _ in range(3)]
    await asyncio.sleep(0.05)
    assert (await rig.ask(b"")).startswith(b"HTTP/1.1 429")
    for _, writer in held:
        writer.close()
    await asyncio.sleep(0.05)
    assert (await rig.ask(get("/", CLOSE))).startswith(b"HTTP/1.1 200")


async def test_bodies_that_wait_are_bounded_together(rig: Rig) -> None:
    _, writer = await rig.connect()
    writer.write(post(bytes(1000))[:-1])
    await asyncio.sleep(0.05)
    await rig.eventually(lambda: rig.load.held_bytes == 999)
    assert (await rig.ask(post(bytes(600), CLOSE))).startswith(b"HTTP/1.1 429")
    assert (await rig.ask(post(bytes(500), CLOSE))).startswith(b"HTTP/1.1 200")
    writer.close()
    await asyncio.sleep(0.05)
    assert (await rig.ask(post(bytes(600), CLOSE))).startswith(b"HTTP/1.1 200")
    await rig.eventually(lambda: rig.load.held_bytes == 0)


async def test_a_peer_that_is_too_slow_is_told_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.05)
    reader, writer = await rig.connect()
    writer.write(b"GET / HT")
    await asyncio.sleep(0.1)
    rig.do(rig.server.expire)
    assert (await reader.read()).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_an_idle_connection_is_closed_silently(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.05)
    reader, writer = await rig.connect()
    writer.write(get("/1"))
    await reader.readuntil(b"/1 ")
    rig.do(rig.server.expire)
    await asyncio.sleep(0.1)
    rig.do(rig.server.expire)
    assert await reader.read() == b""
    writer.close()


async def test_an_answer_is_read_by_a_peer_that_sends_no_more(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(get("/half", CLOSE))
    writer.write_eof()
    assert (await reader.read()).endswith(b"/half ")
    writer.close()


async def test_another_protocol_is_not_taken_up(rig: Rig) -> None:
    answer = await rig.ask(get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in answer


async def test_draining_answers_once_more_and_closes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DRAIN_IDLE_S", 0.3)
    reader, writer = await rig.connect()
    writer.write(get("/1"))
    await reader.readuntil(b"/1 ")
    _, idle_writer = await rig.connect()
    drained = rig.drain(5.0)
    await asyncio.sleep(0.1)
    writer.write(get("/2"))
    answer = await reader.read()
    assert answer.endswith(b"/2 ")
    assert b"Connection: close" in answer
    assert await asyncio.to_thread(drained.wait, 2)
    assert rig.load.connections == set()
    writer.close()
    idle_writer.close()


async def test_a_unix_socket_is_answered_like_any_other(rig: Rig) -> None:
    reader, writer = await asyncio.open_unix_connection(rig.path)
    writer.write(get("/unix", CLOSE))
    assert (await reader.read()).endswith(b"/unix ")
    writer.close()


async def test_an_answer_may_come_later_and_in_its_order(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(get("/later-1") + get("/2") + get("/later-3", CLOSE))
    await rig.eventually(lambda: len(rig.later) == 1)
    other = await rig.ask(get("/other", CLOSE))
    assert other.endswith(b"/other ")  # nobody else waits for it
    assert rig.do(lambda: rig.load.waiting) == 3
    rig.do(lambda: rig.later[0].reply(rig.answer(rig.later[0])))
    await rig.eventually(lambda: len(rig.later) == 2)
    rig.do(lambda: rig.later[1].reply(rig.answer(rig.later[1])))
    answer = await reader.read()
    places = [answer.index(b) for b in (b"/later-1 ", b"/2 ", b"/later-3 ")]
    assert places == sorted(places)
    assert rig.do(lambda: (rig.load.waiting, rig.load.held_bytes)) == (0, 0)
    writer.close()


async def test_who_leaves_before_the_answer_is_forgotten(rig: Rig) -> None:
    _, writer = await rig.connect()
    writer.write(get("/later-1") + post(b"waits"))
    await rig.eventually(lambda: len(rig.later) == 1)
    peer = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    writer.transport.abort()
    await rig.eventually(lambda: not rig.load.connections)
    assert rig.do(lambda: (rig.load.waiting, rig.load.held_bytes)) == (0, 0)
    rig.do(lambda: rig.later[0].reply(rig.answer(rig.later[0])))  # too late, and harmless
    assert (await rig.ask(get("/after", CLOSE))).endswith(b"/after ")


async def test_a_large_answer_reaches_a_slow_reader_whole(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(get("/large") + get("/next", CLOSE))
    await asyncio.sleep(0.1)  # the sockets' buffers are full now
    assert (await rig.ask(get("/other", CLOSE))).endswith(b"/other ")
    answer = await reader.read()
    assert len(answer.split(b"\r\n\r\n", 1)[1]) > 8 << 20
    assert answer.endswith(b"/next ")
    writer.close()


async def test_who_is_refused_hears_when_to_come_back(rig: Rig) -> None:
    _, first = await rig.connect()
    first.write(b"".join(get(f"/later-{i}") for i in range(4)))
    await rig.eventually(lambda: rig.load.waiting == 4)
    answer = await rig.ask(get("/", CLOSE))
    assert answer.startswith(b"HTTP/1.1 429")
    assert b"Retry-After: 1\r\n" in answer
    first.close()


def descriptors() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc/self/fd").iterdir())


async def test_connections_give_their_descriptors_back(rig: Rig) -> None:
    before = len(list(descriptors()))
    for _ in range(50):
        await rig.ask(get("/1", CLOSE))
    await rig.eventually(lambda: not rig.load.connections)
    assert len(list(descriptors())) <= before + 2
