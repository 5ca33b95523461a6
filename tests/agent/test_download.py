"""Downloads: resumed, bounded, and never named before their digest is right."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.download import Fetcher
from agent.pace import Limiter, SlowError, TooSlow, Watchdog
from skerry.canonical import sha256
from skerry.errors import FormatError, NotFoundError, RefusedError, TrustError, UnreachableError
from tests.fakes.http_files import FileServer

DATA = bytes(range(256)) * 1000
DIGEST = sha256(DATA)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        server.files["/blob"] = DATA
        yield server


def fetch(server: FileServer, target: Path, size: int = len(DATA), digest: str = DIGEST) -> None:
    fetcher = Fetcher(server.url, timeout_s=5.0)
    fetcher.blob("/blob", target, digest=digest, size_bytes=size)


def test_a_file_arrives_whole(server: FileServer, tmp_path: Path) -> None:
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_is_there_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    fetch(server, tmp_path / "file")
    assert server.requests == []


def test_a_broken_download_goes_on_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    server.break_after = 100_000
    for _ in range(2):
        with pytest.raises(UnreachableError):
            fetch(server, tmp_path / "file")
    server.break_after = None
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == [
        None, "bytes=100000-", "bytes=200000-",
    ]  # fmt: skip


def test_a_server_without_range_begins_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA[:5000])
    server.ranges = False
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_part_that_is_wrong_is_thrown_away_once(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 5000)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == ["bytes=5000-", None]


def test_a_whole_part_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert server.requests == []


def test_other_bytes_than_promised_never_get_the_name(server: FileServer, tmp_path: Path) -> None:
    server.files["/blob"] = DATA[:-1] + b"?"
    with pytest.raises(TrustError) as caught:
        fetch(server, tmp_path / "file")
    assert caught.value.code == "digest_mismatch"
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_promised_are_not_kept(server: FileServer, tmp_path: Path) -> None:
    server.files["/blob"] = DATA * 3
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == len(DATA)


def test_a_part_that_is_too_long_is_begun_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA * 2)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_file_that_the_server_does_not_have_is_said_so(
    server: FileServer, tmp_path: Path
) -> None:
    server.files.clear()
    with pytest.raises(NotFoundError, match="404"):
        fetch(server, tmp_path / "file")


def test_a_full_disk_is_seen_before_the_download(server: FileServer, tmp_path: Path) -> None:
    fetcher = Fetcher(server.url, timeout_s=5.0, reserve_bytes=1 << 60)
    with pytest.raises(RefusedError, match="make room") as caught:
        fetcher.blob("/blob", tmp_path / "file", digest=DIGEST, size_bytes=len(DATA))
    assert caught.value.code == "no_room"
    assert server.requests == []


def test_a_stopped_download_ends(server: FileServer, tmp_path: Path) -> None:
    fetcher = Fetcher(server.url, timeout_s=5.0, stopped=lambda: True)
    with pytest.raises(UnreachableError, match="stopped"):
        fetcher.blob("/blob", tmp_path / "file", digest=DIGEST, size_bytes=len(DATA))


def test_a_small_body_is_bounded(server: FileServer) -> None:
    fetcher = Fetcher(server.url, timeout_s=5.0)
    assert fetcher.small("/blob", len(DATA)) == DATA
    with pytest.raises(FormatError, match="at most"):
        fetcher.small("/blob", len(DATA) - 1)


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with FileServer() as server:
        url = server.url
    with pytest.raises(UnreachableError, match="no connection"):
        Fetcher(url, timeout_s=1.0).small("/blob", 10)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/", "host:80"])
def test_only_http_is_fetched(url: str) -> None:
    with pytest.raises(RefusedError, match="http"):
        Fetcher(url, timeout_s=1.0)


# --- the pace ---------------------------------------------------------------------------------------


def slow_fetcher(url: str, **settings: object) -> Fetcher:
    return Fetcher(url, **{"timeout_s": 5.0, "min_bytes_s": 1000, "slow_s": 0.5, **settings})  # type: ignore[arg-type]


def test_a_server_that_drips_is_given_up_and_what_came_is_kept(
    server: FileServer, tmp_path: Path
) -> None:
    server.drip_s = 0.05
    began = time.monotonic()
    for server.drip_after in (200_000, 210_000):
        with pytest.raises(SlowError, match="fewer than 1000 bytes a second"):
            slow_fetcher(server.url).blob(
                "/blob", tmp_path / "file", digest=DIGEST, size_bytes=len(DATA)
            )
    assert time.monotonic() - began < 5.0
    kept = (tmp_path / "file.part").stat().st_size
    assert 210_000 <= kept < len(DATA)
    server.drip_s = 0.0
    fetch(server, tmp_path / "file")
    assert server.requests[-1][1] == f"bytes={kept}-"
    assert (tmp_path / "file").read_bytes() == DATA


def test_a_small_body_that_drips_is_given_up(server: FileServer) -> None:
    server.drip_s = 0.05
    with pytest.raises(SlowError):
        slow_fetcher(server.url).small("/blob", len(DATA))
    with pytest.raises(SlowError):
        slow_fetcher(server.url).unless("/blob", "", len(DATA))


def test_a_head_that_drips_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while True:
                    connection.sendall(b"X-Head: x\r\n"[:1] + b": \r\n")
                    time.sleep(0.02)

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(SlowError):
            slow_fetcher(f"http://127.0.0.1:{listener.getsockname()[1]}").small("/a", 10)


def test_who_asks_for_no_pace_waits_on(server: FileServer, tmp_path: Path) -> None:
    server.files["/blob"] = DATA[:40]
    server.drip_s = 0.02
    fetcher = slow_fetcher(server.url, min_bytes_s=0)
    fetcher.blob("/blob", tmp_path / "file", digest=sha256(DATA[:40]), size_bytes=40)
    assert (tmp_path / "file").read_bytes() == DATA[:40]


def test_a_limited_rate_is_kept_and_is_not_slowness(server: FileServer, tmp_path: Path) -> None:
    began = time.monotonic()
    fetcher = slow_fetcher(server.url, limiter=Limiter(200_000), slow_s=0.2)
    fetcher.blob("/blob", tmp_path / "file", digest=DIGEST, size_bytes=len(DATA))
    # 256,000 bytes at 200,000 a second, half a second's worth of which may come at once
    assert 0.6 < time.monotonic() - began < 5.0


def test_the_watchdog_counts_over_its_whole_time() -> None:
    now = [0.0]
    dog = Watchdog(100, 10.0, clock=lambda: now[0])
    for second in range(10, 101, 10):  # all of ten seconds at once is as good as evenly
        now[0] = float(second)
        dog.received(1000)
    now[0] = 109.0
    dog.received(999)
    now[0] = 110.0
    with pytest.raises(TooSlow, match="fewer than 100 bytes a second over 10 s"):
        dog.received(0)


# --- only what has changed ----------------------------------------------------------------------------


def answering(*answers: bytes) -> tuple[str, list[bytes]]:
    """A server that gives these answers, one a connection, and the requests that it got."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        with listener:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65_536))
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", asked


def reply(tag: bytes, body: bytes = b"data") -> bytes:
    return b"HTTP/1.1 200 OK\r\nETag: %b\r\nContent-Length: %d\r\n\r\n%b" % (tag, len(body), body)


def test_what_has_not_changed_is_not_fetched_again() -> None:
    url, asked = answering(reply(b'"one"'), b"HTTP/1.1 304 Not Modified\r\n\r\n", reply(b'"two"'))
    fetcher = Fetcher(url, timeout_s=5.0)
    assert fetcher.unless("/a", "", 100) == (b"data", '"one"')
    assert fetcher.unless("/a", '"one"', 100) is None
    assert fetcher.unless("/a", '"one"', 100) == (b"data", '"two"')
    assert [b'If-None-Match: "one"' in request for request in asked] == [False, True, True]


@pytest.mark.parametrize(
    "tag", [b'"' + b"t" * 10_000 + b'"', b'"a"\r\n Injected: 1', b"\x07", '"é"'.encode()]
)
def test_a_tag_that_cannot_be_sent_back_is_none(tag: bytes) -> None:
    url, _ = answering(reply(tag))
    assert Fetcher(url, timeout_s=5.0).unless("/a", "", 100) == (b"data", "")


def test_an_endless_answer_is_cut() -> None:
    url, _ = answering(reply(b'"one"', b"x" * 10_000))
    with pytest.raises(FormatError, match="at most 100 bytes"):
        Fetcher(url, timeout_s=5.0).unless("/a", "", 100)


def test_not_modified_is_no_answer_to_what_was_not_asked() -> None:
    url, _ = answering(b"HTTP/1.1 304 Not Modified\r\n\r\n")
    with pytest.raises(RefusedError):
        Fetcher(url, timeout_s=5.0).unless("/a", "", 100)
