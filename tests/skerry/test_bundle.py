"""A bundle is the same bytes for the same content, and anything else is refused."""

import io
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skerry.bundle import (
    ARTIFACT_TYPE,
    MAX_FILES,
    Bundle,
    oci_manifest,
    parse_oci_manifest,
    read_bundle,
    write_bundle,
)
from skerry.canonical import sha256, to_json
from skerry.errors import FormatError
from tests.fakes.manifests import tiny_manifest

VECTOR = Path(__file__).resolve().parents[1] / "vectors" / "bundle-v1.tar"
VECTOR_DIGEST = "sha256:a205587761e87ede6ef941e4b58e080a0861176c663d2bb81fe5dd878dc68454"
LAYERS = {
    "baseline.msgpack": b"the baseline",
    "card.md": b"# A card\n",
    "evaluation.json": b"{}",
    "golden.msgpack": b"the golden set",
    "model.onnx": bytes(range(256)) * 4,
}
CONFIG = to_json(tiny_manifest(LAYERS))

Entry = tuple[tarfile.TarInfo, bytes]


def packed(config: bytes = CONFIG, layers: dict[str, bytes] = LAYERS) -> bytes:
    out = io.BytesIO()
    write_bundle(out, config, layers)
    return out.getvalue()


def read(data: bytes, **limits: int) -> Bundle:
    return read_bundle(io.BytesIO(data), **limits)


def entries(data: bytes) -> list[Entry]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]


def repacked(items: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in items:
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_bundle_comes_back_as_it_was_written() -> None:
    bundle = read(packed())
    assert bundle.manifest == tiny_manifest(LAYERS)
    assert bundle.config == CONFIG
    assert bundle.digest == sha256(bundle.oci)
    assert bundle.blobs == {sha256(data): data for data in LAYERS.values()}


def test_the_order_of_the_layers_makes_no_difference() -> None:
    assert packed(layers=dict(reversed(LAYERS.items()))) == packed()


def test_equal_layers_are_stored_once() -> None:
    twice = LAYERS | {"again.onnx": LAYERS["model.onnx"]}
    assert len(entries(packed(layers=twice))) == len(entries(packed()))
    assert len(parse_oci_manifest(read(packed(layers=twice)).oci).layers) == len(LAYERS) + 1


def test_frozen_bytes_still_read_and_are_still_written() -> None:
    frozen = VECTOR.read_bytes()
    assert packed() == frozen
    assert read(frozen).digest == VECTOR_DIGEST


def test_it_is_an_oci_image_layout() -> None:
    files = {info.name: data for info, data in entries(packed())}
    assert files["oci-layout"] == b'{"imageLayoutVersion":"1.0.0"}'
    index = msgspec.json.decode(files["index.json"])
    top = index["manifests"][0]
    assert top["artifactType"] == ARTIFACT_TYPE
    oci = msgspec.json.decode(files["blobs/sha256/" + top["digest"][7:]])
    assert oci["schemaVersion"] == 2
    for descriptor in (oci["config"], *oci["layers"]):
        data = files["blobs/sha256/" + descriptor["digest"][7:]]
        assert (len(data), sha256(data)) == (descriptor["size"], descriptor["digest"])


@given(st.integers(0, len(packed()) * 8 - 1))
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_is_refused_or_makes_no_difference(bit: int) -> None:
    data = bytearray(packed())
    data[bit // 8] ^= 1 << bit % 8
    with suppress(FormatError):
        assert read(bytes(data)) == read(packed())


@given(st.integers(0, len(packed()) - 1))
@settings(max_examples=100, deadline=None)
def test_any_bundle_cut_short_is_refused_or_makes_no_difference(length: int) -> None:
    with suppress(FormatError):
        assert read(packed()[:length]) == read(packed())


@given(st.binary(max_size=2000))
@example(b"")
@example(b"\x1f\x8b" + b"\0" * 600)
@example(b"\0" * 10240)
@settings(deadline=None)
def test_other_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(FormatError):
        read(data)


# --- whole tars, but not bundles -------------------------------------------------------


def without(name: str) -> Callable[[list[Entry]], list[Entry]]:
    return lambda items: [e for e in items if not e[0].name.startswith(name)]


def added(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> Callable[[list[Entry]], list[Entry]]:
    def change(items: list[Entry]) -> list[Entry]:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return [*items, (info, data if kind == tarfile.REGTYPE else b"")]

    return change


def replaced(name: str, data: bytes) -> Callable[[list[Entry]], list[Entry]]:
    return lambda items: [(i, data if i.name == name else d) for i, d in items]


BLOB = "blobs/sha256/" + "a" * 64


@pytest.mark.parametrize(
    "change",
    [
        without("oci-layout"),
        without("index.json"),
        without("blobs/sha256/" + sha256(LAYERS["model.onnx"])[7:]),
        without("blobs/"),
        added("../../etc/passwd"),
        added("/etc/passwd"),
        added("blobs/sha256/../../x"),
        added("readme.txt"),
        added(BLOB),
        added(BLOB, kind=tarfile.SYMTYPE, link="/etc/passwd"),
        added(BLOB, kind=tarfile.LNKTYPE, link="index.json"),
        added(BLOB, kind=tarfile.DIRTYPE),
        added(BLOB, kind=tarfile.FIFOTYPE),
        added(BLOB, kind=tarfile.CHRTYPE),
        added("index.json", b"{}"),
        added("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        replaced("oci-layout", b"{}"),
        replaced("index.json", b"{}"),
        replaced("index.json", b"[" * 100_000),
        replaced("index.json", b'{"schemaVersion":2,"mediaType":"x","manifests":[]}'),
        replaced("blobs/sha256/" + sha256(CONFIG)[7:], CONFIG + b" "),
        replaced("blobs/sha256/" + sha256(CONFIG)[7:], CONFIG[:-1] + b" "),
    ],
)
def test_a_tar_that_is_no_bundle_is_refused(change: Callable[[list[Entry]], list[Entry]]) -> None:
    with pytest.raises(FormatError):
        read(repacked(change(entries(packed()))))


def test_too_many_files_are_refused() -> None:
    extra = [(tarfile.TarInfo(f"blobs/sha256/{n:064x}"), b"") for n in range(MAX_FILES + 5)]
    with pytest.raises(FormatError, match="unexpected entry"):
        read(repacked([*entries(packed()), *extra]))


def test_a_bundle_beyond_the_limit_is_refused() -> None:
    with pytest.raises(FormatError, match="at most 1000 bytes"):
        read(packed(), limit_bytes=1000)


def test_a_compressed_tar_is_no_bundle() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, data in entries(packed()):
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(FormatError):
        read(out.getvalue())


def test_a_sparse_file_does_not_grow_beyond_the_limit() -> None:
    info = tarfile.TarInfo(BLOB)
    info.size = 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(FormatError):
        read(header + b"\0" * 2048, limit_bytes=1 << 20)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"vnd.skerry.bundle.v1", b"vnd.other.bundle.v1x"),
        (b"sha256:", b"sha512:"),
        (b'"size":', b'"size":-'),
        (b'"layers":', b'"strata":'),
    ],
)
def test_an_oci_manifest_of_something_else_is_refused(old: bytes, new: bytes) -> None:
    oci = oci_manifest(CONFIG, LAYERS)
    assert old in oci
    with pytest.raises(FormatError):
        parse_oci_manifest(oci.replace(old, new, 1))


def test_an_oci_manifest_with_too_many_layers_is_refused() -> None:
    layers = {f"f{n}": b"%d" % n for n in range(MAX_FILES + 1)}
    with pytest.raises(FormatError, match="at most 64 layers"):
        parse_oci_manifest(oci_manifest(CONFIG, layers))
