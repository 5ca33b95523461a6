"""Labels from a camera's owner to the fleet: device, broker, fleet, and a SIGKILL in between."""

import os
import signal
import time
from collections import Counter
from typing import Any

import numpy as np

from devices.demo.traffic import MODEL, Traffic
from devices.demo.world import World, wait_for
from skerry.errors import SkerryError
from skerry.io.client import Client
from tests.flows.test_end_to_end import EXAMPLES, publish, roll_out

DEVICE = "harbour-01"
SHOTS = 150


def say(client: Client, number: int, label: int) -> str:
    """Tell a label, again and again until it is answered; what became of it."""

    def answer() -> str:
        try:
            return str(client.feedback(MODEL, f"shot-{number}", label))
        except SkerryError:
            return ""  # the device is just starting

    became: str = wait_for("an answer to a label", answer, 30)
    return became


def test_labels_reach_the_fleet_once_by_the_window_of_their_prediction() -> None:
    with World((DEVICE,)) as world:
        world.start_fleet()
        world.api.put("/policy", {"window_s": 1.0, "records": "none"})
        world.agent_settings = 'feedback_slots = ["*"]\n'
        world.start_agents()
        publish(world)
        url = world.agents[DEVICE].url
        traffic = Traffic({DEVICE: url}, EXAMPLES, seed=1, rate_hz=40)
        traffic.start()
        assert roll_out(world)["state"] == "completed"
        traffic.stop()
        with np.load(EXAMPLES / "evaluation.npz") as data:
            images, truth = data["image"][:SHOTS], data["label"][:SHOTS].tolist()
        began = time.time()
        with Client(url, timeout_s=20.0) as client:
            answers = [
                client.predict(MODEL, {"image": image[None]}, id=f"shot-{i}")
                for i, image in enumerate(images)
            ]
            said = [int(answer.outputs["probabilities"].argmax()) for answer in answers]
            ended = time.time()
            time.sleep(2.5)  # the windows of these predictions are gone by now
            became: Counter[str] = Counter()
            for i, label in enumerate(truth):
                if i == SHOTS // 2:  # acknowledged, and the newest counted nowhere yet
                    status = world.agent_status(DEVICE)
                    world.kill_agent(
                        DEVICE, [status[f"{name}_pid"] for name in ("control", "serve")]
                    )
                    world.start_agent(DEVICE)
                became[say(client, i, label)] += 1
            assert became["joined"] >= SHOTS - 1  # the answer to one may have been lost
            assert became["joined"] + became["duplicate"] == SHOTS
            assert {say(client, i, label) for i, label in enumerate(truth)} == {"duplicate"}

        def report() -> dict[str, Any] | None:
            found: dict[str, Any] = world.api.get(f"/labels?model={MODEL}")
            (release,) = found["releases"]
            return release if release["labelled"] >= SHOTS else None

        release = wait_for("every label in the fleet", report, 60)
        right = sum(map(int.__eq__, said, truth))
        assert (release["labelled"], release["accuracy"]) == (SHOTS, right / SHOTS)
        assert release["predicted"] >= SHOTS
        assert sum(window["labelled"] for window in release["windows"]) == SHOTS
        for window in release["windows"]:
            assert began - 1.0 <= window["start"] <= ended
            assert window["labelled"] <= window["predicted"]
        wrong = Counter((str(a), str(b)) for a, b in zip(said, truth, strict=True) if a != b)
        assert {(c["predicted"], c["label"]): c["n"] for c in release["confused"]} == wrong
        os.kill(world.broker_pid(), signal.SIGKILL)  # what was sent may be sent once more
        time.sleep(4)
        after = report()
        assert after is not None
        assert after["labelled"] == SHOTS
