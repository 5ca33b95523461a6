"""Serve's end of the socket pair to control."""

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Final

from agent.loop import Loop
from agent.serve_protocol import Drain, FromServe, ToServe, frame, frames_from_control
from skerry.errors import SkerryError

__all__ = ["Channel"]

READ_BYTES: Final = 1 << 16
CLOSE_S: Final = 2.0
_LOG: Final = logging.getLogger("agent.serve")


class Channel:
    """Hands every message of control on; its end is a `Drain`.

    Args:
        loop: waits for the socket.
        sock: to control.
        take: called with each message.
    """

    def __init__(self, loop: Loop, sock: socket.socket, take: Callable[[ToServe], None]) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._take = take
        self._frames = frames_from_control()
        self._gone = False
        loop.watch(sock.fileno(), self._on_ready)

    def send(self, message: FromServe) -> None:
        """Send a message; one that control does not read in time is lost."""
        if self._gone:
            return
        data = frame(message)
        with contextlib.suppress(OSError):
            sent = self._sock.send(data)
            if sent < len(data):  # the rest of a frame must follow
                self._send_blocking(data[sent:])

    def say_last(self, message: FromServe) -> None:
        """Send a message for which control waits, then close."""
        if not self._gone:
            with contextlib.suppress(OSError):
                self._send_blocking(frame(message))
        self._leave()
        self._sock.close()

    def _send_blocking(self, data: bytes) -> None:
        self._sock.settimeout(CLOSE_S)
        try:
            self._sock.sendall(data)
        finally:
            self._sock.setblocking(False)

    def _on_ready(self, _: int) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave()
            self._take(Drain())
            return
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except SkerryError as error:
            _LOG.error("control says what is no message: %s", error)
            self._leave()
            self._take(Drain())

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._loop.forget(self._sock.fileno())
