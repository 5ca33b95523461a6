"""A TCP proxy that stalls, resets, throttles or refuses what goes through it."""

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Final, Literal, Self

Manner = Literal["pass", "stall", "reset", "throttle", "refuse"]
CHUNK: Final = 4096
SLOW_BYTES_S: Final = 8 << 10
_ABORT: Final = struct.pack("ii", 1, 0)  # close by RST


class FaultProxy:
    """Passes connections to an address on, in the manner that is set; use it as a context.

    Args:
        host: of the address.
        port: of the address.
    """

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self._manner: Manner = "pass"
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: Final[int] = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self.connections = self.broken = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def set(self, manner: Manner) -> None:
        """Behave so from now on, also to connections that are there."""
        self._manner = manner
        if manner in ("reset", "refuse"):
            self._loop.call_soon_threadsafe(self._break)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        start = asyncio.start_server(self._serve, sock=self._listener)
        server = self._loop.run_until_complete(start)
        self._loop.run_forever()
        server.close()
        self._break()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    def _break(self) -> None:
        for writer in self._writers:
            self.broken += 1
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _ABORT
                )
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._manner == "refuse":
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            there, away = await asyncio.open_connection(*self._to)
            self._writers |= {writer, away}
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(self._copy(reader, away), self._copy(there, writer))
            self._writers -= {writer, away}
            away.close()
        writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                while self._manner == "stall":  # noqa: ASYNC110 - another thread sets it
                    await asyncio.sleep(0.05)
                if self._manner == "throttle":
                    await asyncio.sleep(len(data) / SLOW_BYTES_S)
                writer.write(data)
                await writer.drain()
        writer.close()
