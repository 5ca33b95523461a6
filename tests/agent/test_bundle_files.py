"""What is fetched of a bundle: only what fits, only what is needed, only what is listed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from agent.bundle_files import BundleFiles
from agent.config import AgentConfig
from agent.facts import Release
from agent.slots import Slots
from agent.smoke_run import smoke_run
from skerry.bundle import oci_manifest
from skerry.canonical import sha256, to_json
from skerry.errors import RefusedError, SkerryError, TrustError
from skerry.manifest import FileRef, Manifest
from skerry.profile import Inventory
from skerry.wire import ReleaseRef
from tests.fakes.http_files import FileServer
from tests.fakes.manifests import tiny_manifest

LAYERS = {
    "model.onnx": b"fp32 model", "small.onnx": b"int8 model", "golden.msgpack": b"golden",
    "baseline.msgpack": b"baseline", "evaluation.json": b"{}", "card.md": b"# card",
}  # fmt: skip
MINE = Inventory(
    agent="0.1.0", platform="linux-x86_64", isa=["avx2"], providers=["CPUExecutionProvider"]
)


def two_variants() -> Manifest:
    """First an int8 variant for processors with VNNI, then fp32 for any."""
    plain = tiny_manifest(LAYERS)
    small = FileRef(sha256(LAYERS["small.onnx"]), len(LAYERS["small.onnx"]))
    int8 = msgspec.structs.replace(
        plain.variants[0], id="int8-cpu", file=small, precision="int8",
        hw_classes=["linux-x86_64-vnni"],
    )  # fmt: skip
    return msgspec.structs.replace(plain, variants=[int8, *plain.variants])


class Place:
    """A registry that has one bundle, and the device's side of it."""

    def __init__(self, folder: Path, server: FileServer) -> None:
        self.folder, self.server = folder, server

    def offer(self, manifest: Manifest, layers: dict[str, bytes] = LAYERS) -> Release:
        config = to_json(manifest)
        oci = oci_manifest(config, layers)
        bundle = sha256(oci)
        self.server.files[f"/v2/reader/manifests/{bundle}"] = oci
        for data in (config, *layers.values()):
            self.server.files[f"/v2/reader/blobs/{sha256(data)}"] = data
        ref = ReleaseRef("reader", "1.0.0", bundle, "")
        return Release(ref, "models/acme/reader@1.0.0", len(oci), 1)

    def files(self, inventory: Inventory = MINE, **settings: float) -> BundleFiles:
        return BundleFiles(
            Slots(self.folder / "slots"),
            AgentConfig(disk_reserve_bytes=0, **settings),  # type: ignore[arg-type]
            fleet_url=self.server.url,
            ca_file=self.folder / "ca.crt",
            device_file=self.folder / "device.pem",
            inventory=inventory,
            cache_dir=self.folder / "prepacked",
        )

    def fetched(self) -> set[str]:
        names = {sha256(data): name for name, data in LAYERS.items()}
        asked = (path.rpartition("/")[2] for path, _ in self.server.requests)
        return {names[digest] for digest in asked if digest in names}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with FileServer() as server:
        yield Place(tmp_path, server)


async def test_only_what_the_chosen_variant_needs_is_fetched(place: Place) -> None:
    release, files = place.offer(two_variants()), place.files()
    manifest = await files.fetch_manifest(release)
    variants, reasons = files.fitting(manifest)
    assert variants == ["fp32-cpu"]
    assert reasons == ["int8-cpu: made for linux-x86_64-vnni; this device is linux-x86_64-avx2"]
    await files.fetch_variant(release, "fp32-cpu")
    assert place.fetched() == {"model.onnx", "golden.msgpack", "baseline.msgpack"}
    place.server.requests.clear()
    await files.fetch_manifest(release)
    await files.fetch_variant(release, "fp32-cpu")
    assert place.server.requests == []


def test_the_manifests_order_decides_among_those_that_fit(place: Place) -> None:
    vnni = msgspec.structs.replace(MINE, isa=["avx2", "vnni"])
    assert place.files(vnni).fitting(two_variants()) == (["int8-cpu", "fp32-cpu"], [])


def test_a_device_without_the_provider_or_too_old_has_no_variant(place: Place) -> None:
    for inventory in (
        msgspec.structs.replace(MINE, providers=[]),
        msgspec.structs.replace(MINE, agent="0.0.9"),
    ):
        variants, reasons = place.files(inventory).fitting(two_variants())
        assert variants == []
        assert len(reasons) == 2


def test_a_device_without_what_the_manifest_requires_has_no_variant(place: Place) -> None:
    manifest = msgspec.structs.replace(two_variants(), requires=["onnxruntime-extensions>=0.14"])
    variants, reasons = place.files().fitting(manifest)
    assert variants == []
    assert reasons[1].startswith("fp32-cpu: needs onnxruntime-extensions>=0.14; this device has")
    there = msgspec.structs.replace(MINE, extensions="0.15.2")
    assert place.files(there).fitting(manifest)[0] == ["fp32-cpu"]


async def test_a_manifest_with_other_bytes_is_refused(place: Place) -> None:
    release, files = place.offer(two_variants()), place.files()
    path = f"/v2/reader/manifests/{release.ref.bundle}"
    place.server.files[path] = place.server.files[path].replace(b"reader", b"reeder")
    with pytest.raises(TrustError) as caught:
        await files.fetch_manifest(release)
    assert caught.value.code == "digest_mismatch"


async def test_a_manifest_of_another_model_is_refused(place: Place) -> None:
    manifest = msgspec.structs.replace(two_variants(), model_version="2.0.0")
    with pytest.raises(TrustError) as caught:
        await place.files().fetch_manifest(place.offer(manifest))
    assert caught.value.code == "manifest_mismatch"


async def test_a_file_that_the_bundle_does_not_list_is_not_fetched(place: Place) -> None:
    stranger = b"stranger"
    manifest = msgspec.structs.replace(
        two_variants(), baseline=FileRef(sha256(stranger), len(stranger))
    )
    release, files = place.offer(manifest), place.files()
    await files.fetch_manifest(release)
    with pytest.raises(TrustError, match="does not list"):
        await files.fetch_variant(release, "fp32-cpu")


async def test_a_file_beyond_the_limit_is_not_fetched(place: Place) -> None:
    release, files = place.offer(two_variants()), place.files(download_max_bytes=4)
    await files.fetch_manifest(release)
    with pytest.raises(RefusedError, match="download_max_bytes"):
        await files.fetch_variant(release, "fp32-cpu")
    assert place.fetched() == set()


async def test_a_model_that_is_none_fails_its_smoke_run(place: Place) -> None:
    release, files = place.offer(two_variants()), place.files()
    await files.fetch_manifest(release)
    await files.fetch_variant(release, "fp32-cpu")
    result = await smoke_run(files, release, "fp32-cpu")
    assert not result.ok
    assert result.code in {"load_failed", "bad_files"}


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("import time; time.sleep(60)", "smoke_timeout"),
        ("import os; os.abort()", "smoke_crashed"),
        ("print('no result')", "smoke_crashed"),
    ],
)
async def test_whatever_a_smoke_run_does_is_a_result(
    place: Place, monkeypatch: pytest.MonkeyPatch, program: str, code: str
) -> None:
    release, files = place.offer(two_variants()), place.files(smoke_timeout_s=1.0)
    await files.fetch_manifest(release)
    await files.fetch_variant(release, "fp32-cpu")
    monkeypatch.setattr(
        "agent.smoke_run.smoke_command", lambda **_: [sys.executable, "-c", program]
    )
    result = await smoke_run(files, release, "fp32-cpu")
    assert (result.ok, result.code) == (False, code)


async def test_nothing_that_is_not_here_can_be_tried(place: Place) -> None:
    release = place.offer(two_variants())
    result = await smoke_run(place.files(), release, "fp32-cpu")
    assert (result.ok, result.code) == (False, "bad_files")
    with pytest.raises(SkerryError):
        place.files().serve_slot("reader", release)


async def test_the_outbox_keeps_its_room_beside_a_new_release(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = place.offer(two_variants())
    spool = place.folder / "spool"
    (spool / "boot").mkdir(parents=True)
    (spool / "boot" / "1.seg").write_bytes(bytes(4000))
    needed = sum(len(LAYERS[name]) for name in ("model.onnx", "golden.msgpack", "baseline.msgpack"))
    free = needed + 6000  # what the outbox has not used of its 10,000 bytes
    monkeypatch.setattr(
        "agent.room.shutil.disk_usage", lambda _: SimpleNamespace(free=free - missing)
    )
    for missing in (1, 0):
        files = place.files(spool_max_bytes=10_000)
        files._spool = spool
        await files.fetch_manifest(release)
        if missing:
            with pytest.raises(RefusedError, match="make room") as caught:
                await files.fetch_variant(release, "fp32-cpu")
            assert caught.value.code == "no_room"
            assert place.fetched() == set()
        else:
            await files.fetch_variant(release, "fp32-cpu")
