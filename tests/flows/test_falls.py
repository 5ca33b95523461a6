"""Everything real, in small: a device that goes down again and again, and one whose disk rots."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.demo.traffic import Traffic
from devices.demo.world import World, wait_for
from tests.flows.test_end_to_end import EXAMPLES, PLAN, publish

DEVICE = "harbour-01"


@pytest.fixture
def world() -> Iterator[World]:
    with World([DEVICE]) as made:
        made.start_fleet()
        made.api.put("/policy", {"window_s": 1.0})
        made.start_agents()
        yield made


def publish_next(world: World) -> None:
    """Build, sign and publish 1.1.0."""
    out = world.root / "bundles"
    built = json.loads(
        world.skerry("build", EXAMPLES / "reader-1.1.0.toml", "--out", out, "--json")
    )
    fleet, signed = ("--fleet", world.run_info["api_url"]), out / "signed-next.json"
    key = world.keys / "publisher-acme.pem"
    world.skerry(
        "sign", built["bundle"], "--publisher", "acme", "--key", key, "--out", signed, *fleet
    )
    token = ("--token-file", world.data / "admin.token")
    world.skerry("publish", built["bundle"], signed, *fleet, *token)


def assignment(world: World, rollout: str) -> dict[str, Any]:
    found = world.api.get(f"/rollouts/{rollout}")["assignments"]
    return dict(found[0]) if found else {}


def alive(world: World) -> list[int]:
    """The device's processes; what it says of them may be a second old."""

    def look() -> list[int] | None:
        status = world.agent_status(DEVICE)
        pids = [status["control_pid"], status["serve_pid"]]
        return pids if all(pid and Path(f"/proc/{pid}/fd").exists() for pid in pids) else None

    found: list[int] = wait_for("a device with both processes", look, 30)
    return found


def go_down(world: World) -> None:
    """The device loses its power, and gets it back."""
    pids = alive(world)
    world.kill_agent(DEVICE, pids)
    world.start_agent(DEVICE)

    def up() -> bool:
        now = world.agent_status(DEVICE)
        return bool(now["serve_pid"] and now["serve_pid"] not in pids)

    wait_for("a device that serves again", up, 30)


def served(world: World) -> str:
    """The version that answers, as the endpoint itself says; nothing, if nobody answers."""
    address = f"{world.agents[DEVICE].url}/v2/models/{PLAN['model']}"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            versions: list[str] = json.load(answer)["versions"]
    except OSError:
        return ""
    return versions[0]


def test_a_device_that_falls_is_caught(world: World) -> None:
    publish(world)
    traffic = Traffic({DEVICE: world.agents[DEVICE].url}, EXAMPLES, seed=1, rate_hz=40)
    traffic.start()
    first = world.api.post("/rollouts", PLAN)["rollout_id"]
    wait_for("1.0.0", lambda: assignment(world, first).get("state") == "committed", 60)
    traffic.stop()

    # without traffic 1.1.0 stays in probation, and the device goes down in it three times
    publish_next(world)
    plan = PLAN | {"model_version": "1.1.0", "probation": {"min_answered": 20, "timeout_s": 600.0}}
    second = world.api.post("/rollouts", plan)["rollout_id"]
    wait_for("probation", lambda: assignment(world, second).get("state") == "probation", 60)
    for _ in range(2):
        go_down(world)
        assert world.agent_status(DEVICE)["slots"][PLAN["slot"]]["doing"] == "probation"
    go_down(world)
    wait_for("its end", lambda: assignment(world, second).get("state") == "rolled_back", 30)
    assert assignment(world, second)["code"] == "serve_crashed"
    wait_for("1.0.0 again", lambda: served(world) == "1.0.0", 30)

    # the disk rots under the database
    world.kill_agent(DEVICE, alive(world))
    database = world.agents[DEVICE].state / "state.db"
    for file in (database, database.with_name("state.db-wal")):
        file.write_bytes(b"rot" * 5000)
    world.start_agent(DEVICE)
    wait_for("a device that serves", lambda: served(world), 30)
    assert served(world) == "1.0.0"
    assert database.with_name("state.db.damaged").exists()

    # and it takes updates as before
    traffic = Traffic({DEVICE: world.agents[DEVICE].url}, EXAMPLES, seed=2, rate_hz=40)
    traffic.start()
    third = world.api.post("/rollouts", plan)["rollout_id"]
    wait_for("1.1.0", lambda: assignment(world, third).get("state") == "committed", 60)
    traffic.stop()
    assert served(world) == "1.1.0"
