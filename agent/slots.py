"""Slots: the bundles that a device keeps, each a directory named by its digest.

    slots/<hex of the bundle>/
        oci.json            the OCI manifest, whose digest is the directory's name
        manifest.json       the Skerry manifest
        <hex>               files of the bundle, by digest
        <hex>.part          a download under way
        <hex>.tries         how often a patch was begun that makes this file, a byte for each
        <hex>.patched       what it has made so far

A file comes to its name only whole, checked and synced: written beside, then renamed. So a
name says that its content was right once; `check` looks whether it still is.
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.durable import fsync_dir
from skerry.bundle import OciManifest, parse_oci_manifest
from skerry.canonical import check_digest, sha256
from skerry.errors import FormatError, NotFoundError
from skerry.manifest import Manifest, Variant, parse_manifest

__all__ = ["Slots", "hash_file", "write_whole"]

OCI_FILE: Final = "oci.json"
MANIFEST_FILE: Final = "manifest.json"
CHUNK_BYTES: Final = 1 << 20
_HEX: Final = re.compile(r"[0-9a-f]{64}")


class Slots:
    """The bundles on disk.

    Args:
        root: the directory; made if it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def directory(self, bundle: str) -> Path:
        """Return where the files of a bundle lie."""
        return self._root / _hex(bundle)

    def path(self, bundle: str, digest: str) -> Path:
        """Return where a file of a bundle lies, or will."""
        return self.directory(bundle) / _hex(digest)

    def put_oci(self, bundle: str, data: bytes) -> OciManifest:
        """Keep the OCI manifest of a bundle.

        Raises:
            FormatError: other bytes than the bundle's digest names, or no bundle.
        """
        if sha256(data) != bundle:
            raise FormatError(f"expected the manifest {bundle}, got one of {sha256(data)}")
        oci = parse_oci_manifest(data)
        self._make(bundle)
        write_whole(self.directory(bundle) / OCI_FILE, data)
        return oci

    def put_manifest(self, bundle: str, data: bytes) -> Manifest:
        """Keep the Skerry manifest of a bundle, whose digest was checked."""
        manifest = parse_manifest(data)
        self._make(bundle)
        write_whole(self.directory(bundle) / MANIFEST_FILE, data)
        return manifest

    def oci(self, bundle: str) -> OciManifest:
        """Return the OCI manifest of a bundle.

        Raises:
            NotFoundError: it is not here.
            FormatError: it is damaged.
        """
        data = _read(self.directory(bundle) / OCI_FILE)
        if sha256(data) != bundle:
            raise FormatError(f"the manifest of {bundle} is damaged; it will be fetched again")
        return parse_oci_manifest(data)

    def manifest(self, bundle: str) -> Manifest:
        """Return the Skerry manifest of a bundle.

        Raises:
            NotFoundError: it is not here.
            FormatError: it is damaged.
        """
        data = _read(self.directory(bundle) / MANIFEST_FILE)
        if sha256(data) != self.oci(bundle).config.digest:
            raise FormatError(f"the manifest of {bundle} is damaged; it will be fetched again")
        return parse_manifest(data)

    def manifest_path(self, bundle: str) -> Path:
        """Return where the Skerry manifest of a bundle lies."""
        return self.directory(bundle) / MANIFEST_FILE

    def has(self, bundle: str, digest: str) -> bool:
        """Tell whether a file of a bundle is here, whole when it came."""
        return self.path(bundle, digest).is_file()

    def holding(self, digest: str) -> Path | None:
        """Return a file with this digest of any bundle that is here, None if there is none."""
        name = _hex(digest)
        for entry in sorted(self._root.iterdir()):
            if _HEX.fullmatch(entry.name) and (entry / name).is_file():
                return entry / name
        return None

    def check(self, bundle: str, variant: str) -> None:
        """Read what serves a variant and hold it against its digests; remove what is damaged.

        Raises:
            NotFoundError: a file is missing.
            FormatError: a file was damaged, or the bundle has no such variant.
        """
        for digest in serving_files(self.manifest(bundle), variant):
            path = self.path(bundle, digest)
            if not path.is_file():
                raise NotFoundError(f"expected {digest} of bundle {bundle}; it is missing")
            found = hash_file(path)
            if found != digest:
                path.unlink(missing_ok=True)
                raise FormatError(f"{path} was damaged: its bytes hash to {found}; removed")

    def keep_only(self, bundles: Iterable[str]) -> list[str]:
        """Remove every bundle but these; return what was removed. Works without free space."""
        kept = {_hex(bundle) for bundle in bundles}
        gone = [
            entry
            for entry in sorted(self._root.iterdir())
            if _HEX.fullmatch(entry.name) and entry.name not in kept
        ]
        for entry in gone:
            shutil.rmtree(entry, ignore_errors=True)
        return ["sha256:" + entry.name for entry in gone]

    def _make(self, bundle: str) -> None:
        directory = self.directory(bundle)
        if not directory.is_dir():
            directory.mkdir(exist_ok=True)
            fsync_dir(self._root)


def serving_files(manifest: Manifest, variant: str) -> list[str]:
    """Return the digests of what serve needs of a bundle.

    Raises:
        FormatError: the bundle has no such variant.
    """
    return [variant_of(manifest, variant).file.digest, manifest.baseline.digest]


def variant_of(manifest: Manifest, variant: str) -> Variant:
    """Return a variant by its id.

    Raises:
        FormatError: the bundle has no such variant.
    """
    for known in manifest.variants:
        if known.id == variant:
            return known
    have = ", ".join(known.id for known in manifest.variants)
    raise FormatError(f"expected a variant of {have}, got {variant!r}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, sync it, and rename it into place."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    fsync_dir(path.parent)


def hash_file(path: Path) -> str:
    """Return the digest of a file's bytes."""
    with path.open("rb") as file:
        return sha256(iter(lambda: file.read(CHUNK_BYTES), b""))


def _hex(digest: str) -> str:
    return check_digest(digest).removeprefix("sha256:")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"expected {path}; it is missing") from None
