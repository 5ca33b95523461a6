"""One run of the agent: it takes the state directory and the port, works, and gives them back."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from agent.config import AgentConfig, Layout
from agent.control import Control
from agent.identity import load_identity
from agent.last_good import open_database
from agent.listen import listen, listen_unix
from agent.notify import notify, watchdog_s
from agent.status import take_lock
from agent.status_file import read_status
from skerry.errors import ConflictError, SkerryError

__all__ = ["run_agent"]

BIND_S: Final = 5.0  # beyond its `drain_s`, until a serving process of before gives the port back
log = logging.getLogger(__name__)


async def run_agent(layout: Layout, config: AgentConfig) -> None:
    """Run the agent of a state directory until SIGTERM or SIGINT.

    Raises:
        NotFoundError: the device is not enrolled.
        ConflictError: another agent runs here, or the port is in use.
    """
    identity = load_identity(layout.identity)
    lock = take_lock(layout.lock)
    if lock is None:
        raise ConflictError(f"an agent runs on {layout.root} already; stop it first")
    stop = asyncio.Event()

    def end() -> None:
        notify("STOPPING=1")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    # a serving process of before may still drain, or load; the status need not know of it yet
    ran_before = layout.status.exists()
    listeners = await _bind(config, stop, config.drain_s + BIND_S if ran_before else 0.0)
    database = open_database(layout)
    try:
        control = Control(layout, config, identity, database, listeners)
        print(f"ready {control.http}", file=sys.stderr, flush=True)  # noqa: T201 - for who waits
        notify("READY=1", f"STATUS=serves at {control.http}")
        alive = asyncio.create_task(_say_alive(layout), name="watchdog")
        try:
            await control.run(stop)
        finally:
            alive.cancel()
    finally:
        database.close()
        for listener in listeners:
            listener.close()
        if config.http_socket:
            Path(config.http_socket).unlink(missing_ok=True)
        os.close(lock)


async def _say_alive(layout: Layout) -> None:
    """Tell the service manager that this loop goes round; where it does not, it is started anew."""
    pause_s = watchdog_s()
    while pause_s is not None:
        await asyncio.sleep(pause_s)
        notify("WATCHDOG=1", *_how_it_goes(layout))


def _how_it_goes(layout: Layout) -> list[str]:
    status = read_status(layout.status)
    if status is None:
        return []
    link = "connected" if status.connected else "not connected"
    serve = "serves" if status.serve_pid else "serves nothing"
    return [f"STATUS={serve} at {status.http}, {link}, {status.waiting} records wait"]


async def _bind(config: AgentConfig, stop: asyncio.Event, patience_s: float) -> list[socket.socket]:
    """Bind the listening sockets; for a while, if a former serve has yet to give them back."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            tcp = listen(config.http_host, config.http_port)
            try:
                return [
                    tcp,
                    *([listen_unix(Path(config.http_socket))] if config.http_socket else []),
                ]
            except SkerryError:
                tcp.close()
                raise
        except ConflictError as error:
            if time.monotonic() >= deadline or stop.is_set():
                raise
            if not told:
                log.warning("%s; waiting %.0f s for a serving process of before", error, patience_s)
                told = True
        await asyncio.sleep(0.1)
