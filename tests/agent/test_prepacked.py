"""Models prepacked for this CPU: the same answers, and never what is torn or does not fit."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from agent import prepacked
from agent.runtime import Model, prepack, read_manifest
from agent.smoke import smoke
from skerry.errors import RefusedError
from tests.fakes.serving import (
    Release,
    Serve,
    images,
    linear_release,
    listen,
    replace_golden,
    replace_model,
    wide_model,
)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    release = linear_release(tmp_path / "release")
    return replace_golden(replace_model(release, wide_model()))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "prepacked"


def load(release: Release, cache: Path | None) -> Model:
    manifest = read_manifest(Path(release.slot.manifest_file))
    return Model(Path(release.slot.model_file), manifest, "fp32-cpu", cache_dir=cache)


def place(
    cache: Path, digest: str, *, runtime: str = onnxruntime.__version__, threads: int = 1
) -> Path:
    return prepacked.place(cache, digest, runtime=runtime, threads=threads)


def pack(release: Release, cache: Path) -> Path:
    manifest = read_manifest(Path(release.slot.manifest_file))
    assert prepack(Path(release.slot.model_file), manifest, "fp32-cpu", cache, 1)
    return place(cache, manifest.variants[0].file.digest)


def test_a_prepacked_model_answers_as_its_own_file_does(release: Release, cache: Path) -> None:
    pack(release, cache)
    image = images(5)
    own, packed = load(release, None), load(release, cache)
    assert (own.prepacked, packed.prepacked) == (False, True)
    np.testing.assert_allclose(
        packed.run({"image": image})["scores"], own.run({"image": image})["scores"], rtol=1e-5
    )


def test_the_smoke_run_packs_and_tries_what_will_serve(release: Release, cache: Path) -> None:
    slot = release.slot
    result = smoke(
        Path(slot.model_file), Path(slot.manifest_file), release.golden_file, "fp32-cpu",
        cache_dir=cache,
    )  # fmt: skip
    assert result.ok, result.message
    assert load(release, cache).prepacked


def test_serve_starts_from_it(tmp_path: Path, release: Release, cache: Path) -> None:
    folder = pack(release, cache)
    opened = (folder / prepacked.WEIGHTS).resolve()
    with listen() as listener, Serve(tmp_path, listener, release, cache_dir=str(cache)) as serve:
        serve.start()
        maps = Path(f"/proc/{serve.process.pid}/maps").read_text()
        assert str(opened) in maps  # mapped, not copied


@pytest.mark.parametrize("damage", ["flip", "short", "graph", "seal", "missing"])
def test_what_is_damaged_is_removed_and_the_file_itself_serves(
    release: Release, cache: Path, damage: str
) -> None:
    folder = pack(release, cache)
    weights = folder / prepacked.WEIGHTS
    match damage:
        case "flip":
            data = bytearray(weights.read_bytes())
            data[len(data) // 2] ^= 1
            weights.write_bytes(data)
        case "short":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "graph":
            (folder / prepacked.GRAPH).write_bytes(b"")
        case "seal":
            (folder / "seal").write_bytes(b"{")
        case "missing":
            weights.unlink()
    assert not load(release, cache).prepacked
    if damage != "missing":
        assert not folder.exists()
    pack(release, cache)
    assert load(release, cache).prepacked


def test_what_onnxruntime_refuses_is_removed(release: Release, cache: Path) -> None:
    folder = pack(release, cache)
    whole = (folder / prepacked.WEIGHTS).read_bytes()

    def nonsense(part: Path) -> None:
        (part / prepacked.GRAPH).write_bytes(b"no graph")
        (part / prepacked.WEIGHTS).write_bytes(whole)

    assert prepacked.make(folder, nonsense)
    assert not load(release, cache).prepacked
    assert not folder.exists()


def test_another_cpu_runtime_or_number_of_threads_is_another_folder(
    release: Release, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pack(release, cache)
    digest = release.manifest.variants[0].file.digest
    assert place(cache, digest) == folder
    assert place(cache, digest, threads=2) != folder
    assert place(cache, digest, runtime="1.33.0") != folder
    monkeypatch.setattr(prepacked, "_cpu", lambda: "another")
    assert place(cache, digest) != folder
    assert not load(release, cache).prepacked


def test_nothing_is_left_where_it_cannot_be_made(
    release: Release, cache: Path, tmp_path: Path
) -> None:
    folder = place(cache, "sha256:" + "0" * 64)

    def full(part: Path) -> None:
        (part / prepacked.GRAPH).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    assert not prepacked.make(folder, full)
    assert list(cache.iterdir()) == []
    small = linear_release(tmp_path / "small")
    manifest = read_manifest(Path(small.slot.manifest_file))
    assert not prepack(Path(small.slot.model_file), manifest, "fp32-cpu", cache, 1)
    Path(release.slot.model_file).write_bytes(b"other bytes")
    with pytest.raises(RefusedError, match="it has others"):
        prepack(
            Path(release.slot.model_file), read_manifest(Path(release.slot.manifest_file)),
            "fp32-cpu", cache, 1,
        )  # fmt: skip


def test_only_models_that_are_kept_are_kept(release: Release, cache: Path) -> None:
    folder = pack(release, cache)
    other = place(cache, "sha256:" + "1" * 64)
    shutil.copytree(folder, other)
    (cache / ".part-torn").mkdir()
    prepacked.prune(cache, [release.manifest.variants[0].file.digest])
    assert list(cache.iterdir()) == [folder]
    prepacked.prune(cache, [])
    prepacked.prune(cache / "never made", [])
    assert list(cache.iterdir()) == []
