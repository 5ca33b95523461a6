"""The `Range` header of a request for one piece of a file; pure.

Source: RFC 9110, section 14.
"""

import re
from typing import Final

__all__ = ["byte_range"]

_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def byte_range(header: str | None, size: int) -> range | None:
    """Return which bytes a request asks for.

    Args:
        header: the field's value, None if there is none.
        size: of the file, in bytes.

    Returns:
        None for the whole file: no header, several ranges or another unit, which a server may
        ignore. An empty range if none of the bytes asked for exist: answer 416.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header is not None else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None  # malformed, section 14.1.1: ignored
    return range(int(first), min(int(last) + 1 if last else size, size))
