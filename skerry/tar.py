"""The one form of tar that a bundle has, and nothing else that tar can say.

    header 512 bytes   name, mode, ids, size, time, checksum, kind, link, magic
    content            to the next multiple of 512
    end                two blocks of zeros

Only plain files of the POSIX ustar form pass. Links, devices, folders, sparse files,
extended headers, long names, sizes in binary and a second file of the same name
are each a way in which two readers of one tar see different files, or one reader
writes what was never sent: they are refused, not interpreted.

Source: POSIX.1-2017, pax, "ustar Interchange Format".
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

from skerry.errors import FormatError

__all__ = ["read_tar"]

BLOCK_BYTES: Final = 512
CHUNK_BYTES: Final = 1 << 20
END: Final = bytes(BLOCK_BYTES)
FILE: Final = frozenset({b"0", b"\0"})
_OCTAL: Final = re.compile(rb"[0-7]{1,11}")
_ADVICE: Final = "copy or build it again"


def read_tar(source: BinaryIO, *, limit_bytes: int, max_files: int) -> Iterator[tuple[str, bytes]]:
    """Give each file of a tar, name and content, in order.

    Args:
        source: a binary stream, read once from where it stands.
        limit_bytes: of all contents together.
        max_files: in the tar.

    Raises:
        FormatError: code ``bundle_tar``: no such tar, or cut short; ``bundle_entry``: an
            entry that is not one plain file; ``bundle_size``: beyond a limit.
    """
    seen: set[str] = set()
    left = limit_bytes
    while (header := source.read(BLOCK_BYTES)) != END:
        if len(header) < BLOCK_BYTES:
            if not header and seen:  # some writers leave the end out
                return
            raise FormatError(
                f"expected a bundle (a tar), got a file cut short; {_ADVICE}", "bundle_tar"
            )
        name, size = _file(header)
        if name in seen:
            raise FormatError(f"unexpected entry {name[:120]!r}: it is there twice", "bundle_entry")
        if len(seen) >= max_files:
            raise FormatError(
                f"unexpected entry {name[:120]!r}: expected at most {max_files} files",
                "bundle_size",
            )
        if size > left:  # before a byte of it is read
            raise FormatError(f"expected a bundle of at most {limit_bytes} bytes", "bundle_size")
        seen.add(name)
        left -= size
        yield name, _content(source, name, size)


def _file(header: bytes) -> tuple[str, int]:
    """Return name and size of a plain file from its header."""
    if header[257:262] != b"ustar" or _number(header[148:156]) != _checksum(header):
        raise FormatError(
            f"expected a bundle (a tar of an OCI image layout), got other bytes; {_ADVICE}",
            "bundle_tar",
        )
    name = header[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
    plain = header[156:157] in FILE and not header[157:257].strip(b"\0")
    if not plain or header[345:500].strip(b"\0") or not name.isprintable():
        raise FormatError(
            f"unexpected entry {name[:120]!r} in the bundle: only plain files belong there; "
            "build it again",
            "bundle_entry",
        )
    return name, _number(header[124:136])


def _number(field: bytes) -> int:
    match = _OCTAL.fullmatch(field.strip(b" \0"))
    if match is None:
        raise FormatError(f"expected an octal number in the bundle's tar; {_ADVICE}", "bundle_tar")
    return int(match[0], 8)


def _checksum(header: bytes) -> int:
    # the sum of all bytes, its own field taken as blanks
    return sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _content(source: BinaryIO, name: str, size: int) -> bytes:
    """Read a file piece by piece: what is claimed but not there costs no memory."""
    padded = -(-size // BLOCK_BYTES) * BLOCK_BYTES
    data = bytearray()
    while len(data) < padded:
        chunk = source.read(min(CHUNK_BYTES, padded - len(data)))
        if not chunk:
            raise FormatError(f"entry {name[:120]!r} is cut short; {_ADVICE}", "bundle_tar")
        data += chunk
    if size < padded:
        del data[size:]
    return bytes(data)
