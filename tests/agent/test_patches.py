"""A patch saves bytes or is given up: whatever it is, the file that comes of it is the right one."""

import lzma
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import agent.patches
from agent.bundle_files import BundleFiles
from agent.config import AgentConfig
from agent.facts import Release
from agent.slots import Slots
from compiler.patch import make_patch
from skerry.bundle import oci_manifest
from skerry.canonical import sha256, to_json
from skerry.delta import COPY, NEW, PatchHead, filters
from skerry.errors import SkerryError, UnreachableError
from skerry.profile import Inventory
from skerry.trust import PatchRef
from skerry.wire import ReleaseRef
from tests.fakes.http_files import FileServer
from tests.fakes.manifests import tiny_manifest

RNG = np.random.default_rng(1)
OLD = RNG.bytes(400_000)
NEW_FILE = OLD[:100_000] + RNG.bytes(2_000) + OLD[101_000:]
MINE = Inventory(
    agent="0.1.0", platform="linux-x86_64", isa=["avx2"], providers=["CPUExecutionProvider"]
)
Usage = namedtuple("Usage", "total used free")


def good_patch() -> bytes:
    patch = make_patch(OLD, NEW_FILE)
    assert patch is not None
    return patch


PATCH = good_patch()


def lying(steps: bytes, **change: Any) -> bytes:
    """A patch with a right head, or nearly, and any instructions."""
    head = PatchHead(sha256(OLD), len(OLD), sha256(NEW_FILE), len(NEW_FILE), 16)
    body = lzma.compress(steps, lzma.FORMAT_RAW, filters=filters(16))
    return msgspec.structs.replace(head, **change).to_bytes() + body


class Device:
    """A device that runs 1.0.0 and is to run 1.1.0, and the place that has it."""

    def __init__(self, folder: Path, server: FileServer) -> None:
        self.slots, self.server = Slots(folder / "slots"), server
        self.folder = folder
        old = self.offer("1.0.0", OLD)
        self.bundle = self.release(PATCH).ref.bundle
        self.put(old, OLD)

    def offer(self, version: str, model: bytes) -> str:
        layers = {"model.onnx": model, "golden.msgpack": b"golden", "baseline.msgpack": b"baseline",
                  "evaluation.json": b"{}", "card.md": b"# card"}  # fmt: skip
        config = to_json(msgspec.structs.replace(tiny_manifest(layers), model_version=version))
        oci = oci_manifest(config, layers)
        self.server.files[f"/v2/reader/manifests/{sha256(oci)}"] = oci
        for data in (config, *layers.values()):
            self.server.files[self.address(data)] = data
        return sha256(oci)

    def address(self, data: bytes) -> str:
        return f"/v2/reader/blobs/{sha256(data)}"

    def put(self, bundle: str, data: bytes) -> None:
        self.slots.directory(bundle).mkdir(exist_ok=True)
        self.slots.path(bundle, sha256(data)).write_bytes(data)

    def release(self, patch: bytes, **change: Any) -> Release:
        """Offer 1.1.0 with a patch; `change` is what the signed record says otherwise."""
        bundle = self.offer("1.1.0", NEW_FILE)
        self.server.files[self.address(patch)] = patch
        ref = PatchRef(sha256(OLD), sha256(NEW_FILE), sha256(patch), len(patch))
        oci = self.server.files[f"/v2/reader/manifests/{bundle}"]
        return Release(
            ReleaseRef("reader", "1.1.0", bundle, ""), "models/acme/reader@1.1.0", len(oci), 2,
            patches=[msgspec.structs.replace(ref, **change)],
        )  # fmt: skip

    def files(self, **settings: Any) -> BundleFiles:
        return BundleFiles(
            self.slots, AgentConfig(**({"disk_reserve_bytes": 0} | settings)),
            fleet_url=self.server.url, ca_file=self.folder / "ca.crt",
            device_file=self.folder / "device.pem", inventory=MINE,
            cache_dir=self.folder / "prepacked",
        )  # fmt: skip

    async def update(self, release: Release, files: BundleFiles | None = None) -> BundleFiles:
        """Fetch what 1.1.0 needs; the model is right afterwards, and nothing else lies about."""
        files = files or self.files()
        await files.fetch_manifest(release)
        await files.fetch_variant(release, "fp32-cpu")
        assert self.target.read_bytes() == NEW_FILE
        left = {path.suffix for path in self.target.parent.iterdir()}
        assert left - {".json", ".tries"} == {""}, left
        return files

    @property
    def target(self) -> Path:
        return self.slots.path(self.bundle, sha256(NEW_FILE))

    def asked(self, data: bytes) -> list[str | None]:
        """The ranges that were asked for of a blob."""
        return [span for path, span in self.server.requests if path == self.address(data)]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with FileServer() as server:
        yield Device(tmp_path, server)


def counts(files: BundleFiles) -> tuple[int, int, int]:
    return files.patches.made, files.patches.failed, files.patches.saved_bytes


async def test_a_patch_takes_the_place_of_the_file(device: Device) -> None:
    files = await device.update(device.release(PATCH))
    assert device.asked(PATCH) == [None]
    assert device.asked(NEW_FILE) == []
    assert counts(files) == (1, 0, len(NEW_FILE) - len(PATCH))
    assert not device.slots.has(device.bundle, sha256(PATCH))
    device.server.requests.clear()
    await device.update(device.release(PATCH), files)
    assert device.server.requests == []


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"old": sha256(b"a file that is not here")}, {}),
        ({"new": sha256(b"another file of the release")}, {}),
        ({"size_bytes": len(NEW_FILE)}, {}),
        ({}, {"patches": False}),
    ],
)
async def test_a_patch_of_no_use_is_not_fetched(
    device: Device, change: dict[str, Any], settings: dict[str, Any]
) -> None:
    files = await device.update(device.release(PATCH, **change), device.files(**settings))
    assert device.asked(PATCH) == []
    assert device.asked(NEW_FILE) == [None]
    assert counts(files) == (0, 0, 0)


HOSTILE = {
    "no patch at all": b"x" * 500,
    "cut short": PATCH[:-5],
    "made for another file": lying(bytes([NEW, 1, 0]), old_size=len(OLD) - 1),
    "of another release": lying(bytes([NEW, 1, 0]), new=sha256(b"other")),
    "says that it makes a terabyte": lying(bytes([NEW, 1, 0]), new_size=1 << 40),
    "makes other bytes": lying(bytes([NEW]) + b"\xa8\xbc\x18" + bytes(401_000)),
    "reads beyond the old file": lying(bytes([COPY, 0]) + b"\xff" * 7 + b"\x01"),
    "a bomb": lying(bytes([NEW, 1]) + bytes(64 << 20)),
    "endless small steps": lying(bytes([COPY, 0, 1]) * 300_000),
}


@pytest.mark.parametrize("patch", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_patch_costs_its_bytes_and_nothing_else(
    device: Device, patch: bytes
) -> None:
    release = device.release(patch)
    files = await device.update(release)
    assert device.asked(patch) == [None]
    assert device.asked(NEW_FILE) == [None]
    assert counts(files) == (0, 1, 0)
    # somebody takes the file away: it is not tried again
    device.target.unlink()
    again = await device.update(release)
    assert len(device.asked(patch)) == 1
    assert counts(again) == (0, 0, 0)


async def test_a_patch_with_other_bytes_than_were_signed_is_not_read(device: Device) -> None:
    release = device.release(PATCH)
    device.server.files[device.address(PATCH)] = PATCH[:-1] + bytes([PATCH[-1] ^ 1])
    assert counts(await device.update(release)) == (0, 1, 0)
    device.target.unlink()
    device.target.with_name(device.target.name + ".tries").unlink()
    longer = device.release(PATCH)
    device.server.files[device.address(PATCH)] = PATCH + bytes(
        1000
    )  # it is cut where it should end
    assert counts(await device.update(longer)) == (1, 0, len(NEW_FILE) - len(PATCH))


async def test_a_patch_that_is_not_there_is_done_without(device: Device) -> None:
    release = device.release(PATCH)
    del device.server.files[device.address(PATCH)]
    assert counts(await device.update(release)) == (0, 1, 0)


async def test_a_damaged_old_file_is_found_out(device: Device) -> None:
    old = device.slots.holding(sha256(OLD))
    assert old is not None
    old.write_bytes(bytes([OLD[0] ^ 1]) + OLD[1:])
    assert counts(await device.update(device.release(PATCH))) == (0, 1, 0)


async def test_a_patch_goes_on_where_it_broke(device: Device) -> None:
    release, files = device.release(PATCH), device.files()
    await files.fetch_manifest(release)
    device.server.break_after = 700
    with pytest.raises(UnreachableError):
        await files.fetch_variant(release, "fp32-cpu")
    device.server.break_after = None
    await device.update(release, files)
    assert device.asked(PATCH) == [None, "bytes=700-"]
    assert counts(files)[:2] == (1, 0)


async def test_a_patch_that_never_comes_is_given_up(device: Device) -> None:
    release, files = device.release(PATCH), device.files()
    await files.fetch_manifest(release)
    device.server.break_after = 0
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await files.fetch_variant(release, "fp32-cpu")
    with pytest.raises(UnreachableError, match=sha256(NEW_FILE)):
        await files.fetch_variant(release, "fp32-cpu")
    device.server.break_after = None
    await device.update(release, files)
    assert counts(files) == (0, 1, 0)


async def test_a_child_that_takes_too_long_is_ended(device: Device) -> None:
    files = device.files(patch_timeout_s=0.001)
    assert counts(await device.update(device.release(PATCH), files)) == (0, 1, 0)


async def test_most_of_a_whole_file_is_not_thrown_away_for_a_patch(device: Device) -> None:
    release, files = device.release(PATCH), device.files()
    await files.fetch_manifest(release)
    part = device.target.with_name(device.target.name + ".part")
    part.write_bytes(NEW_FILE[: -len(PATCH) + 10])
    await device.update(release, files)
    assert device.asked(PATCH) == []
    assert device.asked(NEW_FILE) == [f"bytes={len(NEW_FILE) - len(PATCH) + 10}-"]


async def test_without_room_for_both_the_whole_file_comes(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = len(NEW_FILE) + len(PATCH)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 30, 0, free))
    assert counts(await device.update(device.release(PATCH)))[0] == 1  # it just fits
    device.target.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 30, 0, free - 1))
    assert counts(await device.update(device.release(PATCH))) == (0, 0, 0)


async def test_a_disk_that_is_full_after_all_leads_to_the_whole_file(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent.patches, "_note_try", full)
    assert counts(await device.update(device.release(PATCH))) == (0, 1, 0)


class Power(BaseException):
    """The machine goes down."""


@pytest.mark.parametrize("moment", ["_note_try", "_run", "hash_file", "fsync_dir", "_clean"])
@pytest.mark.parametrize("after", [False, True])
async def test_after_a_crash_at_any_moment_it_goes_on(
    device: Device, monkeypatch: pytest.MonkeyPatch, moment: str, after: bool
) -> None:
    place: Any = agent.patches.Patches if moment == "_clean" else agent.patches
    whole = getattr(place, moment)

    if moment == "_run":

        async def crash(*arguments: Any) -> None:
            if after:
                await whole(*arguments)
            raise Power

    else:

        def crash(*arguments: Any) -> None:  # type: ignore[misc]
            if after:
                whole(*arguments)
            raise Power

    release, files = device.release(PATCH), device.files()
    await files.fetch_manifest(release)
    with monkeypatch.context() as patched:
        patched.setattr(place, moment, crash)
        with pytest.raises(Power):
            await files.fetch_variant(release, "fp32-cpu")
    again = device.files()
    await again.fetch_variant(release, "fp32-cpu")
    assert device.target.read_bytes() == NEW_FILE
    assert device.asked(NEW_FILE) == []
    assert again.patches.failed == 0


async def test_what_takes_the_machine_down_twice_is_not_tried_a_third_time(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> None:
        raise Power

    release = device.release(PATCH)
    await device.files().fetch_manifest(release)
    with monkeypatch.context() as patched:
        patched.setattr(agent.patches, "_run", down)
        for _ in range(2):
            with pytest.raises(Power):
                await device.files().fetch_variant(release, "fp32-cpu")
        await device.files().fetch_variant(release, "fp32-cpu")
    assert device.asked(NEW_FILE) == [None]


async def test_the_child_cannot_write_more_or_other_bytes(tmp_path: Path) -> None:
    """Even told to, it stops at the size; and its own word is not taken for what it made."""
    for name, data in (("old", OLD), ("patch", PATCH)):
        (tmp_path / name).write_bytes(data)

    def command(size: int, digest: str) -> list[str]:
        paths = [str(tmp_path / name) for name in ("old", "patch", "out")]
        return [
            agent.patches.sys.executable,
            "-m",
            "agent.patch_child",
            *paths,
            digest,
            str(size),
            "30",
        ]

    await agent.patches._run(command(len(NEW_FILE), sha256(NEW_FILE)), 30)
    assert (tmp_path / "out").read_bytes() == NEW_FILE
    with pytest.raises(SkerryError, match="at most 1000 bytes"):
        await agent.patches._run(command(1000, sha256(NEW_FILE)), 30)
    with pytest.raises(SkerryError, match="expected a patch that makes"):
        await agent.patches._run(command(len(NEW_FILE), sha256(OLD)), 30)


async def test_a_child_that_outlived_its_parent_writes_to_nobodys_file(device: Device) -> None:
    """Control was killed while a child of its wrote; another begins anew, and the first goes on."""
    release, files = device.release(PATCH), device.files()
    await files.fetch_manifest(release)
    made = device.target.with_name(device.target.name + ".patched")
    with made.open("wb") as orphan:
        orphan.write(b"what ")
        orphan.flush()
        await device.update(release, files)
        orphan.write(b"it was told to write")
    assert counts(files)[:2] == (1, 0)
    assert device.target.read_bytes() == NEW_FILE


@pytest.mark.parametrize(
    ("deed", "ended"),
    [
        ("bytearray(400 << 20)", "out of memory"),
        ("[bytes(1000) for _ in iter(int, 1)]", "out of memory"),
        ("all(True for _ in iter(int, 1))", "signal 9"),
    ],
)
async def test_the_child_has_limits_of_its_own(tmp_path: Path, deed: str, ended: str) -> None:
    """Whatever a patch made of the decompressor, it is over before the device feels it."""
    for name in ("old", "patch"):
        (tmp_path / name).write_bytes(b"")
    program = (
        f"import agent.patch_child as c; c.apply_patch = lambda *a, **b: {deed}; exit(c.main())"
    )
    paths = [str(tmp_path / name) for name in ("old", "patch", "out")]
    command = [agent.patches.sys.executable, "-c", program, *paths, sha256(b""), "1", "1"]
    with pytest.raises(SkerryError, match=ended):
        await agent.patches._run(command, 30)
