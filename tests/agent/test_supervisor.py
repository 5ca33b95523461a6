"""The supervisor: swaps without refusing anybody, restarts what crashes, gives up in order."""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import agent.child
from agent.child import StartFailed
from agent.listen import listen, listen_unix
from agent.serve_protocol import ServeConfig, ServeSlot
from agent.supervisor import Supervisor
from skerry.errors import ConflictError, UsageError

FAKE = Path(__file__).parents[1] / "fakes" / "serve_child.py"


def slot(bundle: str, behaviour: str = "fine") -> ServeSlot:
    return ServeSlot("reader", "reader", "1.0.0", bundle, behaviour, "m", "n", "b")


class Site:
    """A supervisor, what it reported, and a client."""

    def __init__(self, folder: Path) -> None:
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.crashes = 0
        self.messages: list[str] = []
        self.supervisor = Supervisor(
            [self.listener],
            ServeConfig("cam-1", str(folder / "spool"), [], drain_s=0.2),
            folder,
            start_timeout_s=5.0,
            crashed=self.crashed,
            unable=self.messages.append,
        )

    def crashed(self) -> None:
        self.crashes += 1

    async def ask(self) -> str:
        """Connect; the bundle that answers."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            async with asyncio.timeout(5.0):
                return (await reader.readline()).decode().split()[0]
        finally:
            writer.close()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(10.0):
            while not holds():  # noqa: ASYNC110 - it waits for another process
                await asyncio.sleep(0.01)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    def command(config_file: Path, *, listen_fds: list[int], control_fd: int) -> list[str]:
        return [
            sys.executable, str(FAKE), str(config_file),
            "--listen-fd", str(listen_fds[0]), "--control-fd", str(control_fd),
        ]  # fmt: skip

    monkeypatch.setattr(agent.child, "serve_command", command)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    site = Site(tmp_path)
    yield site
    await site.supervisor.stop(1.0)


async def test_before_the_first_release_clients_are_refused_at_once(site: Site) -> None:
    with pytest.raises(ConnectionRefusedError):
        await site.ask()


async def test_a_swap_answers_every_connection(site: Site) -> None:
    await site.supervisor.ensure([slot("one")])
    stop, answers = asyncio.Event(), []

    async def ask_on() -> None:
        while not stop.is_set():
            answers.append(await site.ask())

    asking = asyncio.create_task(ask_on())
    await site.until(lambda: "one" in answers)
    for bundle in ("two", "three"):
        await site.supervisor.ensure([slot(bundle)])
        await site.until(lambda bundle=bundle: answers[-1] == bundle)
    stop.set()
    await asking
    assert "" not in answers


async def test_a_full_disk_keeps_no_serving_process_from_starting(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(agent.child.tempfile, "mkstemp", full)
    await site.supervisor.ensure([slot("one")])
    assert await site.ask() == "one"


async def test_asking_twice_for_the_same_is_one_act(site: Site) -> None:
    await site.supervisor.ensure([slot("one")])
    pid = site.supervisor.pid
    await asyncio.gather(*(site.supervisor.ensure([slot("one")]) for _ in range(3)))
    assert site.supervisor.pid == pid


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("fails", "the model is broken"), ("exits", "ended with 3"), ("hangs", "not ready")],
)
async def test_what_does_not_start_leaves_the_old_one_serving(
    site: Site, behaviour: str, reason: str
) -> None:
    await site.supervisor.ensure([slot("one")])
    site.supervisor._start_timeout_s = 1.0
    with pytest.raises(StartFailed, match=reason):
        await site.supervisor.ensure([slot("two", behaviour)])
    assert await site.ask() == "one"
    await site.supervisor.ensure([slot("one")])
    assert site.crashes == 0


async def test_a_killed_process_is_started_again(site: Site) -> None:
    await site.supervisor.ensure([slot("one")])
    pid = site.supervisor.pid
    assert pid is not None
    os.kill(pid, 9)
    assert await site.ask() == "one"
    await site.until(lambda: site.supervisor.pid not in (None, pid))
    assert (site.crashes, site.supervisor.restarts, site.messages) == (1, 1, [])


async def test_three_failures_in_a_row_are_reported(site: Site) -> None:
    await site.supervisor.ensure([slot("one", "crashes")])
    while not site.messages:
        _, writer = await asyncio.open_connection(*site.address)
        await asyncio.sleep(0.05)
        writer.close()
    assert site.crashes == 3
    await site.supervisor.ensure([slot("two")])
    # one of those who asked the broken one may still wait in the queue
    assert await site.ask() == "two"


async def test_answers_are_added_up_over_a_crash(site: Site) -> None:
    await site.supervisor.ensure([slot("one")])
    loop = asyncio.get_running_loop()

    def answered() -> int:
        return site.supervisor.live("reader", "one", loop.time()).answered

    for _ in range(3):
        await site.ask()
    await site.until(lambda: answered() == 3)
    pid = site.supervisor.pid
    assert pid is not None
    os.kill(pid, 9)
    for _ in range(2):
        await site.ask()
    await site.until(lambda: answered() == 5)
    assert site.supervisor.live("reader", "one", loop.time()).seconds > 0
    assert site.supervisor.live("reader", "other", loop.time()).answered == 0


async def test_a_process_that_does_not_drain_is_ended(site: Site) -> None:
    await site.supervisor.ensure([slot("one", "deaf")])
    pid = site.supervisor.pid
    assert pid is not None
    began = asyncio.get_running_loop().time()
    await site.supervisor.stop(0.3)
    assert asyncio.get_running_loop().time() - began < 3.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_no_configuration_file_is_left(site: Site, tmp_path: Path) -> None:
    await site.supervisor.ensure([slot("one")])
    await site.supervisor.ensure([slot("two")])
    assert list(tmp_path.glob(".serve-*")) == []


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"port {port} .* --port"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_said_so() -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        listen("203.0.113.1", 0)


def test_a_unix_socket_is_for_user_and_group_and_replaces_one_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    listen_unix(path).close()  # as after a power cut: the name is there, nobody listens
    with listen_unix(path) as listener:
        assert path.stat().st_mode & 0o777 == 0o660
        listener.listen(1)
        with pytest.raises(ConflictError, match="somebody does"):
            listen_unix(path)


def test_a_unix_socket_takes_no_files_place(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(ConflictError, match="something else is there"):
        listen_unix(path)
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="at most 107 bytes"):
        listen_unix(tmp_path / ("x" * 120))
    with pytest.raises(UsageError, match="correct http_socket"):
        listen_unix(tmp_path / "none" / "agent.sock")


async def test_nobody_takes_the_port_before_the_first_release_serves(site: Site) -> None:
    """Two agents that were given one port: the second is told at once, not the first at its first release."""
    with pytest.raises(ConflictError, match="in use"):
        listen("127.0.0.1", site.address[1])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(site.address)
    await site.supervisor.ensure([slot("one")])
    assert await site.ask() == "one"


async def test_connections_that_linger_do_not_keep_the_next_agent_from_the_port(site: Site) -> None:
    await site.supervisor.ensure([slot("one")])
    assert await site.ask() == "one"  # the server closes first, and waits for what is late
    await site.supervisor.stop(1.0)
    listen("127.0.0.1", site.address[1]).close()
