"""The client: what it sends, what it makes of answers, and of connections that break."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from skerry.errors import (
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    UnreachableError,
    UsageError,
)
from skerry.io.client import Client


@contextmanager
def device(*script: Callable[[socket.socket], None]) -> Iterator[str]:
    """A device that does one thing per connection, and the address to ask it at."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for act in script:
            connection, _ = listener.accept()
            with connection:
                act(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    yield "http://{}:{}".format(*listener.getsockname())
    thread.join(10)
    listener.close()


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, body = data.split(b"\r\n\r\n", 1)
    length = int(head.lower().split(b"content-length: ")[-1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return head, body


def reply(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def answer(id: str = "a") -> bytes:
    scores = np.array([[1, 2]], dtype=np.float32).tobytes()
    output = {
        "name": "scores",
        "datatype": "FP32",
        "shape": [1, 2],
        "parameters": {"binary_data_size": len(scores)},
    }
    head = msgspec.json.encode(
        {
            "model_name": "reader",
            "model_version": "1.0.0",
            "id": id,
            "parameters": {"bundle": "sha256:1", "variant": "fp32-cpu"},
            "outputs": [output],
        }
    )
    return reply(200, head + scores, f"Inference-Header-Content-Length: {len(head)}")


def answering(data: bytes, times: int = 1) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        for _ in range(times):
            read_request(connection)
            connection.sendall(data)

    return act


def hanging_up(connection: socket.socket) -> None:
    read_request(connection)


def ask(url: str) -> object:
    with Client(url, timeout_s=2.0) as client:
        return client.predict("reader", {"image": np.zeros((1, 2), dtype=np.float32)}, id="a")


def test_a_prediction_travels_as_bytes_and_comes_back() -> None:
    seen: list[tuple[bytes, bytes]] = []

    def act(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(answer())

    with device(act) as url, Client(url) as client:
        got = client.predict("reader", {"image": np.ones((1, 2), dtype=np.float32)}, id="a")
    assert (got.id, got.model_version, got.bundle) == ("a", "1.0.0", "sha256:1")
    assert got.variant == "fp32-cpu"
    assert got.outputs["scores"].tolist() == [[1.0, 2.0]]
    head, body = seen[0]
    assert head.startswith(b"POST /v2/models/reader/infer HTTP/1.1\r\n")
    assert body.endswith(np.ones(2, dtype=np.float32).tobytes())


def test_an_answer_may_come_in_pieces() -> None:
    def act(connection: socket.socket) -> None:
        read_request(connection)
        data = answer()
        for i in range(0, len(data), 7):
            connection.sendall(data[i : i + 7])

    with device(act) as url:
        ask(url)


def test_a_connection_is_kept() -> None:
    with device(answering(answer(), times=3)) as url, Client(url) as client:
        for _ in range(3):
            client.predict("reader", {"image": np.zeros(1, dtype=np.float32)})


def test_a_connection_that_the_device_closes_is_opened_anew() -> None:
    closing = answer().replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with device(answering(closing), answering(answer())) as url, Client(url) as client:
        for _ in range(2):
            client.predict("reader", {"image": np.zeros(1, dtype=np.float32)})


def test_an_idle_connection_that_went_away_is_no_failure() -> None:
    with device(answering(answer()), answering(answer())) as url, Client(url) as client:
        for _ in range(2):  # the device hangs up after the first, without a word
            client.predict("reader", {"image": np.zeros(1, dtype=np.float32)}, id="a")


def test_a_new_connection_that_breaks_is_told() -> None:
    with device(hanging_up) as url, pytest.raises(UnreachableError, match="same id"):
        ask(url)


def test_a_connection_that_breaks_twice_is_told() -> None:
    with device(answering(answer()), hanging_up) as url, Client(url) as client:
        client.predict("reader", {"image": np.zeros(1, dtype=np.float32)})
        with pytest.raises(UnreachableError, match="same id"):
            client.predict("reader", {"image": np.zeros(1, dtype=np.float32)})


def test_a_device_that_is_away_is_told() -> None:
    with device() as url:
        pass
    with pytest.raises(UnreachableError, match="no answer from http://127"):
        ask(url)


def test_a_device_that_does_not_answer_in_time_is_told() -> None:
    done = threading.Event()

    def act(connection: socket.socket) -> None:
        read_request(connection)
        done.wait(10)

    with device(act) as url, Client(url, timeout_s=0.2) as client:
        with pytest.raises(UnreachableError, match="timed out"):
            client.predict("reader", {"image": np.zeros(1, dtype=np.float32)})
        done.set()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, UsageError),
        (404, NotFoundError),
        (405, RefusedError),
        (429, UnreachableError),
        (500, SkerryError),
        (503, UnreachableError),
    ],
)
def test_a_refusal_is_an_error_with_its_reason(status: int, error: type[SkerryError]) -> None:
    body = msgspec.json.encode({"error": "this is why"})
    with device(answering(reply(status, body))) as url, pytest.raises(error) as caught:
        ask(url)
    assert type(caught.value) is error
    assert f"answered {status}: this is why" in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"x" * 100_000,
        reply(200, b"no json"),
        reply(200, b"{}", "Inference-Header-Content-Length: x"),
        answer().replace(b'"FP32"', b'"FP99"'),
        answer().replace(b'"binary_data_size":8', b'"binary_data_size":9'),
        answer().replace(b'"shape":[1,2]', b'"shape":[1,3]'),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with device(answering(data)) as url, pytest.raises(FormatError):
        ask(url)


def test_an_address_is_http_or_a_unix_socket() -> None:
    with pytest.raises(UsageError, match="expected http"):
        Client("ftp://device")


def test_a_unix_socket_works_as_well(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            answering(reply(200, b""))(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    with Client(f"unix:{path}") as client:
        assert client.ready("reader")
    thread.join(10)
    listener.close()
