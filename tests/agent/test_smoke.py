"""The smoke run: a child process that says whether a release may be activated."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.serve_protocol import SmokeResult, smoke_command
from agent.smoke import smoke
from skerry.canonical import to_msgpack
from skerry.manifest import Golden, GoldenTensor
from tests.fakes.serving import ROOT, Release, images, linear_release


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return linear_release(tmp_path)


def run(release: Release) -> SmokeResult:
    slot = release.slot
    return smoke(Path(slot.model_file), Path(slot.manifest_file), release.golden_file, slot.variant)


def write_golden(release: Release, scores: np.ndarray, *, atol: float, disagree: float) -> None:
    rows = images(400, seed=99)[:8]
    golden = Golden(
        [GoldenTensor("image", "FP32", [8, 1, 4, 4], rows.tobytes())],
        [GoldenTensor("scores", "FP32", list(scores.shape), scores.tobytes())],
        max_disagree=disagree,
        atol=atol,
    )
    release.golden_file.write_bytes(to_msgpack(golden))


def wanted(release: Release) -> np.ndarray:
    return release.run(images(400, seed=99)[:8])


def test_a_good_release_passes_in_a_process_of_its_own(release: Release) -> None:
    slot = release.slot
    command = smoke_command(
        model=Path(slot.model_file),
        manifest=Path(slot.manifest_file),
        golden=release.golden_file,
        variant=slot.variant,
        cache_dir=release.golden_file.parent / "prepacked",
        memory_mb=1024,
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout, type=SmokeResult)
    assert (result.ok, result.code, result.rows, result.disagree) == (True, "ok", 8, 0.0)
    assert result.load_ms > 0
    assert result.run_us > 0


def test_a_process_without_memory_fails_and_harms_nobody(release: Release) -> None:
    slot = release.slot
    command = smoke_command(
        model=Path(slot.model_file), manifest=Path(slot.manifest_file),
        golden=release.golden_file, variant=slot.variant, memory_mb=1,
            cache_dir=release.golden_file.parent / "prepacked",
    )  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0


def test_other_values_than_the_golden_ones_are_a_mismatch(release: Release) -> None:
    write_golden(release, wanted(release) + np.float32(0.5), atol=0.1, disagree=0.0)
    result = run(release)
    assert (result.ok, result.code, result.disagree) == (False, "golden_mismatch", 0.0)
    assert result.max_diff == pytest.approx(0.5, abs=1e-3)
    assert "0.5 (at most 0.1)" in result.message


def test_other_predictions_are_a_mismatch_beyond_the_share_allowed(release: Release) -> None:
    scores = wanted(release)
    scores[0] = -scores[0]
    write_golden(release, scores, atol=1000.0, disagree=0.0)
    assert (run(release).code, run(release).disagree) == ("golden_mismatch", 1 / 8)
    write_golden(release, scores, atol=1000.0, disagree=0.2)
    assert run(release).ok


def test_a_nan_is_as_far_away_as_can_be(release: Release) -> None:
    scores = wanted(release)
    scores[0, 0] = np.nan
    write_golden(release, scores, atol=1000.0, disagree=1.0)
    result = run(release)
    assert result.code == "golden_mismatch"
    assert msgspec.json.decode(msgspec.json.encode(result), type=SmokeResult) == result


def test_another_shape_is_a_mismatch(release: Release) -> None:
    write_golden(release, wanted(release)[:, :2].copy(), atol=1000.0, disagree=1.0)
    assert run(release).code == "golden_mismatch"


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("model", b"damaged", "load_failed"),
        ("manifest", b"{}", "bad_files"),
        ("golden", b"\xc1", "bad_files"),
        ("golden", b"", "bad_files"),
    ],
)
def test_damaged_files_are_said_to_be_that(
    release: Release, file: str, content: bytes, code: str
) -> None:
    (release.golden_file.parent / file).write_bytes(content)
    result = run(release)
    assert (result.ok, result.code) == (False, code)
    assert result.message


def test_a_variant_that_the_manifest_lacks_is_refused(release: Release) -> None:
    slot = release.slot
    result = smoke(Path(slot.model_file), Path(slot.manifest_file), release.golden_file, "int8-npu")
    assert (result.code, "int8-npu" in result.message) == ("load_failed", True)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "agent.smoke", "--model", "m", "--manifest", "m", "--golden", "g", "--variant", "v"],
        ["-m", "agent.patch_child", "a", "b", "c", "sha256:" + "0" * 64, "1", "1"],
    ],
)
def test_what_an_update_tries_leaves_the_processor_to_what_serves(command: list[str]) -> None:
    """A hook that runs at the child's end says how nice it was."""
    hook = (
        "import atexit, os, runpy, sys; sys.argv = sys.argv[1:];"
        "atexit.register(lambda: print('nice', os.nice(0), file=sys.stderr));"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", hook, *command[1:]],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == f"nice {min(19, os.nice(0) + 10)}"
