"""Bundles into the fleet: read, checked against a signature, kept, and only then released.

    read      the file is a bundle, within limits, every digest right
    check     a publisher signed its release (`fleet.catalog`)
    keep      every blob is on disk and synced
    release   the catalog names it

Patches come after the release that lists them, each by the digest that its publisher signed: no other
bytes are kept, and what a patch makes is the device's to check.

A bundle that nobody signed leaves nothing behind; a crash after `keep` leaves blobs that no
release names, and the same request finds them there.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import IO, BinaryIO, Final

from fleet.blobs import CHUNK_BYTES, Blobs
from fleet.catalog import Catalog
from skerry.bundle import Bundle, parse_oci_manifest, read_bundle, write_layout
from skerry.canonical import sha256
from skerry.errors import FormatError, NotFoundError
from skerry.manifest import parse_manifest
from skerry.trust import CatalogTarget

__all__ = ["Bundles", "Published"]

MAX_BUNDLE_BYTES: Final = 512 << 20  # it is held in memory while it is checked


@dataclass(frozen=True, slots=True)
class Published:
    """A bundle that the catalog names; `new` is False where it did already."""

    publisher: str
    target: CatalogTarget
    bundle: Bundle
    new: bool


class Bundles:
    """Takes bundles in and gives them back.

    Args:
        blobs: where their bytes are kept.
        catalog: what may run.
        limit_bytes: of a bundle file.
    """

    def __init__(
        self, blobs: Blobs, catalog: Catalog, *, limit_bytes: int = MAX_BUNDLE_BYTES
    ) -> None:
        self._blobs = blobs
        self._catalog = catalog
        self._limit_bytes = limit_bytes

    def publish(self, file: BinaryIO, metadata: bytes, now: datetime) -> Published:
        """Take a bundle in with its publisher's metadata.

        Args:
            file: the bundle file.
            metadata: the publisher's new TUF targets metadata.
            now: aware UTC.

        Raises:
            FormatError: not a bundle, damaged, or too large; or not metadata.
            TrustError: not signed, or against a rule of the catalog.
            ConflictError: somebody released in between.
        """
        bundle = read_bundle(file, limit_bytes=self._limit_bytes)
        self._catalog.check(metadata, bundle, now)
        blobs = {**bundle.blobs, sha256(bundle.config): bundle.config, bundle.digest: bundle.oci}
        for digest, data in blobs.items():
            self._blobs.put(digest, data)
        accepted = self._catalog.accept(metadata, bundle, now)
        return Published(accepted.publisher, accepted.target, bundle, accepted.new)

    def open(self, target: CatalogTarget) -> Bundle:
        """Return a released bundle from its blobs.

        Raises:
            NotFoundError: a blob is missing.
            FormatError: a blob is damaged.
        """
        digest = "sha256:" + target.sha256
        data = self._blobs.read(digest)
        oci = parse_oci_manifest(data)
        config = self._blobs.read(oci.config.digest)
        layers = {
            layer.digest: self._blobs.read(layer.digest, limit_bytes=self._limit_bytes)
            for layer in oci.layers
        }
        return Bundle(digest, data, config, parse_manifest(config), layers)

    def export(self, digest: str, out: BinaryIO) -> None:
        """Write the bundle file of a release, one blob in memory at a time.

        Raises:
            NotFoundError: a blob is missing.
            FormatError: a blob is damaged, or larger than a bundle may be.
        """
        oci = self._blobs.read(digest)
        write_layout(out, oci, lambda d: self._blobs.read(d, limit_bytes=self._limit_bytes))

    def patch_size(self, digest: str) -> int:
        """Return the bytes of a patch as a release lists it.

        Raises:
            NotFoundError: no release lists it.
        """
        for target in self._catalog.releases():
            for patch in target.patches:
                if patch.digest == digest:
                    return patch.size_bytes
        raise NotFoundError(
            f"no release lists a patch {digest}; publish the bundle whose release does first"
        )

    def add_patch(self, digest: str, file: IO[bytes]) -> bool:
        """Keep a patch that a release lists; tell whether it is new.

        Raises:
            NotFoundError: no release lists it.
            FormatError: other bytes than its digest and size say; nothing is kept.
        """
        size = self.patch_size(digest)
        if self._blobs.has(digest):
            return False
        length = file.seek(0, 2)
        file.seek(0)
        if length != size:
            raise FormatError(f"expected the {size} bytes of {digest}, got {length}")
        self._blobs.put(digest, iter(lambda: file.read(CHUNK_BYTES), b""))
        return True

    def missing(self) -> list[str]:
        """Return the paths of releases whose blobs are not all here, such as after a restore."""
        return [target.path for target in self._catalog.releases() if not self._complete(target)]

    def _complete(self, target: CatalogTarget) -> bool:
        try:
            oci = parse_oci_manifest(self._blobs.read("sha256:" + target.sha256))
        except NotFoundError:
            return False
        return all(self._blobs.has(blob.digest) for blob in (oci.config, *oci.layers))
