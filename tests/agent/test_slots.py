"""Slots: a name says that its content was whole, whenever the process is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.slots import Slots, hash_file, write_whole
from skerry.bundle import oci_manifest
from skerry.canonical import sha256, to_json
from skerry.errors import FormatError, NotFoundError
from tests.fakes.manifests import tiny_manifest

LAYERS = {
    "model.onnx": b"model", "golden.msgpack": b"golden", "baseline.msgpack": b"baseline",
    "evaluation.json": b"{}", "card.md": b"# card",
}  # fmt: skip


def fill(slots: Slots, model: bytes = b"model") -> str:
    """Put a bundle with all of its files; its digest."""
    layers = LAYERS | {"model.onnx": model}
    config = to_json(tiny_manifest(layers))
    oci = oci_manifest(config, layers)
    bundle = sha256(oci)
    slots.put_oci(bundle, oci)
    slots.put_manifest(bundle, config)
    for data in layers.values():
        write_whole(slots.path(bundle, sha256(data)), data)
    return bundle


def test_a_bundle_is_found_again(tmp_path: Path) -> None:
    bundle = fill(Slots(tmp_path))
    again = Slots(tmp_path)
    assert again.manifest(bundle).model == "reader"
    assert again.has(bundle, sha256(b"model"))
    again.check(bundle, "fp32-cpu")


def test_a_manifest_that_is_not_the_bundles_is_refused(tmp_path: Path) -> None:
    oci = oci_manifest(to_json(tiny_manifest(LAYERS)), LAYERS)
    with pytest.raises(FormatError, match="expected the manifest"):
        Slots(tmp_path).put_oci(sha256(b"other"), oci)


def test_a_damaged_file_is_found_and_removed(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    bundle = fill(slots)
    path = slots.path(bundle, sha256(b"model"))
    path.write_bytes(b"mOdel")
    with pytest.raises(FormatError, match="damaged"):
        slots.check(bundle, "fp32-cpu")
    assert not path.exists()
    with pytest.raises(NotFoundError, match="missing"):
        slots.check(bundle, "fp32-cpu")


@pytest.mark.parametrize("name", ["oci.json", "manifest.json"])
def test_a_damaged_manifest_is_found(tmp_path: Path, name: str) -> None:
    slots = Slots(tmp_path)
    bundle = fill(slots)
    file = slots.directory(bundle) / name
    file.write_bytes(file.read_bytes().replace(b"reader", b"reeder"))
    with pytest.raises(FormatError, match="damaged"):
        slots.manifest(bundle)


def test_an_unknown_variant_is_said_so(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    bundle = fill(slots)
    with pytest.raises(FormatError, match="fp32-cpu"):
        slots.check(bundle, "int4-npu")


def test_only_what_is_named_is_kept(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    first, second = fill(slots, b"one"), fill(slots, b"two")
    (tmp_path / "notes.txt").write_text("not ours")
    assert slots.keep_only([second]) == [first]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        [second.removeprefix("sha256:"), "notes.txt"]
    )


@pytest.mark.parametrize("digest", ["../../etc", "sha256:" + "A" * 64, "sha256:..", ""])
def test_a_name_that_is_no_digest_leads_nowhere(tmp_path: Path, digest: str) -> None:
    with pytest.raises(FormatError, match="expected a digest"):
        Slots(tmp_path).path("sha256:" + "0" * 64, digest)


WRITER = """
import sys
from pathlib import Path
from agent.slots import write_whole
path = Path(sys.argv[1])
for n in range(10_000):
    write_whole(path, bytes([n % 256]) * 200_000)
    print(n, flush=True)
"""


@pytest.mark.parametrize("pause_s", [0.0, 0.003, 0.011])
def test_a_kill_at_any_moment_leaves_an_old_file_or_a_new_one(
    tmp_path: Path, pause_s: float
) -> None:
    path = tmp_path / "file"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(pause_s)
        writer.send_signal(signal.SIGKILL)
    data = path.read_bytes()
    assert len(data) == 200_000
    assert len(set(data)) == 1
    assert hash_file(path) == sha256(data)
