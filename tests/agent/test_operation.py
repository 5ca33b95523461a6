"""A real agent is stopped under load, asked by commands, and taken back by people beside it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
import uuid
from pathlib import Path

import pytest

from agent.__main__ import main
from skerry.io.client import Client
from skerry.wire import Cmd, Policy, Probation
from tests.agent.test_control import DEVICE, Agent, agent, central  # noqa: F401 - fixtures
from tests.fakes.central import Central
from tests.fakes.serving import images

AT_ONCE = Probation(min_answered=0, min_seconds=0.0)
STOP_S = 5.0


class Load(threading.Thread):
    """Asks on one connection until it breaks; notes every answer's status."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port, self.answered, self.statuses = port, list[str](), set[int]()

    def run(self) -> None:
        row = images(1)[0].ravel().tolist()
        shape = [1, *images(1).shape[1:]]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            while True:
                id = uuid.uuid4().hex
                tensor = {"name": "image", "datatype": "FP32", "shape": shape, "data": row}
                body = json.dumps({"id": id, "inputs": [tensor]})
                connection.request("POST", "/v2/models/reader/infer", body)
                answer = connection.getresponse()
                answer.read()
                self.statuses.add(answer.status)
                if answer.status == 200:
                    self.answered.append(id)
        except (OSError, http.client.HTTPException):
            return  # refused or closed without an answer: not accepted, the caller asks again
        finally:
            connection.close()


async def test_a_stop_under_load_takes_five_seconds_at_most_and_loses_nothing(
    central: Central,  # noqa: F811
    agent: Agent,  # noqa: F811
) -> None:
    await central.until(lambda: central.hellos)
    central.set_policy(Policy(version=1, window_s=1.0, records="all"))
    central.desire(DEVICE, central.publish("1.0.0"), "a-1", AT_ONCE)
    await central.until(lambda: central.state("a-1") == "committed")
    load = [Load(agent.port) for _ in range(8)]
    for one in load:
        one.start()
    await central.until(lambda: sum(len(one.answered) for one in load) > 500)
    assert agent.process is not None
    began = time.monotonic()
    agent.process.terminate()
    code = await asyncio.to_thread(agent.process.wait, 20)
    took = time.monotonic() - began
    for one in load:
        await asyncio.to_thread(one.join, 10)
    assert (code, took < STOP_S) == (0, True), (took, agent.log())
    # nothing that was accepted was answered with a failure
    assert set().union(*(one.statuses for one in load)) == {200}
    agent.start()
    answered = sorted(id for one in load for id in one.answered)
    await central.until(lambda: set(answered) <= set(central.ids), timeout_s=60.0)
    assert len(central.ids) == len(set(central.ids))


async def test_the_service_manager_hears_the_whole_life(
    central: Central,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        agent = Agent(tmp_path)
        enrol = ["enroll", "--state", str(agent.state), "--token", central.token(DEVICE)]
        await asyncio.to_thread(main, enrol)
        agent.start()
        heard = list[str]()

        def hears(what: str) -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.extend(manager.recv(4096).decode().splitlines())
            return any(line.startswith(what) for line in heard)

        try:
            await central.until(lambda: hears("READY=1"))
            await central.until(lambda: hears("WATCHDOG=1"))
            await central.until(lambda: hears(f"STATUS=serves nothing at {agent.url}, connected"))
        finally:
            assert await asyncio.to_thread(agent.stop) == 0
        assert hears("STOPPING=1")
        assert heard.index("READY=1") < heard.index("WATCHDOG=1") < heard.index("STOPPING=1")


async def test_the_fleet_asks_and_people_take_back(
    central: Central,  # noqa: F811
    agent: Agent,  # noqa: F811
) -> None:
    await central.until(lambda: central.hellos)
    for number, version in enumerate(("1.0.0", "1.1.0"), 1):
        release = central.publish(version, seed=number)
        central.desire(DEVICE, release, f"a-{number}", AT_ONCE)
        await central.until(lambda id=f"a-{number}": central.state(id) == "committed")  # type: ignore[misc]
    asked = [
        Cmd("c-1", "config", {"health_s": "7", "news_s": "60"}),
        Cmd("c-2", "config", {"broker_url": "mqtt://elsewhere"}),
        Cmd("c-3", "logs", {"lines": "20"}),
        Cmd("c-4", "inventory"),
    ]
    for command in asked:
        central.command(DEVICE, command)
    await central.until(lambda: len(central.results) == len(asked))
    found = central.results
    assert [found[f"c-{n}"].ok for n in range(1, 5)] == [True, False, True, True]
    assert "agent" in found["c-3"].output
    assert json.loads(found["c-4"].output)["memory_free_mb"] > 0

    state = ["--state", str(agent.state)]
    assert await asyncio.to_thread(main, ["rollback", "reader", *state]) == 0
    await central.until(lambda: served(central) == "1.0.0")
    async with asyncio.timeout(20.0):  # until the swap is done, the release before answers
        while await asyncio.to_thread(answered_by, agent.url) != "1.0.0":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    # there is nothing before it, and it says so
    assert await asyncio.to_thread(main, ["rollback", "reader", *state]) == 4
    # a restart keeps both: what serves, and what the fleet has set
    assert await asyncio.to_thread(agent.stop) == 0
    agent.start()
    await asked_again(central, Cmd("c-5", "config"))
    shown = json.loads(central.results["c-5"].output)
    assert (shown["health_s"], shown["news_s"]) == (7.0, 60.0)
    assert served(central) == "1.0.0"
    lines = await asyncio.to_thread(log_lines, agent.state)
    assert any("stopping" in line["text"] for line in lines)


def answered_by(url: str) -> str:
    with Client(url) as client:
        return client.predict("reader", {"image": images(1)}).model_version


def served(central: Central) -> str:  # noqa: F811
    slot = central.reported.slots.get("reader") if central.reported else None
    return slot.model_version if slot else ""


async def asked_again(central: Central, command: Cmd) -> None:  # noqa: F811
    """Ask until the device, which may not be connected yet, has answered; it does so once."""
    while command.id not in central.results:
        central.command(DEVICE, command)
        await asyncio.sleep(0.2)


def log_lines(state: Path) -> list[dict[str, str]]:
    text = (state / "logs" / "agent.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
