"""Errors as problem documents (RFC 9457): one sentence, a stable code, an exit code."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from skerry.canonical import to_json
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

__all__ = ["PROBLEM_TYPE", "problem", "problems"]

PROBLEM_TYPE: Final = "application/problem+json"
STATUS: Final[dict[type[SkerryError], int]] = {
    UsageError: 400,
    FormatError: 400,
    NotFoundError: 404,
    RefusedError: 409,
    ConflictError: 409,
    GateError: 422,
    TrustError: 422,
    UnreachableError: 503,
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
logger = logging.getLogger(__name__)


def problem(status: int, detail: str, *, code: str, exit_code: int = 1) -> web.Response:
    """Return a problem document."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": code.replace("_", " "),
        "status": status,
        "detail": detail,
        "code": code,
        "exit_code": exit_code,
    }
    return web.Response(status=status, body=to_json(body), content_type=PROBLEM_TYPE)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a problem document."""
    try:
        return await handler(request)
    except SkerryError as error:
        return _of(error)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type != "text/plain":
            raise
        code = error.reason.lower().replace(" ", "_")
        if error.status == web.HTTPNotFound.status_code:
            detail = (
                f"there is nothing at {request.path[:200]} here; operators and devices have "
                "addresses of their own: is this the right one?"
            )
            return problem(error.status, detail, code=code, exit_code=NotFoundError.exit_code)
        detail = f"{request.method} {request.path[:200]}: {error.reason.lower()}"
        return problem(error.status, detail, code=code, exit_code=RefusedError.exit_code)
    except ConnectionError:
        raise  # the other side left; nobody is there to read a document
    except Exception:
        logger.exception("a request failed: %s %s", request.method, request.path)
        return problem(500, "the fleet failed; its log says why", code="internal_error")


def _of(error: SkerryError) -> web.Response:
    status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500)
    if isinstance(error, TrustError | RefusedError | FormatError):
        code = error.code
    else:
        code = _code(error)
    return problem(status, str(error), code=code, exit_code=error.exit_code)


def _code(error: SkerryError) -> str:
    name = type(error).__name__.removesuffix("Error")
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
