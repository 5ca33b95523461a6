"""The pace of a connection: not above a limit, and not below what is worth waiting for.

A server that sends a byte now and then is never silent, so that no timeout ends it: it could hold
a device's update up for ever (slow retrieval). `Watchdog` counts what comes in, from the first
byte of the answer's head to the last of its body, and gives up where fewer bytes than `min_bytes_s`
a second came over `within_s` seconds. What `Limiter` makes the device wait itself is not counted.
"""

import http.client
import io
import socket
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from skerry.errors import UnreachableError

__all__ = ["MIN_BYTES_S", "SLOW_S", "Limiter", "SlowError", "TooSlow", "Watchdog", "watched"]

MIN_BYTES_S: Final = 1024
SLOW_S: Final = 60.0
BURST_S: Final = 0.5  # of a limited rate may come at once
NAP_S: Final = 0.25


class TooSlow(OSError):  # noqa: N818 - as `socket.timeout`: it passes through http.client
    """Fewer bytes came in than are worth waiting for."""


class SlowError(UnreachableError):
    """A place sends too slowly; what came is kept, and another place, or a later time, may do."""


class Limiter:
    """Keeps all downloads of a device together below a rate.

    Args:
        max_bytes_s: bytes a second, 0 for no limit.
        clock: monotonic seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        max_bytes_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._max_bytes_s = max_bytes_s
        self._clock, self._sleep = clock, sleep
        self._due = float("-inf")

    def took(self, count: int, stopped: Callable[[], bool]) -> float:
        """Wait until so many bytes more are within the rate; return for how many seconds."""
        if not self._max_bytes_s:
            return 0.0
        began = now = self._clock()
        self._due = max(self._due, now - BURST_S) + count / self._max_bytes_s
        while now < self._due and not stopped():
            self._sleep(min(NAP_S, self._due - now))
            now = self._clock()
        return now - began


class Watchdog:
    """Watches one answer.

    Args:
        min_bytes_s: bytes a second that are worth waiting for, 0 for any.
        within_s: seconds over which they are counted.
        limiter: shared by all downloads.
        stopped: asked while the limiter waits.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        min_bytes_s: int,
        within_s: float,
        limiter: Limiter | None = None,
        stopped: Callable[[], bool] = lambda: False,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._needed = min_bytes_s * within_s
        self._within_s = within_s
        self._limiter = limiter
        self._stopped = stopped
        self._clock = clock
        self._began = clock()
        self._count = 0

    def received(self, count: int) -> None:
        """Take in that so many bytes came.

        Raises:
            TooSlow: too few came for too long.
        """
        self._count += count
        now = self._clock()
        if now >= self._began + self._within_s:
            if self._count < self._needed:
                raise TooSlow(
                    f"fewer than {self._needed / self._within_s:.0f} bytes a second "
                    f"over {self._within_s:.0f} s"
                )
            self._began, self._count = now, 0
        if self._limiter is not None:
            self._began += self._limiter.took(count, self._stopped)


class _Raw(io.RawIOBase):
    """A connection's bytes, each piece shown to the watchdog."""

    def __init__(self, inner: io.RawIOBase, watchdog: Watchdog) -> None:
        self._inner = inner
        self._watchdog = watchdog

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._inner.readinto(buffer)
        if count:
            self._watchdog.received(count)
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Socket:
    """As much of a socket as an answer reads from."""

    def __init__(self, sock: socket.socket, watchdog: Watchdog) -> None:
        self._sock = sock
        self._watchdog = watchdog

    def makefile(self, mode: str) -> io.BufferedReader:
        inner = self._sock.makefile(mode, buffering=0)  # type: ignore[call-overload]
        return io.BufferedReader(_Raw(inner, self._watchdog))


def watched(
    handler: type[urllib.request.HTTPHandler | urllib.request.HTTPSHandler],
    watchdog: Callable[[], Watchdog],
    **settings: Any,
) -> urllib.request.BaseHandler:
    """Return a handler of requests whose answers are watched.

    Args:
        handler: for http or https.
        watchdog: returns that of the request under way.
        **settings: of the handler.
    """

    def respond(sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(_Socket(sock, watchdog()), *args, **kwargs)  # type: ignore[arg-type]

    class Watched(handler):  # type: ignore[valid-type, misc]
        def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
            return super().do_open(partial(_connect, http_class), req, **options)

    def _connect(http_class: Any, *args: Any, **kwargs: Any) -> Any:
        connection = http_class(*args, **kwargs)
        connection.response_class = respond
        return connection

    return Watched(**settings)
