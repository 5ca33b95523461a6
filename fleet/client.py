"""The operators' client: JSON over HTTP with a bearer token, errors as Skerry's own."""

import http.client
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

__all__ = ["FleetClient", "quoted", "read_token"]

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
        NotFoundError: no such file.
        UsageError: neither is given, or what is given is no token.
    """
    try:
        token = os.environ.get("SKERRY_TOKEN", "") if file is None else file.read_text()
    except FileNotFoundError:
        raise NotFoundError(f"expected a token in {file}, and there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"expected a token in {file}: {error}") from None
    token = token.strip()
    if not token:
        raise UsageError(
            "expected an operator's token: give --token-file <data>/admin.token, "
            "or set SKERRY_TOKEN"
        )
    if not (token.isascii() and token.isprintable()):
        raise UsageError("expected a token of one line of plain letters and digits")
    return token


def quoted(name: str) -> str:
    """Return a name as one step of a path, whatever is in it."""
    return urllib.parse.quote(name, safe="")


class FleetClient:
    """Calls one fleet's operator API."""

    def __init__(self, url: str, token: str) -> None:
        if not url.startswith(("http://", "https://")) or any(c.isspace() for c in url):
            raise UsageError(f"expected a fleet address such as http://host:8440, got {url!r}")
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
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
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
                data = answer.read()
        except urllib.error.HTTPError as error:
            raise _problem(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UnreachableError(
                f"the fleet at {self._url} does not answer ({reason}); is it running? "
                "start it with: skerry fleet run --data DIR"
            ) from None
        try:
            return json.loads(data)
        except ValueError:
            raise FormatError(
                f"expected JSON from the fleet at {self._url}, got something else; "
                "is this the operators' address?"
            ) from None


def _problem(error: urllib.error.HTTPError) -> SkerryError:
    """Return the error that a problem document stands for (RFC 9457)."""
    try:
        problem = json.loads(error.read())
        detail, code = str(problem["detail"]), int(problem.get("exit_code", 1))
    except (ValueError, KeyError, TypeError):
        return FormatError(
            f"expected a fleet's answer from {error.url}, got status {error.code} without a reason; "
            "is this the operators' address?"
        )
    return BY_EXIT_CODE.get(code, SkerryError)(detail)
