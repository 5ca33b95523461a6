"""One serving process, seen from control: started, spoken to, ended.

It is given the listening sockets and one end of a socket pair by their numbers, and a
configuration file. When control is gone, the pair ends and serve drains by itself.
"""

import asyncio
import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.serve_protocol import (
    Failed,
    FromServe,
    Ready,
    ServeConfig,
    SlotStats,
    Stats,
    ToServe,
    frame,
    frames_from_serve,
    serve_command,
    serve_environment,
)
from skerry.canonical import to_json
from skerry.errors import FormatError, SkerryError

__all__ = ["CONFIG_PREFIX", "Child", "StartFailed"]

log = logging.getLogger(__name__)

CONFIG_PREFIX: Final = ".serve-"
READ_BYTES: Final = 1 << 16


class StartFailed(SkerryError):  # noqa: N818 - a past fact, as the events of the machine
    """A serving process did not become ready."""


class Child:
    """A serving process; make one with `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._listen = asyncio.create_task(self._read(), name=f"serve-{process.pid}")
        self.stats: dict[str, SlotStats] = {}
        self.unrecorded = 0

    @classmethod
    async def start(
        cls,
        config: ServeConfig,
        folder: Path,
        listeners: Sequence[socket.socket],
        *,
        timeout_s: float,
    ) -> "Child":
        """Start a process and wait until its models are warm.

        Raises:
            StartFailed: it ended, said that it cannot, or took too long.
        """
        file, held = _write(to_json(config), folder)
        ours, theirs = socket.socketpair()
        fds = [listener.fileno() for listener in listeners]
        try:
            process = await asyncio.create_subprocess_exec(
                *serve_command(file, listen_fds=fds, control_fd=theirs.fileno()),
                pass_fds=(*fds, theirs.fileno(), *held),
                stdin=asyncio.subprocess.DEVNULL,
                env=serve_environment(os.environ),
                start_new_session=True,  # Ctrl-C at a terminal is for control alone
            )
        except OSError as error:
            ours.close()
            _remove(file)
            raise StartFailed(f"cannot start a serving process: {error}") from None
        finally:
            theirs.close()
            for fd in held:
                os.close(fd)
        ours.setblocking(False)
        child = cls(process, *await asyncio.open_unix_connection(sock=ours))
        try:
            async with asyncio.timeout(timeout_s):
                ready = await child._ready
        except TimeoutError:
            await child._kill()
            raise StartFailed(f"the serving process was not ready in {timeout_s:.0f} s") from None
        except BaseException:
            await child._kill()
            raise
        finally:
            _remove(file)
        log.info("serving process %d is ready after %.0f ms", child.pid, ready.load_ms)
        return child

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    def send(self, message: ToServe) -> None:
        """Say something; what a process that has gone does not hear is lost."""
        with contextlib.suppress(OSError):
            self._writer.write(frame(message))

    async def ended(self) -> str:
        """Wait for the end of the process; return how it ended."""
        code = await self._process.wait()
        await self._close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    async def finish(self, timeout_s: float) -> None:
        """Wait for the process to end by itself, then end it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            log.warning("serving process %d did not drain in %.0f s", self.pid, timeout_s)
        await self._kill()

    async def _read(self) -> None:
        frames = frames_from_serve()
        try:
            while data := await self._reader.read(READ_BYTES):
                for message in frames.feed(data):
                    self._take(message)
        except (OSError, FormatError) as error:
            log.warning("serving process %d: %s", self.pid, error)
            self._process.kill()
        if not self._ready.done():
            code = await self._process.wait()
            if not self._ready.done():
                self._ready.set_exception(
                    StartFailed(f"the serving process ended with {code} before it was ready")
                )

    def _take(self, message: FromServe) -> None:
        match message:
            case Ready() if not self._ready.done():
                self._ready.set_result(message)
            case Failed() if not self._ready.done():
                self._ready.set_exception(StartFailed(message.message))
            case Stats():
                self.stats = message.slots
                self.unrecorded = message.unrecorded

    async def _kill(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._close()

    async def _close(self) -> None:
        self._listen.cancel()
        self._writer.close()
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen, even if nobody waits any more


def _write(data: bytes, folder: Path) -> tuple[Path, list[int]]:
    """Write a configuration to a file; on a full disk to memory, with what the child must inherit."""
    try:
        fd, name = tempfile.mkstemp(prefix=CONFIG_PREFIX, suffix=".json", dir=folder)
    except OSError:
        return _in_memory(data)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except OSError:
        _remove(Path(name))
        return _in_memory(data)
    return Path(name), []


def _in_memory(data: bytes) -> tuple[Path, list[int]]:
    fd = os.memfd_create(CONFIG_PREFIX)
    os.write(fd, data)
    return Path(f"/dev/fd/{fd}"), [fd]


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # what is in memory goes by itself
        if not file.is_relative_to("/dev/fd"):
            file.unlink()
