"""Enrolment tokens: one use, one device, and nothing trusted on first use.

A token is ``sk1.<base64url>`` of a device id, a 256-bit secret, where the fleet's
device listener is, the fingerprint of the fleet's certificate authority and the
digest of its trusted roots. The fleet keeps only the secret's sha256.
"""

import base64
import hashlib
from typing import Final

import msgspec

from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import FormatError, UsageError

__all__ = ["EnrolmentToken", "format_token", "parse_token", "secret_hash"]

PREFIX: Final = "sk1."
MAX_TOKEN_BYTES: Final = 4096


class EnrolmentToken(msgspec.Struct, frozen=True):
    """What an enrolment token says."""

    device_id: str
    secret: bytes  # 32 random bytes
    fleet_url: str  # of the device listener
    ca_fingerprint: str  # sha256:... of the CA certificate's DER
    roots_digest: str  # sha256:... of catalog root bytes, then director root bytes


def format_token(token: EnrolmentToken) -> str:
    """Return the text that an operator hands to a device."""
    return PREFIX + base64.urlsafe_b64encode(to_msgpack(token)).decode().rstrip("=")


def parse_token(text: str) -> EnrolmentToken:
    """Read the text of a token.

    Raises:
        UsageError: not a token; the message never repeats it.
    """
    body = text.strip().removeprefix(PREFIX)
    if body == text.strip():
        raise UsageError(
            "expected an enrolment token, which begins with sk1., got something else; "
            "copy it again, or make one with: skerry devices preauthorize DEVICE"
        )
    try:
        if len(body) > 2 * MAX_TOKEN_BYTES:
            raise FormatError(f"expected a token of at most {MAX_TOKEN_BYTES} bytes")
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return from_msgpack(raw, EnrolmentToken, limit=MAX_TOKEN_BYTES)
    except (ValueError, FormatError):  # ValueError: letters that base64 does not have
        raise UsageError(
            "the enrolment token is damaged or cut short; copy all of it again, "
            "or make a new one with: skerry devices preauthorize DEVICE"
        ) from None


def secret_hash(secret: bytes) -> str:
    """Return what the fleet keeps of a token's secret."""
    return hashlib.sha256(secret).hexdigest()
