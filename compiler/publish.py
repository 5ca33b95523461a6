"""Talking to a fleet: get its metadata, hand over a bundle; everything by urllib."""

import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from skerry.bundle import MAX_BUNDLE_BYTES
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

__all__ = ["check_url", "download", "fetch", "fetch_bundle", "publish", "upload_patch"]

TIMEOUT_S: Final = 30.0
MAX_ANSWER_BYTES: Final = 2 << 20
CHUNK_BYTES: Final = 1 << 16

BY_EXIT_CODE: Final[dict[int, type[SkerryError]]] = {
    2: UsageError,
    3: NotFoundError,
    4: RefusedError,
    5: ConflictError,
    6: GateError,
    7: TrustError,
    8: UnreachableError,
}
BY_STATUS: Final[dict[int, type[SkerryError]]] = {
    400: UsageError,
    401: RefusedError,
    403: RefusedError,
    404: NotFoundError,
    409: ConflictError,
    422: TrustError,
    503: UnreachableError,
}


def check_url(url: str) -> str:
    """Return a fleet's URL without its last slash.

    Raises:
        UsageError: not http or https.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"expected a URL such as http://127.0.0.1:8080, got {url[:120]!r}")
    return url.rstrip("/")


def fetch(url: str) -> bytes | None:
    """Return what is at a URL, or None where there is nothing.

    Raises:
        UnreachableError: no answer.
        SkerryError: the fleet refuses; the message is the fleet's.
    """
    try:
        return _send(urllib.request.Request(url))  # noqa: S310 - `check_url` saw to the scheme
    except NotFoundError:
        return None


def fetch_bundle(fleet: str, model: str, version: str, token: str) -> bytes:
    """Return the bundle file of a version that a fleet has.

    Args:
        fleet: URL of the operator API.
        model: its name, quoted.
        version: its version, quoted, or ``latest``.
        token: an operator's.

    Raises:
        NotFoundError: the fleet has no such version.
        UnreachableError: no answer.
        SkerryError: the fleet refuses, with its message and its exit code.
    """
    address = f"{fleet}/api/v1/models/{model}/versions/{version}/bundle"
    return download(address, token, MAX_BUNDLE_BYTES)


def download(url: str, token: str, limit: int = MAX_ANSWER_BYTES) -> bytes:
    """Return what an operator may read at a URL, of at most `limit` bytes.

    Raises:
        UnreachableError: no answer.
        SkerryError: the fleet refuses, with its message and its exit code.
    """
    request = urllib.request.Request(  # noqa: S310 - as above
        url, headers={"Authorization": f"Bearer {token}"}
    )
    return _send(request, limit)


def upload_patch(patch: Path, digest: str, fleet: str, token: str) -> None:
    """Hand a patch to a fleet that knows the release which lists it.

    Raises:
        UnreachableError: no answer.
        SkerryError: the fleet refuses, with its message and its exit code.
    """
    with patch.open("rb") as file:
        request = urllib.request.Request(  # noqa: S310 - as above
            f"{fleet}/api/v1/patches/{digest}",
            data=file,
            method="PUT",
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/octet-stream",
                "Content-Length": str(patch.stat().st_size),
            },
        )
        _send(request)


def publish(bundle: Path, metadata: bytes, fleet: str, token: str) -> dict[str, Any]:
    """Hand a bundle and its publisher's metadata to a fleet and return its answer.

    Args:
        bundle: the bundle file; it is sent in pieces, never held in memory.
        metadata: signed by the publisher.
        fleet: URL of the operator API.
        token: an operator's.

    Raises:
        UnreachableError: no answer.
        SkerryError: the fleet refuses, with its message and its exit code.
    """
    boundary = secrets.token_hex(16)
    head = _part(boundary, "metadata", "metadata.json", "application/json") + metadata + b"\r\n"
    head += _part(boundary, "bundle", bundle.name, "application/x-tar")
    tail = f"\r\n--{boundary}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        with bundle.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        yield tail

    request = urllib.request.Request(  # noqa: S310 - as above
        f"{fleet}/api/v1/bundles",
        data=body(),
        method="POST",
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + bundle.stat().st_size + len(tail)),
        },
    )
    answer = _send(request)
    try:
        value = json.loads(answer)
    except ValueError:
        raise FormatError(f"expected JSON from {fleet}; is this a fleet?") from None
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object from {fleet}; is this a fleet?")
    return value


def _send(request: urllib.request.Request, limit: int = MAX_ANSWER_BYTES) -> bytes:
    where = f"{request.type}://{request.host}"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            data: bytes = answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise _problem(error.code, error.read(MAX_ANSWER_BYTES), where) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UnreachableError(
            f"no answer from the fleet at {where}: {reason}; is it running?"
        ) from None
    if len(data) > limit:
        raise FormatError(f"{where} answered with more than {limit} bytes")
    return data


def _problem(status: int, body: bytes, where: str) -> SkerryError:
    """Return the error that a problem+json answer tells of (RFC 9457)."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    problem = problem if isinstance(problem, dict) else {}
    kind = BY_EXIT_CODE.get(problem.get("exit_code", 0)) or BY_STATUS.get(status, SkerryError)
    detail = problem.get("detail") or problem.get("title") or f"HTTP {status}"
    message = f"the fleet at {where} refused: {detail}"
    return (
        TrustError(message, str(problem.get("code", ""))) if kind is TrustError else kind(message)
    )


def _part(boundary: str, name: str, filename: str, media_type: str) -> bytes:
    safe = filename.replace('"', "").replace("\r", "").replace("\n", "")
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{safe}"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    ).encode()
