"""Publishing sends both parts in one request, and tells what the fleet says."""

import json
import socket
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compiler.publish import check_url, fetch, publish
from skerry.errors import (
    ConflictError,
    FormatError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
    UsageError,
)


class Fleet(BaseHTTPRequestHandler):
    """Answers as it is told, and keeps what it got."""

    status: ClassVar[int] = 201
    answer: ClassVar[bytes] = b'{"target": "models/acme/shapes@1.0.0"}'
    got: ClassVar[dict[str, Any]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = message_from_bytes(head + body).get_payload()
        Fleet.got = {part.get_param("name", header="content-disposition"): part for part in parts}  # type: ignore[union-attr,misc]
        Fleet.got["path"], Fleet.got["token"] = self.path, self.headers["Authorization"]
        self._reply()

    def do_GET(self) -> None:
        Fleet.got = {"path": self.path}
        self._reply()

    def _reply(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def fleet() -> Iterator[str]:
    Fleet.status, Fleet.answer, Fleet.got = 201, b'{"target": "t"}', {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Fleet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "shapes-1.0.0.skerry"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def test_the_fleet_gets_both_parts_and_the_token(fleet: str, bundle: Path) -> None:
    assert publish(bundle, b'{"signed": 1}', fleet, "secret") == {"target": "t"}
    assert Fleet.got["path"] == "/api/v1/bundles"
    assert Fleet.got["token"] == "Bearer secret"
    assert Fleet.got["metadata"].get_payload(decode=True) == b'{"signed": 1}'
    assert Fleet.got["bundle"].get_payload(decode=True) == bundle.read_bytes()


@pytest.mark.parametrize(
    ("status", "problem", "kind"),
    [
        (422, {"detail": "not signed", "code": "signature", "exit_code": 7}, TrustError),
        (409, {"detail": "there already"}, ConflictError),
        (401, {"title": "Unauthorized"}, RefusedError),
        (500, None, SkerryError),
    ],
)
def test_a_refusal_has_the_fleets_words_and_exit_code(
    fleet: str, bundle: Path, status: int, problem: dict[str, Any] | None, kind: type[SkerryError]
) -> None:
    Fleet.status = status
    Fleet.answer = b"<html>" if problem is None else json.dumps(problem).encode()
    with pytest.raises(kind) as refused:
        publish(bundle, b"{}", fleet, "secret")
    assert type(refused.value) is kind
    words = str((problem or {}).get("detail") or (problem or {}).get("title") or "HTTP 500")
    assert words in str(refused.value)
    if isinstance(refused.value, TrustError):
        assert refused.value.code == "signature"


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b"[]", b""])
def test_a_server_that_is_no_fleet_is_noticed(fleet: str, bundle: Path, answer: bytes) -> None:
    Fleet.answer = answer
    with pytest.raises(FormatError, match="is this a fleet"):
        publish(bundle, b"{}", fleet, "secret")


def test_nobody_there_is_unreachable(bundle: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="is it running"):
            publish(bundle, b"{}", url, "secret")


def test_fetch_tells_nothing_there_from_nobody_there(fleet: str) -> None:
    Fleet.status, Fleet.answer = 200, b"{}"
    assert fetch(f"{fleet}/tuf/catalog/metadata/acme.json") == b"{}"
    Fleet.status = 404
    assert fetch(f"{fleet}/x") is None


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "ftp://x", "127.0.0.1:80"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(UsageError, match="expected a URL"):
        check_url(url)
