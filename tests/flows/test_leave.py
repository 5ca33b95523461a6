"""Everything real, in small: a device that puts an update off until somebody says yes."""

from collections.abc import Iterator
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


def test_a_deferred_update_waits_and_is_no_failure(world: World) -> None:
    publish(world)
    state = world.agents[DEVICE].state
    world.agent_command("defer", "--state", state)
    rollout = world.api.post("/rollouts", PLAN)["rollout_id"]

    def look() -> dict[str, Any]:
        found: dict[str, Any] = world.api.get(f"/rollouts/{rollout}")
        return found

    def assignment() -> dict[str, Any]:
        (found,) = look()["assignments"] or [{}]
        return dict(found)

    wait_for("a device that waits", lambda: assignment().get("state") == "waiting_consent", 30)
    told = assignment()
    assert told["code"] == "deferred"
    assert "deferred on the device until" in told["message"]
    # what it measured of the release is known before anybody says yes
    assert [trial["code"] for trial in told["trials"]] == ["ok"] * len(told["trials"]) != []
    slot = world.agent_status(DEVICE)["slots"][PLAN["slot"]]
    assert (slot["doing"], slot["model"]) == ("waiting", None)

    world.agent_command("approve", "--state", state)
    with_traffic = Traffic({DEVICE: world.agents[DEVICE].url}, EXAMPLES, seed=1, rate_hz=40)
    with_traffic.start()
    wait_for("the end of the rollout", lambda: look()["state"] == "completed", 60)
    with_traffic.stop()
    steps = [step["state"] for step in assignment()["steps"]]
    assert steps[-5:] == ["staged", "waiting_consent", "activating", "probation", "committed"]
