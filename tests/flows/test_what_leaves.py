"""Two devices of one fleet and one policy: what each lets go is what the fleet has, and no more."""

import contextlib
import math
import sqlite3
import time
import zlib
from typing import Any

import numpy as np

from devices.demo.traffic import MODEL, Traffic
from devices.demo.world import World, wait_for
from skerry.canonical import from_msgpack
from skerry.errors import SkerryError
from skerry.io.client import Client
from skerry.records import Aside
from skerry.sketch import Column
from skerry.tensors import from_raw
from tests.flows.test_end_to_end import EXAMPLES, publish, roll_out

OPEN, CLOSED = "harbour-01", "harbour-02"
SETTINGS = {
    OPEN: "record_inputs = true\n",
    CLOSED: 'record_inputs = true\nrecords = "sampled"\nsample_rate = 0.3\nwithheld = ["brightness"]\n',
}
FEATURES = ["brightness", "contrast", "sharpness"]
SHOTS = 120


def test_each_device_lets_go_what_both_sides_allow() -> None:
    with World((OPEN, CLOSED)) as world:
        world.start_fleet()
        world.api.put("/policy", {"window_s": 1.0, "records": "none"})
        world.start_agents()
        publish(world)
        urls = {device: agent.url for device, agent in world.agents.items()}
        traffic = Traffic(urls, EXAMPLES, seed=1, rate_hz=40)
        traffic.start()
        assert roll_out(world)["state"] == "completed"
        traffic.stop()
        for device, settings in SETTINGS.items():
            status = world.agent_status(device)
            world.kill_agent(device, [status["control_pid"], status["serve_pid"]])
            world.agent_settings = settings
            world.start_agent(device)
            with Client(urls[device], timeout_s=20.0) as client:
                wait_for("the device", lambda client=client: _is_ready(client), 30)
        asked = {"records": "sampled", "sample_rate": 0.6, "inputs": True, "hashed": ["contrast"]}
        world.api.put("/policy", asked)
        with np.load(EXAMPLES / "evaluation.npz") as data:
            images = data["image"][:SHOTS]

        for device in SETTINGS:
            wait_for("the policy", lambda device=device: _knows_the_policy(world, device), 30)
        began = time.time()
        for device, url in urls.items():
            with Client(url, timeout_s=20.0) as client:
                for i, image in enumerate(images):
                    client.predict(MODEL, {"image": image[None]}, id=f"{device}-shot-{i}")

        def chosen(device: str, share: float) -> set[str]:
            ids = [f"{device}-shot-{i}" for i in range(SHOTS)]
            return {id for id in ids if zlib.crc32(id.encode()) / 2**32 < share}

        expected = chosen(OPEN, 0.6) | chosen(CLOSED, 0.3)
        assert 0 < len(chosen(CLOSED, 0.3)) < len(chosen(OPEN, 0.6)) < SHOTS
        wait_for("what may leave in the fleet", lambda: expected <= set(_records(world)), 60)

        def windows_here() -> bool:
            return all(n >= SHOTS for n, _ in _windows(world, began).values())

        wait_for("every window in the fleet", windows_here, 60)
        records = _records(world)
        assert {id for id in records if "shot" in id} == expected
        light, contrast = FEATURES.index("brightness"), FEATURES.index("contrast")
        for id in expected:
            device, values, aside = records[id]
            assert aside is not None
            assert contrast in aside.hashed
            assert values[contrast] == int(values[contrast]) > 1
            # a hashed or withheld feature is made of the image: it stays whole
            assert aside.inputs == []
            assert (light in aside.withheld) is math.isnan(values[light]) is (device == CLOSED)
        columns = {device: names for device, (_, names) in _windows(world, began).items()}
        assert "contrast" not in columns[OPEN] | columns[CLOSED]
        assert "brightness" in columns[OPEN]
        assert "brightness" not in columns[CLOSED]

        world.api.put("/policy", {"hashed": [], "records": "all"})
        with Client(urls[OPEN], timeout_s=20.0) as client:

            def with_input() -> Aside | None:
                client.predict(MODEL, {"image": images[7][None]})
                found = [aside for _, _, aside in _records(world).values() if aside]
                return next((aside for aside in found if aside.inputs), None)

            aside = wait_for("a raw input in the fleet", with_input, 30)
        (tensor,) = aside.inputs
        taken = from_raw(tensor.data, tensor.datatype, tensor.shape)
        assert np.array_equal(taken, images[7][None])


def _is_ready(client: Client) -> bool:
    try:
        return client.ready(MODEL)
    except SkerryError:
        return False


def _knows_the_policy(world: World, device: str) -> bool:
    database = world.agents[device].state / "state.db"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found = connection.execute("select value from setting where name = 'policy'").fetchone()
    return found is not None and b"contrast" in found[0]


def _rows(world: World, query: str) -> list[Any]:
    file = f"file:{world.data / 'fleet.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True)) as connection:
        return connection.execute(query).fetchall()


def _records(world: World) -> dict[str, tuple[str, list[float], Aside | None]]:
    rows = _rows(world, "select request, device, features, aside from predictions")
    return {
        request: (
            device,
            from_msgpack(features, list[float]),
            None if aside is None else from_msgpack(aside, Aside),
        )
        for request, device, features, aside in rows
    }


def _windows(world: World, since: float) -> dict[str, tuple[int, set[str]]]:
    found: dict[str, tuple[int, set[str]]] = {OPEN: (0, set()), CLOSED: (0, set())}
    for device, n, packed in _rows(
        world, f"select device, n, columns from windows where start >= {int(since)}"
    ):
        total, names = found[device]
        found[device] = total + n, names | set(from_msgpack(packed, dict[str, Column]))
    return found
