"""The release file: what goes from one signer to the next, and from the last to the fleet.

    {"format": "skerry-release/1", "publisher": "acme",
     "metadata": {"acme": {...}},    what is signed: the publisher's role, and bins that change
     "before":   {"acme": {...}},    what the fleet had: all of the publisher's roles
     "roots":    [{...}],            the catalog's later roots, from the second on
     "targets":  {...}}              the catalog's delegations: whose keys, and how many

With `before`, `roots` and `targets` somebody without a network can verify, from a root of their own,
who began a release and that nothing else changes. The fleet looks at `metadata` only, and takes
plain TUF metadata as well. Nothing in the file is believed for being in it.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from skerry.errors import FormatError

__all__ = ["MAX_FILE_BYTES", "MAX_ROOTS", "ReleaseFile", "read_release_file"]

MAX_FILE_BYTES: Final = 16 << 20
MAX_ROLES: Final = 1025  # a publisher's own, and 2 to the power of 10 bins
MAX_ROOTS: Final = 1024  # one each month, for longer than any fleet


class _File(msgspec.Struct, frozen=True, omit_defaults=True):
    format: Literal["skerry-release/1"]
    publisher: str
    metadata: dict[str, msgspec.Raw]
    before: dict[str, msgspec.Raw] = {}
    roots: list[msgspec.Raw] = []
    targets: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # `Raw | None` reads null only


class _Head(msgspec.Struct):
    format: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A release on its way to the fleet; `publisher` is empty for plain TUF metadata."""

    publisher: str
    metadata: dict[str, bytes]  # by role
    before: dict[str, bytes] = field(default_factory=dict)
    roots: list[bytes] = field(default_factory=list)
    targets: bytes | None = None

    def to_bytes(self) -> bytes:
        """Return the file; the metadata in it stays as it is, byte for byte."""
        return msgspec.json.encode(
            _File(
                format="skerry-release/1",
                publisher=self.publisher,
                metadata={name: msgspec.Raw(data) for name, data in self.metadata.items()},
                before={name: msgspec.Raw(data) for name, data in self.before.items()},
                roots=[msgspec.Raw(data) for data in self.roots],
                targets=msgspec.UNSET if self.targets is None else msgspec.Raw(self.targets),
            )
        )

    def for_fleet(self) -> bytes:
        """Return what a fleet needs of it."""
        if not self.publisher:
            return self.metadata[""]
        return ReleaseFile(self.publisher, self.metadata).to_bytes()


def read_release_file(data: bytes) -> ReleaseFile:
    """Read a release file, or a publisher's plain metadata; nothing in it is verified yet.

    Raises:
        FormatError: neither.
    """
    if len(data) > MAX_FILE_BYTES:
        raise FormatError(f"expected a release file of at most {MAX_FILE_BYTES} bytes")
    try:
        if not msgspec.json.decode(data, type=_Head).format:
            return ReleaseFile("", {"": data})
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise FormatError(
            f"expected a release file or a publisher's signed metadata: {str(error)[:300]}; "
            "if it was cut on its way, copy it again"
        ) from None
    many = max(len(file.metadata), len(file.before)) > MAX_ROLES or len(file.roots) > MAX_ROOTS
    if many or not file.publisher or file.publisher not in file.metadata:
        raise FormatError(
            f"expected a release file with {file.publisher[:64] or 'a publisher'}'s role and its "
            "bins; it has others, or too many"
        )
    return ReleaseFile(
        publisher=file.publisher,
        metadata={name: bytes(raw) for name, raw in file.metadata.items()},
        before={name: bytes(raw) for name, raw in file.before.items()},
        roots=[bytes(raw) for raw in file.roots],
        targets=None if file.targets is msgspec.UNSET else bytes(file.targets),
    )
