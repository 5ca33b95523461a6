"""Two real variants in real children: the manifest promises one, the device measures the other."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.bundle_files import BundleFiles
from agent.config import AgentConfig
from agent.facts import Release, Stage
from agent.slots import Slots
from agent.staging import Staging
from agent.trials import Trials
from skerry.bundle import oci_manifest
from skerry.canonical import sha256, to_json
from skerry.errors import SkerryError
from skerry.manifest import FileRef
from skerry.profile import Inventory
from skerry.wire import ReleaseRef
from tests.fakes.http_files import FileServer
from tests.fakes.serving import CLASSES, linear_model, linear_release, save

DETOURS = 600


def slow_model() -> bytes:
    """What `linear_model` answers, by many products with the unit matrix."""
    weight = np.random.default_rng(0).normal(size=(16, len(CLASSES))).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["image"], ["flat0"], axis=1)]
    nodes += [
        helper.make_node("MatMul", [f"flat{n}", "unit"], [f"flat{n + 1}"]) for n in range(DETOURS)
    ]
    nodes.append(helper.make_node("MatMul", [f"flat{DETOURS}", "weight"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "detour",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(CLASSES)])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.eye(16, dtype=np.float32), "unit"),
        ],
    )
    return save(graph)


@pytest.mark.parametrize("wrong", [False, True])
async def test_the_variant_that_is_faster_here_is_taken(tmp_path: Path, wrong: bool) -> None:
    """Unless it is wrong: then it may be as fast as it likes."""
    made = linear_release(tmp_path / "made")
    files = {"promised": slow_model(), "other": linear_model(seed=7 if wrong else 0)}
    plain = made.manifest.variants[0]
    variants = [
        msgspec.structs.replace(plain, id=name, file=FileRef(sha256(data), len(data)))
        for name, data in files.items()
    ]
    config = to_json(msgspec.structs.replace(made.manifest, variants=variants))
    rest = {
        name: (tmp_path / "made" / name).read_bytes() for name in ("golden", "baseline", "empty")
    }
    layers = {**files, **rest}
    oci = oci_manifest(config, layers)
    release = Release(ReleaseRef("reader", "1.0.0", sha256(oci), ""), "t", len(oci), 1)
    inventory = Inventory(agent="0.1.0", providers=["CPUExecutionProvider"])
    with FileServer() as server:
        server.files[f"/v2/reader/manifests/{sha256(oci)}"] = oci
        for data in (config, *layers.values()):
            server.files[f"/v2/reader/blobs/{sha256(data)}"] = data
        bundles = BundleFiles(
            Slots(tmp_path / "slots"), AgentConfig(disk_reserve_bytes=0), fleet_url=server.url,
            ca_file=tmp_path / "ca", device_file=tmp_path / "device", inventory=inventory,
            cache_dir=tmp_path / "cache",
        )  # fmt: skip
        staging = Staging(bundles, Trials(tmp_path / "measured.json", inventory, 1))
        manifest = await bundles.fetch_manifest(release)
        order, _ = bundles.fitting(manifest)
        assert order == ["promised", "other"]
        await bundles.fetch_variant(release, "promised")

        async def fetch(variant: str) -> SkerryError | None:
            await bundles.fetch_variant(release, variant)
            return None

        effect = Stage("reader", "a-1", release, order[0], order[1:])
        best, found = await staging.run(effect, fetch)
    assert found["promised"].ok
    assert found["other"].ok is not wrong
    if wrong:
        assert found["other"].code == "golden_mismatch"
        assert best == "promised"
    else:
        assert found["promised"].run_us > 1.1 * found["other"].run_us
        assert best == "other"
