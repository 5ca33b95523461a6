"""The best variant is measured here, remembered, and shown again before it serves."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import agent.staging
from agent.bundle_files import BundleFiles
from agent.config import AgentConfig
from agent.facts import Release, Stage
from agent.serve_protocol import SmokeResult
from agent.slots import Slots
from agent.staging import Staging
from agent.trials import Trials, best_of
from skerry.bundle import oci_manifest
from skerry.canonical import sha256, to_json
from skerry.errors import SkerryError
from skerry.manifest import FileRef
from skerry.profile import Inventory
from skerry.wire import ReleaseRef
from tests.fakes.http_files import FileServer
from tests.fakes.manifests import tiny_manifest

VARIANTS = ["int8", "fp16", "fp32"]
LAYERS = {
    "model.onnx": b"fp32 model", "int8.onnx": b"int8", "fp16.onnx": b"fp16 model",
    "golden.msgpack": b"golden", "baseline.msgpack": b"baseline", "evaluation.json": b"{}",
    "card.md": b"# card",
}  # fmt: skip
HERE = Inventory(
    agent="0.1.0", platform="linux-x86_64", isa=["avx2"], onnxruntime="1.32.0",
    providers=["CPUExecutionProvider"],
)  # fmt: skip


def result(run_us: float, disagree: float = 0.0, code: str = "ok") -> SmokeResult:
    return SmokeResult(ok=code == "ok", code=code, message="", run_us=run_us, disagree=disagree)


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({"int8": result(100), "fp16": result(300), "fp32": result(200)}, "int8"),
        # measured, not promised
        ({"int8": result(400), "fp16": result(300), "fp32": result(200)}, "fp32"),
        # nearly as fast: the order decides, unless another one agrees better
        ({"int8": result(109), "fp16": result(300), "fp32": result(100)}, "int8"),
        ({"int8": result(109, 0.02), "fp16": result(300), "fp32": result(100)}, "fp32"),
        ({"int8": result(111), "fp16": result(300), "fp32": result(100)}, "fp32"),
        # what disagrees too much is not taken, however fast
        ({"int8": result(1, 0.5, "golden_mismatch"), "fp32": result(100)}, "fp32"),
        ({"fp32": result(100)}, "fp32"),
    ],
)
def test_the_fastest_that_agrees_is_the_best(found: dict[str, SmokeResult], best: str) -> None:
    assert best_of(VARIANTS, found) == best


class Site:
    """A registry with one release of three variants, and a device that tries them."""

    def __init__(
        self, folder: Path, server: FileServer, patch: pytest.MonkeyPatch, **settings: object
    ) -> None:
        self.folder, self.server = folder, server
        self.speed = {"int8": result(100.0), "fp16": result(300.0), "fp32": result(200.0)}
        self.runs: list[str] = []
        self.release = self._offer()
        self.device(**settings)
        patch.setattr(agent.staging, "smoke_run", self._smoke)

    def device(self, inventory: Inventory = HERE, **settings: object) -> None:
        """The device, or another one that takes over its disk."""
        self.files = BundleFiles(
            Slots(self.folder / "slots"),
            AgentConfig(disk_reserve_bytes=0, **settings),  # type: ignore[arg-type]
            fleet_url=self.server.url, ca_file=self.folder / "ca", inventory=inventory,
            device_file=self.folder / "device", cache_dir=self.folder / "cache",
        )  # fmt: skip
        self.staging = Staging(self.files, Trials(self.folder / "measured.json", inventory, 1))
        self.runs.clear()

    async def stage(self, order: list[str] | None = None) -> str:
        manifest = await self.files.fetch_manifest(self.release)
        first, *others = self.staging.order(manifest, order or VARIANTS)
        await self.files.fetch_variant(self.release, first)

        async def fetch(variant: str) -> SkerryError | None:
            try:
                await self.files.fetch_variant(self.release, variant)
            except SkerryError as error:
                return error
            return None

        effect = Stage("reader", "a-1", self.release, first, others)
        best, _ = await self.staging.run(effect, fetch)
        return best

    def here(self) -> set[str]:
        """The variants whose files are on the disk."""
        manifest = self.files.manifest(self.release.ref.bundle)
        bundle = self.release.ref.bundle
        return {v.id for v in manifest.variants if self.files.path(bundle, v.file).exists()}

    async def _smoke(self, _files: BundleFiles, _release: Release, variant: str) -> SmokeResult:
        await asyncio.sleep(0)
        assert variant in self.here()
        self.runs.append(variant)
        return self.speed[variant]

    def _offer(self) -> Release:
        plain = tiny_manifest(LAYERS)
        names = {"int8": "int8.onnx", "fp16": "fp16.onnx", "fp32": "model.onnx"}
        variants = [
            msgspec.structs.replace(
                plain.variants[0], id=id, file=FileRef(sha256(LAYERS[name]), len(LAYERS[name]))
            )
            for id, name in names.items()
        ]
        config = to_json(msgspec.structs.replace(plain, variants=variants))
        oci = oci_manifest(config, LAYERS)
        bundle = sha256(oci)
        self.server.files[f"/v2/reader/manifests/{bundle}"] = oci
        for data in (config, *LAYERS.values()):
            self.server.files[f"/v2/reader/blobs/{sha256(data)}"] = data
        return Release(ReleaseRef("reader", "1.0.0", bundle, ""), "t", len(oci), 1)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with FileServer() as server:
        yield Site(tmp_path, server, monkeypatch)


async def test_every_variant_is_tried_and_only_the_best_is_kept(site: Site) -> None:
    site.speed["fp16"] = result(50.0)
    assert await site.stage() == "fp16"
    assert site.runs == VARIANTS
    assert site.here() == {"fp16"}


async def test_what_lost_here_is_not_fetched_again_and_what_won_runs_again(site: Site) -> None:
    site.speed["fp16"] = result(50.0)
    await site.stage()
    site.device()
    site.server.requests.clear()
    assert await site.stage() == "fp16"
    assert site.runs == ["fp16"]
    assert site.server.requests == []


async def test_another_runtime_or_processor_is_measured_anew(site: Site) -> None:
    await site.stage()
    for change in ({"onnxruntime": "1.33.0"}, {"isa": ["avx2", "vnni"]}):
        site.device(msgspec.structs.replace(HERE, **change))
        await site.stage()
        assert site.runs == VARIANTS


async def test_what_was_best_once_and_fails_now_gives_way(site: Site) -> None:
    site.speed["fp16"] = result(50.0)
    await site.stage()
    site.device()
    # the machine has tried fp16 first, and it failed: the others are left
    site.speed["fp16"] = result(50.0, 1.0, "golden_mismatch")
    assert await site.stage() == "fp16"
    assert await site.stage(["int8", "fp32"]) == "int8"


async def test_a_remembered_best_that_is_not_the_first_shows_it_again(site: Site) -> None:
    site.speed["fp16"] = result(50.0)
    await site.stage()
    site.device()
    site.staging.order = lambda _, variants: variants  # type: ignore[method-assign]
    assert await site.stage() == "fp16"
    assert site.runs == ["int8", "fp16"]
    site.device()
    site.staging.order = lambda _, variants: variants  # type: ignore[method-assign]
    site.speed["fp16"] = result(50.0, 1.0, "golden_mismatch")
    assert await site.stage() == "int8"
    assert site.here() == {"int8"}


async def test_a_variant_that_cannot_be_had_holds_nothing_up(site: Site) -> None:
    del site.server.files[f"/v2/reader/blobs/{sha256(LAYERS['fp16.onnx'])}"]
    site.speed["fp16"] = result(1.0)
    assert await site.stage() == "int8"
    assert site.runs == ["int8", "fp32"]


@pytest.mark.parametrize("setting", [{"measure_variants": False}, {"measure_max_bytes": 3}])
async def test_who_does_not_want_to_fetch_more_tries_the_first_alone(
    site: Site, setting: dict[str, object]
) -> None:
    site.device(**setting)  # type: ignore[arg-type]
    site.speed["fp16"] = result(1.0)
    assert await site.stage() == "int8"
    assert site.runs == ["int8"]
    assert site.here() == {"int8"}


async def test_a_first_variant_that_fails_is_the_machines_business(site: Site) -> None:
    site.speed["int8"] = result(1.0, 1.0, "golden_mismatch")
    assert await site.stage() == "int8"
    assert site.runs == ["int8"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"found": 3}'])
async def test_a_damaged_memory_is_an_empty_one(site: Site, damage: bytes) -> None:
    await site.stage()
    (site.folder / "measured.json").write_bytes(damage)
    site.device()
    await site.stage()
    assert site.runs == VARIANTS


def test_the_memory_is_bounded(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "measured.json", HERE, 1)
    for number in range(300):
        trials.note(f"m{number}", "g", result(1.0))
    again = Trials(tmp_path / "measured.json", HERE, 1)
    assert again.recall("m43", "g") is None
    assert again.recall("m44", "g") is not None
