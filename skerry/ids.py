"""Identifiers: lower-case letters, digits and hyphens, 3 to 63 characters.

The same form holds for devices, models, slots, sites, publishers and rollouts, so
that every id is at once a safe MQTT topic level, NATS subject token, certificate
name, URL segment and file name.
"""

import re
from typing import Final

from skerry.errors import UsageError

__all__ = ["ID_PATTERN", "check_id", "check_version", "is_id"]

ID_PATTERN: Final = r"[a-z0-9][a-z0-9-]{2,62}"
_ID: Final = re.compile(ID_PATTERN)
_VERSION: Final = re.compile(r"[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}(-[a-z0-9.]{1,32})?")


def is_id(text: str) -> bool:
    """Tell whether the text is a valid identifier."""
    return _ID.fullmatch(text) is not None


def check_id(text: str, what: str = "id") -> str:
    """Return the text if it is a valid identifier.

    Raises:
        UsageError: it is not; the message names `what` it should have been.
    """
    if not is_id(text):
        raise UsageError(
            f"expected a {what} of 3 to 63 lower-case letters, digits and hyphens, "
            f"got {text[:80]!r}"
        )
    return text


def check_version(text: str) -> str:
    """Return the text if it is a model version such as ``1.2.0`` or ``1.2.0-rc.1``.

    Raises:
        UsageError: it is not.
    """
    if _VERSION.fullmatch(text) is None:
        raise UsageError(f"expected a model version such as 1.2.0, got {text[:80]!r}")
    return text
