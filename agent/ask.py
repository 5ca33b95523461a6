"""Small questions to the fleet over https, with answers of bounded length, and words for failures."""

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any, Final

from agent.pace import MIN_BYTES_S, SLOW_S, Watchdog, watched
from skerry.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
)

__all__ = ["ask", "problem_of", "tls_fault"]

TIMEOUT_S: Final = 30.0
MAX_PROBLEM_BYTES: Final = 16 * 1024
# what OpenSSL calls them (X509_V_ERR_...)
NOT_YET_VALID: Final = 9
EXPIRED: Final = 10
OTHER_NAME: Final = frozenset({62, 64})  # host name, address


def ask(url: str, context: ssl.SSLContext, *, body: bytes | None = None, limit: int) -> bytes:
    """Return the answer to a question; with a body it is a POST.

    Args:
        url: https.
        context: whom to believe.
        body: JSON.
        limit: of the answer, in bytes.

    Raises:
        UnreachableError: no answer, or the fleet is in trouble.
        TrustError: the server is not whom the context believes; see `tls_fault`.
        NotFoundError: the fleet answered 404.
        ConflictError: the fleet answered 409.
        RefusedError: the fleet refused it in another way; its code is the fleet's.
        FormatError: the answer is too long.
    """
    if not url.startswith("https://"):
        raise RefusedError(f"expected an https address of the fleet, got {url[:120]!r}")
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - checked above
    handler = watched(urllib.request.HTTPSHandler, _watchdog, context=context)
    # a proxy of the environment has no business between a device and its fleet
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler, _Stay())
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            data = bytes(response.read(limit + 1))
    except urllib.error.HTTPError as error:
        raise _refusal(error) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise tls_fault(reason, url, time.time()) from None
        raise UnreachableError(
            f"no answer from the fleet at {url}: {reason}; check that it runs and is reachable"
        ) from None
    if len(data) > limit:
        raise FormatError(f"expected an answer of at most {limit} bytes from {url}")
    return data


def _watchdog() -> Watchdog:
    return Watchdog(MIN_BYTES_S, SLOW_S)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: the fleet sends nobody elsewhere with a token or a request."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Refuse."""


def tls_fault(error: ssl.SSLCertVerificationError, url: str, now: float) -> TrustError:
    """Say why a server's certificate was not believed, and what to do.

    Args:
        error: from the handshake.
        url: what was asked for.
        now: Unix seconds by this device's clock.
    """
    clock = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if error.verify_code == NOT_YET_VALID:
        return TrustError(
            f"the certificate of {url} is not yet valid: this device's clock says {clock}; "
            "set the clock (by NTP, or with: date -s) and try again",
            "not_yet_valid",
        )
    if error.verify_code == EXPIRED:
        return TrustError(
            f"the certificate of {url} has expired: this device's clock says {clock}; "
            "if that is right, start the fleet service again, which makes a new one",
            "expired",
        )
    if error.verify_code in OTHER_NAME:
        return TrustError(
            f"the certificate of {url} is for another name: {error.verify_message}; "
            "put the name by which devices reach the fleet into fleet.toml as advertise_host",
            "host_name",
        )
    return TrustError(
        f"the certificate of {url} is not of this fleet's authority: {error.verify_message}; "
        "somebody may stand between this device and its fleet",
        "ca",
    )


def problem_of(error: urllib.error.HTTPError) -> tuple[str, str]:
    """Return code and detail of a problem document, empty where it is none; closes the answer."""
    try:
        problem = json.loads(error.read(MAX_PROBLEM_BYTES))
        code = str(problem.get("code") or "")[:64]
        return code, str(problem.get("detail") or problem.get("title") or "")[:300]
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        return "", ""
    finally:
        error.close()


def _refusal(error: urllib.error.HTTPError) -> SkerryError:
    code, detail = problem_of(error)
    text = f"the fleet did not accept it: {detail or f'HTTP {error.code}'}"
    if error.code >= 500 or error.code in {408, 429}:
        return UnreachableError(text + "; try again later")
    if error.code == 404:
        return NotFoundError(text)
    if error.code == 409:
        return ConflictError(text)
    return RefusedError(text, code or "refused")
