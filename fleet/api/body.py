"""The JSON of a request, as a typed value: nothing of what a caller sends escapes as a fault of ours."""

from typing import TypeVar

import msgspec

from skerry.errors import UsageError

__all__ = ["parse_body"]

T = TypeVar("T")


def parse_body(data: bytes, kind: type[T]) -> T:
    """Return the JSON of a request's body as a typed value.

    Raises:
        UsageError: not JSON, unknown keys, or not of that type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"the request's JSON is wrong: {str(error)[:300]}") from None
