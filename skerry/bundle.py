"""Bundles: OCI artifacts, as a file an OCI image layout in a tar.

    oci-layout                 {"imageLayoutVersion": "1.0.0"}
    index.json                 one descriptor: the OCI manifest
    blobs/sha256/<hex>         OCI manifest, config (the Skerry manifest), layers

The bundle's name is the digest of its OCI manifest. Names, order, modes and times
in the tar are fixed, so equal content is an equal file. Reading refuses everything
else: other names, links, duplicates, sizes beyond the limit, blobs whose digest is
not their name, blobs that the manifest does not list.

Source: OCI image specification 1.1, image-layout.md and manifest.md.
"""

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec

from skerry.canonical import check_digest, from_json, sha256, to_json
from skerry.errors import FormatError
from skerry.manifest import Manifest, parse_manifest
from skerry.tar import read_tar

__all__ = [
    "ARTIFACT_TYPE",
    "CONFIG_TYPE",
    "MAX_BUNDLE_BYTES",
    "Bundle",
    "Descriptor",
    "OciManifest",
    "oci_manifest",
    "parse_oci_manifest",
    "read_bundle",
    "write_bundle",
    "write_layout",
]

ARTIFACT_TYPE: Final = "application/vnd.skerry.bundle.v1"
CONFIG_TYPE: Final = "application/vnd.skerry.manifest.v1+json"
LAYER_TYPE: Final = "application/octet-stream"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
MAX_FILES: Final = 64
MAX_BUNDLE_BYTES: Final = 4 << 30
MAX_MANIFEST_BYTES: Final = 1 << 20


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A blob: media type, digest and size in bytes."""

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    annotations: dict[str, str] = {}


class OciManifest(msgspec.Struct, frozen=True, rename="camel"):
    """An OCI image manifest as Skerry writes it."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str]


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int
    media_type: str
    manifests: list[Descriptor]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every digest was checked.

    Attributes:
        digest: of the OCI manifest; the bundle's name.
        oci: the OCI manifest's bytes.
        config: the Skerry manifest's bytes.
        manifest: the Skerry manifest.
        blobs: digest -> bytes of every layer.
    """

    digest: str
    oci: bytes
    config: bytes
    manifest: Manifest
    blobs: Mapping[str, bytes]


def oci_manifest(config: bytes, layers: Mapping[str, bytes]) -> bytes:
    """Return the OCI manifest of a config blob and named layers.

    Args:
        config: canonical JSON of the Skerry manifest.
        layers: file name -> bytes.
    """
    manifest = parse_manifest(config)
    return to_json(
        OciManifest(
            schema_version=2,
            media_type=MANIFEST_TYPE,
            artifact_type=ARTIFACT_TYPE,
            config=Descriptor(CONFIG_TYPE, sha256(config), len(config)),
            layers=[
                Descriptor(
                    LAYER_TYPE,
                    sha256(data),
                    len(data),
                    annotations={"org.opencontainers.image.title": name},
                )
                for name, data in sorted(layers.items())
            ],
            annotations={
                "org.opencontainers.image.title": manifest.model,
                "org.opencontainers.image.version": manifest.model_version,
            },
        )
    )


def parse_oci_manifest(data: bytes) -> OciManifest:
    """Decode an OCI manifest and refuse one that is no Skerry bundle.

    Raises:
        FormatError: not JSON, another artifact type, malformed digests.
    """
    oci = from_json(data, OciManifest, limit=MAX_MANIFEST_BYTES)
    if oci.artifact_type != ARTIFACT_TYPE or oci.config.media_type != CONFIG_TYPE:
        raise FormatError(f"expected artifact type {ARTIFACT_TYPE}, got {oci.artifact_type[:80]!r}")
    if len(oci.layers) > MAX_FILES:
        raise FormatError(f"expected at most {MAX_FILES} layers, got {len(oci.layers)}")
    for descriptor in (oci.config, *oci.layers):
        check_digest(descriptor.digest)
        if descriptor.size < 0 or descriptor.size > MAX_BUNDLE_BYTES:
            raise FormatError(f"expected a blob size below {MAX_BUNDLE_BYTES}")
    return oci


def write_bundle(out: BinaryIO, config: bytes, layers: Mapping[str, bytes]) -> str:
    """Write a bundle file and return its digest.

    Args:
        out: a binary stream.
        config: canonical JSON of the Skerry manifest.
        layers: file name -> bytes; equal bytes are stored once.
    """
    oci = oci_manifest(config, layers)
    blobs = {sha256(data): data for data in (config, *layers.values())}
    return write_layout(out, oci, blobs.__getitem__)


def write_layout(out: BinaryIO, oci: bytes, read: Callable[[str], bytes]) -> str:
    """Write the bundle file of an OCI manifest, one blob in memory at a time; return its digest.

    Args:
        out: a binary stream.
        oci: the OCI manifest's bytes.
        read: returns a blob by its digest.
    """
    manifest = parse_oci_manifest(oci)
    top = Descriptor(
        MANIFEST_TYPE,
        sha256(oci),
        len(oci),
        artifact_type=ARTIFACT_TYPE,
        annotations={"org.opencontainers.image.ref.name": manifest.annotations[
            "org.opencontainers.image.version"]},
    )  # fmt: skip
    index = to_json(_Index(2, INDEX_TYPE, [top]))
    digests = {d.digest for d in (manifest.config, *manifest.layers)} | {top.digest}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, "oci-layout", LAYOUT)
        _add(tar, "index.json", index)
        for digest in sorted(digests):
            data = oci if digest == top.digest else read(digest)
            _add(tar, "blobs/sha256/" + digest.removeprefix("sha256:"), data)
    return top.digest


def read_bundle(source: BinaryIO, *, limit_bytes: int = MAX_BUNDLE_BYTES) -> Bundle:
    """Read a bundle file, checking every name, size and digest.

    Raises:
        FormatError: not a bundle, or damaged; the message says where.
    """
    files = dict(read_tar(source, limit_bytes=limit_bytes, max_files=MAX_FILES + 4))
    for name in files:
        if name not in {"oci-layout", "index.json"}:
            _check_blob_name(name)
    if files.pop("oci-layout", None) != LAYOUT or "index.json" not in files:
        raise FormatError("expected oci-layout and index.json; this tar is no OCI image layout")
    index = from_json(files.pop("index.json"), _Index, limit=MAX_MANIFEST_BYTES)
    if len(index.manifests) != 1:
        raise FormatError(f"expected one manifest in index.json, got {len(index.manifests)}")
    blobs = {"sha256:" + name.removeprefix("blobs/sha256/"): data for name, data in files.items()}
    digest = check_digest(index.manifests[0].digest)
    oci_bytes = _take(blobs, digest, index.manifests[0].size)
    oci = parse_oci_manifest(oci_bytes)
    config = _take(blobs, oci.config.digest, oci.config.size)
    layers = {d.digest: _take(blobs, d.digest, d.size) for d in oci.layers}
    strangers = set(blobs) - set(layers) - {digest, oci.config.digest}
    if strangers:
        raise FormatError(f"blob {min(strangers)} is not listed in the manifest; build it again")
    return Bundle(digest, oci_bytes, config, parse_manifest(config), layers)


def _take(blobs: Mapping[str, bytes], digest: str, size: int) -> bytes:
    data = blobs.get(digest)
    if data is None or len(data) != size:
        raise FormatError(
            f"expected blob {digest} of {size} bytes; it is missing or cut short; "
            "copy the bundle or build it again"
        )
    if sha256(data) != digest:
        raise FormatError(
            f"blob {digest} is damaged: its bytes hash to {sha256(data)}; "
            "copy the bundle or build it again"
        )
    return data


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def _check_blob_name(name: str) -> None:
    prefix = "blobs/sha256/"
    if not name.startswith(prefix):
        raise FormatError(
            f"unexpected entry {name[:120]!r} in the bundle; build it again", "bundle_entry"
        )
    check_digest("sha256:" + name.removeprefix(prefix))
