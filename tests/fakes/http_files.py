"""A small HTTP or HTTPS server on a free port: files by path, with Range, and with faults.

It needs nothing but the standard library, as the agent that is tested with it.
"""

import contextlib
import http.server
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

Answer = tuple[int, bytes]


class FileServer:
    """Serves `files` until closed.

    `break_after` cuts every answer after so many bytes; `ranges` switches Range off; `drip_s`
    sends what comes after the first `drip_after` bytes of a file one by one, so far apart, to
    whom starts there too; `posted` answers POST requests and sees path and body.

    Args:
        context: for https.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.break_after: int | None = None
        self.drip_s = 0.0
        self.drip_after = 0
        self.drips: Callable[[str], bool] = lambda _: True  # which paths
        self.ranges = True
        self.headers: dict[str, str] = {}  # of every answer
        self.posted: Callable[[str, bytes], Answer] | None = None
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._scheme = "http" if context is None else "https"
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return "{}://{}:{}".format(self._scheme, *self._server.server_address[:2])

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> "FileServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        files = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                files.requests.append((self.path, wanted))
                data = files.files.get(self.path)
                if data is None:
                    self.answer(404, b"")
                elif wanted and files.ranges:
                    begin = int(wanted.removeprefix("bytes=").rstrip("-"))
                    self.answer(206, data[begin:], begin)
                else:
                    self.answer(200, data)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert files.posted is not None
                self.answer(*files.posted(self.path, body))

            def answer(self, status: int, data: bytes, begin: int = 0) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in files.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                cut = files.break_after
                data = data if cut is None else data[:cut]
                if files.drip_s and files.drips(self.path):
                    self.drip(data, max(0, files.drip_after - begin))
                else:
                    self.wfile.write(data)
                self.close_connection = True

            def drip(self, data: bytes, after: int) -> None:
                with contextlib.suppress(OSError):
                    self.wfile.write(data[:after])
                    for byte in data[after:]:
                        time.sleep(files.drip_s)
                        self.wfile.write(bytes([byte]))

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
