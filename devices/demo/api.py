"""The fleet's HTTP API as a stranger calls it: JSON over urllib, with the operator's token."""

import json
import urllib.error
import urllib.request
from typing import Any

from skerry.errors import SkerryError, UnreachableError

__all__ = ["FleetApi"]


class FleetApi:
    """Calls the operator API of one fleet."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token

    def get(self, path: str) -> Any:
        """Return the JSON at a path below ``/api/v1``."""
        return self._call("GET", path, None)

    def post(self, path: str, body: object = None) -> Any:
        """Send JSON to a path below ``/api/v1`` and return the answer's."""
        return self._call("POST", path, body if body is not None else {})

    def put(self, path: str, body: object) -> Any:
        """Replace what is at a path below ``/api/v1``."""
        return self._call("PUT", path, body)

    def _call(self, method: str, path: str, body: object) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the URL is the fleet's own
            f"{self._url}/api/v1{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise SkerryError(f"{method} {path} answered {error.code}: {detail}") from None
        except OSError as error:
            raise UnreachableError(f"the fleet at {self._url} does not answer: {error}") from None
