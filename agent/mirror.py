"""Shows live requests to a model that runs beside the one that serves (`agent.shadow`).

A share of the answered requests goes over a Unix socket, after their answers were made. What the
other side has no time for is skipped and counted: nobody ever waits for it.
"""

import contextlib
import logging
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from agent.loop import READ, WRITE, Loop
from agent.serve_protocol import Sample, SampleTensor
from skerry.canonical import to_msgpack
from skerry.tensors import datatype_of, to_raw

__all__ = ["Mirror"]

MAX_SAMPLE_BYTES: Final = 8 << 20
_LENGTH: Final = struct.Struct(">I")
_LOG: Final = logging.getLogger("agent.serve")


class Mirror:
    """The way to one shadow.

    Args:
        loop: waits for room in the socket.
        path: of the shadow's socket.
        share: of the requests.
    """

    def __init__(self, loop: Loop, path: str, share: float) -> None:
        self._loop = loop
        self._share = share
        self._due = 0.0
        self._skipped = 0
        self._left: memoryview | None = None  # of a sample that is on its way
        self._sock: socket.socket | None = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            _LOG.warning("cannot reach the shadow: %s", error)
            return
        sock.setblocking(False)
        self._sock = sock
        loop.watch(sock.fileno(), self._on_ready)

    def offer(
        self,
        tensors: Mapping[str, NDArray[Any]],
        predictions: Sequence[int],
        confidences: Sequence[float],
    ) -> None:
        """Show one request and its answer, if it is the turn of one and there is room.

        Args:
            tensors: inputs, [rows, ...].
            predictions: of its rows.
            confidences: of its rows.
        """
        if self._sock is None:
            return
        self._due += self._share
        if self._due < 1.0:
            return
        self._due -= 1.0
        size = sum(_size(tensor) for tensor in tensors.values())
        if self._left is not None or size > MAX_SAMPLE_BYTES:
            self._skipped += 1
            return
        inputs = [
            SampleTensor(name, datatype_of(tensor), list(tensor.shape), to_raw(tensor))
            for name, tensor in tensors.items()
        ]
        body = to_msgpack(Sample(inputs, list(predictions), list(confidences), self._skipped))
        self._skipped = 0
        self._send(memoryview(_LENGTH.pack(len(body)) + body))

    def close(self) -> None:
        """Show no more."""
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = self._left = None

    def _send(self, data: memoryview) -> None:
        assert self._sock is not None
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        waited = self._left is not None
        self._left = data[sent:] if sent < len(data) else None
        if waited != (self._left is not None):
            self._loop.change(self._sock.fileno(), WRITE if self._left is not None else READ)

    def _on_ready(self, events: int) -> None:
        if self._left is not None and events & WRITE:
            self._send(self._left)
            return
        assert self._sock is not None
        with contextlib.suppress(BlockingIOError):
            try:
                data = self._sock.recv(1)
            except ConnectionError:
                data = b""
            if not data:  # the shadow has ended
                self.close()


def _size(tensor: NDArray[Any]) -> int:
    """Return about as many bytes as a tensor takes on the way; of texts, at least their letters."""
    if tensor.dtype.kind != "O":
        return tensor.nbytes
    return sum(4 + len(text) for text in tensor.ravel().tolist())
