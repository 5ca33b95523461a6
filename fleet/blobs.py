"""Blobs by digest: ``<folder>/sha256/<hex>``, written once, never changed.

A blob has its name only after its bytes were hashed and synced, so that what is found here is what
its name says. Devices check the digest again: the place is never trusted.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from fleet.files import make_folder, write_atomic
from skerry.canonical import check_digest
from skerry.errors import FormatError, NotFoundError

__all__ = ["CHUNK_BYTES", "Blobs"]

CHUNK_BYTES: Final = 256 * 1024


class Blobs:
    """The blobs of a fleet, in a folder.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = make_folder(folder / "sha256")
        for torn in self._folder.glob(".*"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)

    def put(self, digest: str, data: bytes | Iterable[bytes]) -> None:
        """Keep a blob durably; one that is there already is left alone.

        Args:
            digest: its name, ``sha256:<hex>``.
            data: its bytes, or chunks of them.

        Raises:
            FormatError: the bytes have another digest; nothing is kept.
        """
        path = self._path(digest)
        if path.exists():
            return
        write_atomic(path, _checked(digest, (data,) if isinstance(data, bytes) else data))

    def has(self, digest: str) -> bool:
        """Tell whether a blob is kept.

        Raises:
            FormatError: not a digest.
        """
        return self._path(digest).is_file()

    def size(self, digest: str) -> int:
        """Return a blob's size in bytes.

        Raises:
            FormatError: not a digest.
            NotFoundError: no such blob.
        """
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def open(self, digest: str) -> BinaryIO:
        """Return a blob as a stream.

        Raises:
            FormatError: not a digest.
            NotFoundError: no such blob.
        """
        try:
            return self._path(digest).open("rb")
        except FileNotFoundError:
            raise _missing(digest) from None

    def read(self, digest: str, *, limit_bytes: int = 64 << 20) -> bytes:
        """Return a small blob's bytes.

        Raises:
            FormatError: not a digest, or larger than the limit.
            NotFoundError: no such blob.
        """
        if self.size(digest) > limit_bytes:
            raise FormatError(f"expected blob {digest} of at most {limit_bytes} bytes")
        with self.open(digest) as stream:
            return stream.read()

    def _path(self, digest: str) -> Path:
        return self._folder / check_digest(digest).removeprefix("sha256:")


def _checked(digest: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass chunks on, and raise at their end, before the blob gets its name, if they are others."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != digest.removeprefix("sha256:"):
        raise FormatError(
            f"expected a blob {digest}, got sha256:{hasher.hexdigest()}; send it again"
        )


def _missing(digest: str) -> NotFoundError:
    return NotFoundError(f"no blob {digest} here; has its bundle been published?")
