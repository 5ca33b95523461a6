"""What the fleet may ask by a command, and what it may not."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import AgentConfig, Layout
from agent.facts import TakenBack
from agent.logs import JsonFile
from agent.orders import MAX_OUTPUT, Orders, with_remote
from agent.state import Database
from skerry.wire import Cmd, Result
from tests.fakes.assignments import SLOT, Bench, digest


class Desk:
    """Orders over a real database."""

    def __init__(self, root: Path, config: AgentConfig) -> None:
        self.layout, self.bench = Layout(root), Bench()
        self.database = Database(self.layout.database)
        self.reports, self.wishes, self.applied = 0, list[TakenBack](), list[AgentConfig]()
        self.orders = Orders(
            self.layout, self.database, config=config, state=lambda: self.bench.state,
            report=self._report, take_back=self.wishes.append, apply=self.applied.append,
        )  # fmt: skip

    def _report(self) -> None:
        self.reports += 1

    def run(self, verb: str, **args: str) -> Result:
        return self.orders.run(Cmd("c-1", verb, args))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    level = logging.getLogger().level
    desk = Desk(tmp_path, AgentConfig())
    yield desk
    desk.database.close()
    logging.getLogger().setLevel(level)


def test_settings_of_the_list_hold_at_once_or_from_the_next_start_on(desk: Desk) -> None:
    done = desk.run("config", health_s="60", poll_s="0.5")
    assert done.ok
    assert json.loads(done.output) == {"health_s": "now", "poll_s": "at the next start"}
    assert desk.applied[-1].health_s == 60.0
    assert desk.applied[-1].poll_s == AgentConfig().poll_s
    later = with_remote(AgentConfig(), desk.database)
    assert (later.health_s, later.poll_s) == (60.0, 0.5)
    assert json.loads(desk.run("config").output)["health_s"] == 60.0
    assert desk.run("config", log_level="warning").ok
    assert logging.getLogger().level == logging.WARNING


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("broker_url", "mqtt://elsewhere:1883", "set at the device alone"),
        ("consent", "auto", "set at the device alone"),
        ("remote_config", "true", "set at the device alone"),
        ("__class__", "x", "set at the device alone"),
        ("health_s", "0.1", "expected health_s of 5 to 3600"),
        ("health_s", "nan", "expected health_s of 5 to 3600"),
        ("batch_max_bytes", "1e5", "expected batch_max_bytes"),
        ("log_level", "noise", "expected log_level of debug"),
    ],
)
def test_everything_else_is_refused_and_nothing_of_it_holds(
    desk: Desk, name: str, value: str, why: str
) -> None:
    done = desk.run("config", poll_s="0.5", **{name: value})
    assert not done.ok
    assert why in done.output
    assert with_remote(AgentConfig(), desk.database) == AgentConfig()


def test_a_device_may_forbid_both(tmp_path: Path) -> None:
    own = AgentConfig(remote_config=False, remote_logs=False)
    desk = Desk(tmp_path, own)
    assert "remote_config = false" in desk.run("config", health_s="60").output
    assert "remote_logs = false" in desk.run("logs").output
    desk.database.put("remote_config", {"health_s": "60"})
    assert with_remote(own, desk.database) == own
    desk.database.close()


def test_a_setting_of_another_agent_is_left_out(desk: Desk) -> None:
    desk.database.put("remote_config", {"gone": "1", "health_s": "60"})
    assert with_remote(AgentConfig(), desk.database).health_s == 60.0


def test_the_log_goes_home_bounded_and_redacted(desk: Desk) -> None:
    log = logging.Logger("agent.test")  # noqa: LOG001 - of this test alone
    log.addHandler(JsonFile(desk.layout.logs))
    for number in range(300):
        log.info("line %d %s", number, "word " * 50)
    log.error("token=hunter2")
    done = desk.run("logs", lines="200")
    assert done.ok
    assert len(done.output) == MAX_OUTPUT
    assert done.output.endswith("token=[secret]")
    assert desk.run("logs", level="error").output.count("\n") == 0
    for args in ({"lines": "201"}, {"lines": "-1"}, {"lines": "²"}, {"path": "/etc/passwd"}):
        assert not desk.run("logs", **args).ok


def test_inventory_says_what_the_machine_has_left(desk: Desk) -> None:
    found = json.loads(desk.run("inventory").output)
    assert found["cpus"] >= 1
    assert found["memory_free_mb"] > 0
    assert found["disk_free_mb"] > 0


def test_a_slot_is_taken_back_and_strange_verbs_are_refused(desk: Desk) -> None:
    desk.bench.install(1, "a", 1)
    desk.bench.install(2, "b", 2)
    assert desk.run("rollback", slot=SLOT).ok
    assert [wish.bundle for wish in desk.wishes] == ["sha256:" + digest(2)]
    assert not desk.run("rollback", slot="other").ok
    assert "unknown verb" in desk.run("format_disk").output
    assert (desk.run("ping").output, desk.run("report").ok, desk.reports) == ("pong", True, 1)
