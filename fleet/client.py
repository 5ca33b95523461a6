"""The operators' client: JSON over HTTP with a bearer token, errors as Skerry's own."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

from skerry.errors import (
    ConflictError,
    FormatError,
    GateError,
    NotFoundError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
    UsageError,
)

__all__ = ["FleetClient", "read_token"]

TIMEOUT_S: Final = 30.0
BY_EXIT_CODE: Final[dict[int, type[SkerryError]]] = {
    kind.exit_code: kind
    for kind in (
        UsageError,
        NotFoundError,
        RefusedError,
        ConflictError,
        GateError,
        TrustError,
        UnreachableError,
    )
}


def read_token(file: Path | None) -> str:
    """Return the operator's token, from a file or from ``SKERRY_TOKEN``.

    Raises:
        UsageError: neither is given, or the file is not there.
    """
    if file is None:
        token = os.environ.get("SKERRY_TOKEN", "")
        if not token:
            raise UsageError(
                "expected an operator's token: give --token-file <data>/admin.token, "
                "or set SKERRY_TOKEN"
            )
        return token
    try:
        return file.read_text().strip()
    except OSError as error:
        raise UsageError(f"expected a token in {file}: {error.strerror}") from None


class FleetClient:
    """Calls one fleet's operator API."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token

    def get(self, path: str, **query: object) -> Any:
        """Return what is at a path below ``/api/v1``."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", path + ("?" + urllib.parse.urlencode(given) if given else ""))

    def post(self, path: str, body: object = None) -> Any:
        """Send JSON to a path below ``/api/v1``."""
        return self._call("POST", path, body if body is not None else {})

    def put(self, path: str, body: object) -> Any:
        """Replace what is at a path below ``/api/v1``."""
        return self._call("PUT", path, body)

    def _call(self, method: str, path: str, body: object = None) -> Any:
        if not self._url.startswith(("http://", "https://")):
            raise UsageError(f"expected a fleet address such as http://host:8440, got {self._url}")
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
            f"{self._url}/api/v1{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise _problem(error) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise UnreachableError(
                f"the fleet at {self._url} does not answer ({reason}); is it running? "
                "start it with: skerry fleet run --data DIR"
            ) from None


def _problem(error: urllib.error.HTTPError) -> SkerryError:
    """Return the error that a problem document stands for (RFC 9457)."""
    try:
        problem = json.loads(error.read())
        detail, code = str(problem["detail"]), int(problem.get("exit_code", 1))
    except (ValueError, KeyError, TypeError):
        return FormatError(f"expected a problem document with status {error.code}, got other bytes")
    return BY_EXIT_CODE.get(code, SkerryError)(detail)
