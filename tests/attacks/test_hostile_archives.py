"""Files that attack who unpacks them. Rows 41 and 42 of the attack table."""

import gzip
import io
import os
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compiler import passes
from skerry.bundle import read_bundle, write_bundle
from skerry.canonical import to_json
from skerry.errors import FormatError, RefusedError
from tests.fakes.hostile import (
    good,
)
from tests.fakes.manifests import tiny_manifest

ROOT = Path(__file__).resolve().parents[2]


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises((RefusedError, FormatError)) as refused:
        act()
    assert len(str(refused.value)) > 20
    return refused.value.code


# --- row 41: larger than it looks ----------------------------------------------------------------


def test_row_41_a_sparse_model_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "sparse.onnx"
    file.write_bytes(good().SerializeToString())
    assert passes.load_graph(file).opset == 17
    os.truncate(file, 1 << 40)
    began, before = time.process_time(), _peak_kb()
    assert refusal(lambda: passes.load_graph(file)) == "model_too_large"
    assert time.process_time() - began < 1
    assert _peak_kb() - before < 64 << 10


def test_row_41_a_model_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert refusal(lambda: passes.load_graph(tmp_path / "pipe.onnx")) == "not_onnx"
    assert refusal(lambda: passes.load_graph(Path("/dev/zero"))) == "not_onnx"


def test_row_41_a_compressed_bundle_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert len(bomb) < 100_000
    assert code_of(bomb) == "bundle_tar"
    assert code_of(gzip.compress(packed())) == "bundle_tar"
    assert read_bundle(io.BytesIO(packed())).manifest.model == "reader"


@pytest.mark.parametrize("size", [1 << 33, (1 << 33) - 1, 1 << 25])
def test_row_41_a_file_in_a_bundle_that_claims_more_than_is_there(size: int) -> None:
    info = tarfile.TarInfo("oci-layout")
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    before = _peak_kb()
    assert code_of(header + b"x" * 2048, limit=1 << 40) in ("bundle_tar", "bundle_size")
    assert code_of(header + b"x" * 2048, limit=1 << 20) in ("bundle_tar", "bundle_size")
    assert _peak_kb() - before < 64 << 10


# --- row 42: archives that say more than files ---------------------------------------------------

LAYERS = {
    "model.onnx": b"m", "golden.msgpack": b"g", "baseline.msgpack": b"b", "evaluation.json": b"e",
    "card.md": b"c",
}  # fmt: skip
BLOB = "blobs/sha256/" + "a" * 64


def packed() -> bytes:
    out = io.BytesIO()
    write_bundle(out, to_json(tiny_manifest(LAYERS)), LAYERS)
    return out.getvalue()


def code_of(data: bytes, limit: int = 1 << 30) -> str:
    return refusal(lambda: read_bundle(io.BytesIO(data), limit_bytes=limit))


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", form: int = tarfile.USTAR_FORMAT
) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info.tobuf(form)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (entry("../../etc/cron.d/x"), "bundle_entry"),
        (entry("/etc/passwd"), "bundle_entry"),
        (entry("blobs/sha256/../../../x"), "format"),
        (entry(BLOB.upper()), "bundle_entry"),
        (entry("blobs/sha256/" + "A" * 64), "format"),
        (entry(BLOB, tarfile.SYMTYPE, "/etc/passwd"), "bundle_entry"),
        (entry(BLOB, tarfile.LNKTYPE, "index.json"), "bundle_entry"),
        (entry(BLOB, tarfile.REGTYPE, "index.json"), "bundle_entry"),
        (entry(BLOB, tarfile.DIRTYPE), "bundle_entry"),
        (entry(BLOB, tarfile.CHRTYPE), "bundle_entry"),
        (entry(BLOB, tarfile.BLKTYPE), "bundle_entry"),
        (entry(BLOB, tarfile.FIFOTYPE), "bundle_entry"),
        (entry(BLOB, tarfile.CONTTYPE), "bundle_entry"),
        (entry(BLOB, tarfile.GNUTYPE_SPARSE, form=tarfile.GNU_FORMAT), "bundle_entry"),
        (entry("x" * 150, form=tarfile.GNU_FORMAT), "bundle_entry"),
        (entry("é" * 60, form=tarfile.PAX_FORMAT), "bundle_entry"),
        (entry("index.json"), "bundle_entry"),
        (entry("oci-layout"), "bundle_entry"),
        (entry("readme.txt"), "bundle_entry"),
    ],
)
def test_row_42_an_archive_with_anything_but_its_own_files(header: bytes, code: str) -> None:
    whole = packed()
    assert read_bundle(io.BytesIO(whole)).manifest.model == "reader"
    end = whole.rstrip(b"\0")
    files = whole[: -(-len(end) // 512) * 512]
    assert code_of(files + header + bytes(1024)) == code


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_row_42_nothing_is_ever_written_to_a_name_from_an_archive() -> None:
    """No program of ours unpacks: names are looked up, contents are kept by digest."""
    sources = [
        p for name in ("agent", "compiler", "fleet", "skerry") for p in (ROOT / name).rglob("*.py")
    ]
    assert not [
        p for p in sources if "extractall" in p.read_text() or "unpack_archive" in p.read_text()
    ]
    command = [sys.executable, "-c", "import skerry.tar, sys; sys.exit('tarfile' in sys.modules)"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
