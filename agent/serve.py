"""The process that runs models: HTTP in, predictions out, records and counts kept.

    python -m agent.serve CONFIG --listen-fd N --control-fd M

It has no keys and no network beyond the listening socket that control hands it. Its
life: load and warm every model, say `Ready`; on `Accept` open the spool, take over
what dead processes left, and answer; on `Drain`, on SIGTERM or when control is gone,
answer what is open, write the windows, and leave with code 0.
"""

import argparse
import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final, cast

import msgspec
import numpy as np

from agent.endpoint import Endpoint, Served
from agent.http import HttpServer, Limits
from agent.metrics import metrics_text
from agent.observe import Observer, RecentIds, count_plan
from agent.recover import Recovery, foreign_contexts
from agent.runtime import Model, read_manifest
from agent.segments import CountPlan, Header
from agent.serve_protocol import (
    Accept,
    Drain,
    Drained,
    Failed,
    FromServe,
    Ready,
    ServeConfig,
    ServeSlot,
    Settings,
    Stats,
    ToServe,
    frame,
    frames_from_control,
)
from agent.spool import Spool
from skerry.canonical import from_json
from skerry.errors import SkerryError
from skerry.manifest import parse_baseline
from skerry.records import Context

__all__ = ["main"]

TICK_S: Final = 0.5
CLOSE_S: Final = 2.0
BOOT_BYTES: Final = 8
OS_BOOT_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_LOG: Final = logging.getLogger("agent.serve")


class Server:
    """Everything between `Accept` and the end."""

    def __init__(
        self, config: ServeConfig, boot: str, models: list[tuple[ServeSlot, Model, CountPlan]]
    ) -> None:
        root = Path(config.spool_dir)
        own = {_context(slot): plan for slot, _, plan in models}
        contexts = own | {c: p for c, p in foreign_contexts(root).items() if c not in own}
        os_boot = OS_BOOT_FILE.read_text().strip() if OS_BOOT_FILE.exists() else ""
        header = Header(
            boot=boot,
            first_seq=1,
            os_boot=os_boot,
            window_s=config.window_s,
            contexts=list(contexts),
            plans=list(contexts.values()),
        )
        self._config = config
        self._many_unsynced = asyncio.Event()
        self._spool = Spool(
            root, header,
            segment_bytes=config.segment_bytes, max_bytes=config.spool_max_bytes,
            many_unsynced=self._many_unsynced.set,
        )  # fmt: skip
        recent = RecentIds(config.recent_ids)
        self._observer = Observer(self._spool, header.plans, config.window_s, recent)
        self._recovery = Recovery(root, self._spool, self._observer, header.contexts, os_boot)
        self._models = [Served(slot, model, ctx) for ctx, (slot, model, _) in enumerate(models)]
        self._http = HttpServer(
            Endpoint(
                self._models, self._observer,
                before_look_up=self._recovery.catch_up, metrics=self._metrics,
            ),
            Limits(config.max_body_bytes, config.max_queue, config.max_connections),
        )  # fmt: skip

    async def start(self, listener: socket.socket) -> None:
        """Take over from dead processes, then accept."""
        rebuilt = self._recovery.start()
        if rebuilt:
            _LOG.warning("rebuilt %d windows that dead processes left open", rebuilt)
        await self._http.start(listener)

    def set_window(self, window_s: float) -> None:
        """Count in windows of this length from now on."""
        self._observer.set_window(window_s)

    def stats(self) -> Stats:
        """Return what was done since the start."""
        slots = {served.slot.slot: served.stats() for served in self._models}
        return Stats(slots, unrecorded=self._spool.lost_total)

    def tick(self) -> float:
        """Do what time asks for, and return the seconds until it asks again."""
        now = time.time()
        self._observer.close_due(now)
        self._http.expire()
        self._recovery.look(rebuild=not self._http.draining)
        return min(TICK_S, self._observer.next_due(now))

    async def sync(self) -> None:
        """Make records power-safe: after `sync_s`, or earlier when many came."""
        while self._config.sync_s:
            # not wait_for: in Python 3.11 it can swallow a cancellation
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.sync_s):
                    await self._many_unsynced.wait()
            self._many_unsynced.clear()
            if self._spool.unsynced:
                await asyncio.to_thread(self._spool.take_sync())

    async def drain(self) -> None:
        """Answer what is open, then write every window and end the boot."""
        self._recovery.look(rebuild=False)  # the process that follows records already
        await self._http.drain(self._config.drain_s)
        self._observer.close_all()
        self._spool.close()

    def _metrics(self) -> str:
        return metrics_text(self._models, self._observer, self._spool, self._http)


def main(argv: list[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="agent.serve", description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="a ServeConfig as JSON")
    parser.add_argument("--listen-fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--control-fd", type=int, required=True, help="the socket to control")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, format="serve: %(message)s", level=logging.WARNING)
    # features of a strange input may overflow; that is counted as NaN, not written to a log
    np.seterr(all="ignore")
    # an interrupt at the terminal goes to the whole group; control decides what it means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        socket.socket(fileno=args.listen_fd) as listener,
        socket.socket(fileno=args.control_fd) as control,
    ):
        try:
            config = from_json(args.config.read_bytes(), ServeConfig)
            started = time.perf_counter()
            models = [_load(slot, config.threads) for slot in config.slots]
        except (SkerryError, OSError) as error:
            _LOG.error("cannot start: %s", error)
            with contextlib.suppress(OSError):
                control.sendall(frame(Failed(str(error))))
            return 1
        boot = secrets.token_hex(BOOT_BYTES)
        ready = Ready(boot, (time.perf_counter() - started) * 1000)
        listener.setblocking(False)
        control.setblocking(False)
        asyncio.run(_live(config, boot, models, ready, listener, control))
    return 0


async def _live(
    config: ServeConfig,
    boot: str,
    models: list[tuple[ServeSlot, Model, CountPlan]],
    ready: Ready,
    listener: socket.socket,
    control: socket.socket,
) -> None:
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[ToServe] = asyncio.Queue()
    loop.add_signal_handler(signal.SIGTERM, inbox.put_nowait, Drain())
    channel = _Channel(inbox)
    await loop.create_unix_connection(lambda: channel, sock=control)
    channel.send(ready)
    server: Server | None = None
    async with asyncio.TaskGroup() as tasks:
        background: list[asyncio.Task[None]] = []
        while True:
            message = await inbox.get()
            if isinstance(message, Accept) and server is None:
                server = Server(config, boot, models)
                await server.start(listener)
                background = [
                    tasks.create_task(_beat(server, channel, config.hang_s), name="beat"),
                    tasks.create_task(server.sync(), name="sync"),
                ]
            elif isinstance(message, Settings):
                config = msgspec.structs.replace(config, window_s=message.window_s)
                if server is not None:
                    server.set_window(message.window_s)
            elif isinstance(message, Drain):
                break
        if server is not None:
            await server.drain()
            channel.send(server.stats())
        for task in background:
            task.cancel()
    channel.send(Drained())
    await channel.close()


async def _beat(server: Server, channel: "_Channel", hang_s: float) -> None:
    while True:
        # Nobody handles SIGALRM: if the loop stands still for so long, in native code even,
        # the kernel ends this process and control starts another.
        signal.setitimer(signal.ITIMER_REAL, hang_s)
        pause_s = server.tick()
        channel.send(server.stats())
        await asyncio.sleep(max(pause_s, 0.0))


class _Channel(asyncio.Protocol):
    """The socket to control: its messages go into the inbox, and its end is a `Drain`."""

    def __init__(self, inbox: "asyncio.Queue[ToServe]") -> None:
        self._inbox = inbox
        self._frames = frames_from_control()
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._inbox.put_nowait(message)
        except SkerryError as error:
            _LOG.error("control says what is no message: %s", error)
            self._inbox.put_nowait(Drain())

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        self._inbox.put_nowait(Drain())

    def send(self, message: FromServe) -> None:
        """Send a message, if control is still there to read it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(message))

    async def close(self) -> None:
        """Send what is left, then close."""
        if self._transport is not None:
            self._transport.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._closed.wait()


def _load(slot: ServeSlot, threads: int) -> tuple[ServeSlot, Model, CountPlan]:
    manifest = read_manifest(Path(slot.manifest_file))
    data = Path(slot.baseline_file).read_bytes()
    baseline = parse_baseline(data)
    model = Model(Path(slot.model_file), manifest, slot.variant, threads=threads)
    return slot, model, count_plan(manifest, baseline)


def _context(slot: ServeSlot) -> Context:
    return Context(slot.slot, slot.model, slot.model_version, slot.bundle, slot.variant)


if __name__ == "__main__":
    sys.exit(main())
