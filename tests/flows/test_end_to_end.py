"""Everything real, in small: a fleet, two devices, digits, a SIGKILL, and the account at the end."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.demo.traffic import MODEL, Traffic
from devices.demo.world import World, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples" / "digits"
DEVICES = ("harbour-01", "harbour-02")
PLAN = {
    "model": MODEL,
    "model_version": "1.0.0",
    "publisher": "acme",
    "slot": MODEL,
    "stages": [{"name": "all"}],
    "probation": {"min_answered": 20, "min_seconds": 0.5, "timeout_s": 20.0},
}


@pytest.fixture
def world() -> Iterator[World]:
    with World(DEVICES) as made:
        made.start_fleet()
        made.api.put("/policy", {"window_s": 1.0, "records": "all"})
        made.start_agents()
        yield made


def publish(world: World) -> None:
    """Build, sign and publish 1.0.0 as a publisher does, by commands."""
    out = world.root / "bundles"
    recipe = EXAMPLES / "reader-1.0.0.toml"
    built = json.loads(world.skerry("build", recipe, "--out", out, "--json"))
    fleet, signed = ("--fleet", world.run_info["api_url"]), out / "signed.json"
    key = world.keys / "publisher-acme.pem"
    world.skerry(
        "sign", built["bundle"], "--publisher", "acme", "--key", key, "--out", signed, *fleet
    )
    token = ("--token-file", world.data / "admin.token")
    world.skerry("publish", built["bundle"], signed, *fleet, *token)


def gate(world: World, version: str) -> dict[str, Any]:
    """Compare 1.1.0's model with a version that the fleet has, as a pipeline does."""
    said = world.skerry(
        "gate", EXAMPLES / "reader-1.1.0.toml", "--against", version, "--json",
        "--fleet", world.run_info["api_url"], "--token-file", world.data / "admin.token",
    )  # fmt: skip
    found: dict[str, Any] = json.loads(said)
    return found


def roll_out(world: World) -> dict[str, Any]:
    """Roll 1.0.0 out and return the rollout at its end."""
    identity = world.api.post("/rollouts", PLAN)["rollout_id"]

    def over() -> dict[str, Any] | None:
        found: dict[str, Any] = world.api.get(f"/rollouts/{identity}")
        return found if found["state"] in {"completed", "paused", "rolled_back"} else None

    ended: dict[str, Any] = wait_for("the end of the rollout", over, 90)
    return ended


def test_every_answer_is_counted_once_through_a_kill_of_device_and_broker(world: World) -> None:
    publish(world)
    for version in ("1.0.0", "latest"):
        found = gate(world, version)
        assert (found["in_service"], found["outcome"]) == ("1.0.0", "accepted")
        assert found["drop"] < 0  # it reads more digits
    urls = {device: agent.url for device, agent in world.agents.items()}
    traffic = Traffic(urls, EXAMPLES, seed=1, rate_hz=40)
    traffic.start()
    ended = roll_out(world)
    assert ended["state"] == "completed", ended["reason"]
    assert ended["devices_served"] == list(DEVICES)
    for assignment in ended["assignments"]:
        assert [step["state"] for step in assignment["steps"]][-2:] == ["probation", "committed"]

    over = traffic.burst("harbour-01", 3)
    status, _ = world.freeze_agent("harbour-01", lambda: traffic.in_flight("harbour-01"))
    world.kill_agent("harbour-01", (status["control_pid"], status["serve_pid"]))
    world.start_agent("harbour-01")
    broker = world.broker_pid()
    os.kill(broker, signal.SIGKILL)
    wait_for("a restarted broker", lambda: world.broker_pid() != broker, 30)
    time.sleep(2)
    over.set()
    traffic.stop()

    answered = set().union(*(book.answered for book in traffic.books.values()))

    def settled() -> bool:
        totals = world.api.get("/accounting")
        return bool(min(totals["distinct_ids"], totals["sketch_rows"]) >= len(answered))

    wait_for("every answer stored and sketched", settled, 60)
    totals = world.api.get("/accounting")
    stored = set(world.api.get("/predictions/ids?limit=50000")["ids"])
    assert answered <= stored
    assert totals["rows"] == totals["distinct_ids"] == totals["sketch_rows"] == len(stored)


def test_without_traffic_nothing_commits(world: World) -> None:
    publish(world)
    plan = PLAN | {"probation": {"min_answered": 20, "min_seconds": 0.5, "timeout_s": 2.0}}
    identity = world.api.post("/rollouts", plan)["rollout_id"]

    def over() -> dict[str, Any] | None:
        found: dict[str, Any] = world.api.get(f"/rollouts/{identity}")
        return found if found["state"] != "running" and found["state"] != "scheduled" else None

    ended = wait_for("the end of the rollout", over, 90)
    assert (ended["state"], ended["pause_reason"]) == ("paused", "insufficient_data")
    assert {a["state"] for a in ended["assignments"]} == {"rolled_back"}
    assert {a["code"] for a in ended["assignments"]} == {"insufficient_data"}
