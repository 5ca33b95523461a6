"""Who may call: a bearer token for programs, a session cookie for the console.

The admin token is compared by digest in constant time. A browser opens ``/login``
with it once and gets a cookie that no script reads and no other site sends; what it
changes must come from our own pages (Origin), since a cookie travels by itself.
Sessions live in memory: a restart of the fleet asks for the token again.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from fleet.api.problems import problem

__all__ = ["ACTOR", "Sessions", "cookie_name", "make_auth"]

COOKIE: Final = "skerry_session"
SESSION_S: Final = 12 * 3600.0
MAX_SESSIONS: Final = 256
OPEN: Final = frozenset({"/healthz", "/readyz", "/login"})
OPEN_BELOW: Final = ("/static/", "/tuf/")  # the console's looks, and what is signed anyway
SAFE: Final = frozenset({"GET", "HEAD"})
ACTOR: Final = web.RequestKey("actor", str)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def cookie_name(host: str) -> str:
    """Return the name of the session's cookie, by a request's Host.

    A browser sends a host's cookies to all its ports (RFC 6265, section 8.5): of one name, those
    of two fleets on one machine would sign each other out.
    """
    port = host.rpartition(":")[2]
    return f"{COOKIE}_{port}" if port.isascii() and port.isdigit() else COOKIE


class Sessions:
    """The console's sessions, and the token that opens one."""

    def __init__(self, admin_token: str) -> None:
        self._token_digest: Final = _digest(admin_token)
        self._until: dict[str, float] = {}  # digest of the cookie -> monotonic end

    def knows_token(self, token: str) -> bool:
        """Tell whether this is the admin token."""
        return hmac.compare_digest(_digest(token), self._token_digest)

    def begin(self) -> str:
        """Return the cookie of a new session."""
        cookie = secrets.token_urlsafe(32)
        now = time.monotonic()
        self._until = {key: end for key, end in self._until.items() if end > now}
        while len(self._until) >= MAX_SESSIONS:
            self._until.pop(min(self._until, key=self._until.__getitem__))
        self._until[_digest(cookie)] = now + SESSION_S
        return cookie

    def knows_cookie(self, cookie: str) -> bool:
        """Tell whether a cookie belongs to a session that has not ended."""
        return self._until.get(_digest(cookie), 0.0) > time.monotonic()


def make_auth(sessions: Sessions) -> Middleware:
    """Return the middleware that lets in whom it knows."""

    @web.middleware
    async def auth(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN or request.path.startswith(OPEN_BELOW):
            return await handler(request)
        header = request.headers.get("Authorization", "")
        if header.startswith("Bearer ") and sessions.knows_token(header.removeprefix("Bearer ")):
            request[ACTOR] = "admin"
            return await handler(request)
        if not header and sessions.knows_cookie(request.cookies.get(cookie_name(request.host), "")):
            if request.method not in SAFE and not _from_here(request):
                return problem(
                    403, "expected a request from the console's own pages", code="foreign_origin",
                    exit_code=4,
                )  # fmt: skip
            request[ACTOR] = "admin"
            return await handler(request)
        if request.path.startswith("/api/") or request.path == "/metrics":
            answer = problem(
                401,
                "expected the operator's token as `Authorization: Bearer …`; it is in the fleet's "
                "data directory, in admin.token",
                code="unauthorized",
                exit_code=4,
            )
            answer.headers["WWW-Authenticate"] = 'Bearer realm="skerry"'
            return answer
        raise web.HTTPSeeOther("/login")

    return auth


def _from_here(request: web.Request) -> bool:
    origin = request.headers.get("Origin", "")
    return bool(origin) and urlsplit(origin).netloc == request.host


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
