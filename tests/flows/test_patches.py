"""Updates by patches, everything real: a publisher's commands, a fleet, a device, and a fleet that lies."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from devices.demo.traffic import MODEL, Traffic
from devices.demo.world import World, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples" / "digits"
DEVICE = "harbour-01"


@pytest.fixture
def world() -> Iterator[World]:
    with World([DEVICE]) as made:
        made.start_fleet()
        made.api.put("/policy", {"window_s": 1.0, "records": "none"})
        made.start_agents()
        yield made


def fine_tuned(folder: Path, version: str, step: float) -> Path:
    """The demo's first model with its last layer moved a little, and a recipe for it."""
    model = onnx.load(EXAMPLES / "reader-1.0.0.onnx")
    last = min(model.graph.initializer, key=lambda tensor: abs(len(tensor.raw_data) - 32 * 10 * 4))
    values = numpy_helper.to_array(last)
    moved = values + np.float32(step) * np.random.default_rng(1).normal(size=values.shape)
    last.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), last.name))
    for file in EXAMPLES.glob("*.npz"):
        shutil.copy(file, folder)
    onnx.save(model, folder / f"reader-{version}.onnx")
    recipe = (EXAMPLES / "reader-1.0.0.toml").read_text().replace("1.0.0", version)
    (folder / "recipe.toml").write_text(recipe)
    return folder / "recipe.toml"


def publish(world: World, recipe: Path, *options: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Build, sign and publish; return what `sign` said, and which patches were handed over."""
    out = world.root / "bundles" / recipe.parent.name
    built = json.loads(world.skerry("build", recipe, "--out", out, "--json"))
    fleet = ("--fleet", world.run_info["api_url"])
    token = ("--token-file", world.data / "admin.token")
    said = json.loads(
        world.skerry(
            "sign", built["bundle"], "--publisher", "acme", "--key",
            world.keys / "publisher-acme.pem", "--out", out / "signed.json", *fleet, *token,
            *options, "--json",
        )
    )  # fmt: skip
    done = json.loads(
        world.skerry("publish", built["bundle"], out / "signed.json", *fleet, *token, "--json")
    )
    return said, done["patches"]


def roll_out(world: World, version: str) -> dict[str, Any]:
    """Roll a version out to the device and return what it says of itself afterwards."""
    plan = {
        "model": MODEL, "model_version": version, "publisher": "acme", "slot": MODEL,
        "stages": [{"name": "all"}],
        "probation": {"min_answered": 10, "min_seconds": 0.3, "timeout_s": 30.0},
    }  # fmt: skip
    identity = world.api.post("/rollouts", plan)["rollout_id"]

    def over() -> dict[str, Any] | None:
        found: dict[str, Any] = world.api.get(f"/rollouts/{identity}")
        return found if found["state"] in {"completed", "paused", "rolled_back"} else None

    ended = wait_for("the end of the rollout", over, 90)
    assert ended["state"] == "completed", ended["reason"]
    status: dict[str, Any] = wait_for(
        "a status of the device",
        lambda: (
            (found := world.agent_status(DEVICE))["slots"][MODEL]["model_version"] == version
            and found
        ),
        10,
    )
    return status


def test_a_device_fetches_the_difference_and_falls_back_where_the_fleet_lies(
    world: World, tmp_path: Path
) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    assert publish(world, fine_tuned(tmp_path / "first", "1.0.0", 0.0))[1] == []
    traffic = Traffic({DEVICE: world.agents[DEVICE].url}, EXAMPLES, seed=1, rate_hz=40)
    traffic.start()
    try:
        assert roll_out(world, "1.0.0")["patched"] == 0

        said, handed = publish(world, fine_tuned(tmp_path / "second", "1.0.1", 1e-4), "--patches")
        assert handed == [patch["digest"] for patch in said["patches"]]
        assert handed
        status = roll_out(world, "1.0.1")
        assert (status["patched"], status["patch_failed"]) == (1, 0)
        assert status["patch_saved_bytes"] > 5_000

        # a fleet that was taken over gives other bytes for a patch: the whole file comes
        said, handed = publish(world, fine_tuned(tmp_path / "third", "1.0.2", 2e-4), "--patches")
        for digest in handed:
            blob = world.data / "blobs" / "sha256" / digest.removeprefix("sha256:")
            blob.write_bytes(bytes(blob.stat().st_size))
        status = roll_out(world, "1.0.2")
        assert (status["patched"], status["patch_failed"]) == (1, 1)
    finally:
        traffic.stop()
