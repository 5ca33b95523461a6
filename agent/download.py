"""Downloads: bounded, resumable, and named by digest, so that the place need not be trusted.

A file grows as ``<name>.part`` and takes its name when its digest is right. After a break it
goes on where it stopped (HTTP Range); a part that turns out wrong is thrown away once and
begun again. A server that drips is abandoned (`agent.pace`). Blocking: call it in a thread.
"""

import errno
import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from agent.ask import problem_of, tls_fault
from agent.durable import fsync_dir
from agent.pace import MIN_BYTES_S, SLOW_S, Limiter, SlowError, TooSlow, Watchdog, watched
from agent.room import NO_ROOM, check_room
from skerry.errors import (
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
)
from skerry.io.tls import client_context

__all__ = ["Fetcher"]

SMALL_BYTES: Final = 64 << 10
CHUNK_BYTES: Final = 1 << 20
MAX_TAG: Final = 128
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
CERTIFICATE_CODES: Final = frozenset({"certificate_missing", "certificate_refused"})


class Fetcher:
    """Fetches by HTTP.

    Args:
        base_url: of the fleet's device listener, or any OCI registry.
        timeout_s: how long a connection may be silent.
        ca_file: PEM of the authorities, one of which must have signed an https server's certificate.
        cert_file: PEM of the certificate to show to an https server.
        key_file: PEM of its key. The three are read anew when they were replaced.
        reserve_bytes: free disk space that a download leaves.
        stopped: asked between chunks; True ends the download.
        min_bytes_s: bytes a second that are worth waiting for, 0 for any.
        slow_s: seconds over which they are counted.
        limiter: of the rate of all downloads together.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        reserve_bytes: int = 0,
        stopped: Callable[[], bool] = lambda: False,
        min_bytes_s: int = MIN_BYTES_S,
        slow_s: float = SLOW_S,
        limiter: Limiter | None = None,
    ) -> None:
        self._new_watchdog = partial(Watchdog, min_bytes_s, slow_s, limiter, stopped)
        self._watchdog = self._new_watchdog()
        self._base = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._reserve_bytes = reserve_bytes
        self._stopped = stopped
        self._files = (ca_file, cert_file, key_file)
        self._opener: urllib.request.OpenerDirector | None = None
        self._read: list[tuple[int, int]] = []
        if not self._base.startswith(("http:", "https:")):
            raise RefusedError(f"expected an http or https address, got {base_url[:120]!r}")

    def small(self, path: str, limit: int) -> bytes:
        """Return the body at a path, of at most `limit` bytes.

        Raises:
            NotFoundError: the server does not have it.
            RefusedError: the server answered with another error.
            FormatError: it is longer.
            UnreachableError: no connection, it broke, or it is too slow.
        """
        try:
            with self._open(path) as response:
                data = bytearray()
                while chunk := response.read(SMALL_BYTES):
                    data += chunk
                    if len(data) > limit:
                        raise FormatError(f"expected at most {limit} bytes at {path}")
                return bytes(data)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken("reading", path, error) from None

    def unless(self, path: str, etag: str, limit: int) -> tuple[bytes, str] | None:
        """Return body and ETag at a path, None if it still is what this ETag names.

        Args:
            path: below the base address.
            etag: as it was once returned; empty for none.
            limit: of the body, in bytes.

        Raises:
            NotFoundError, RefusedError, FormatError, UnreachableError: as `small`.
        """
        try:
            with self._open(path, headers={"If-None-Match": etag} if etag else {}) as response:
                if response.status == 304:
                    return None
                data = response.read(limit + 1)
                tag = response.headers.get("ETag") or ""
                if not (tag.isascii() and tag.isprintable() and len(tag) <= MAX_TAG):
                    tag = ""  # it goes into every later request
        except (OSError, http.client.HTTPException) as error:
            raise self._broken("reading", path, error) from None
        if len(data) > limit:
            raise FormatError(f"expected at most {limit} bytes at {path}")
        return data, tag

    def blob(self, path: str, target: Path, *, digest: str, size_bytes: int) -> None:
        """Fetch a file, unless it is there; go on with a part of it.

        Raises:
            NotFoundError: the server does not have it.
            RefusedError: no room on the disk, or the server answered with another error.
            TrustError: code ``digest_mismatch``: the server has other bytes.
            UnreachableError: no connection, it broke, it is too slow, or the download was stopped.
        """
        if target.is_file():
            return
        part = target.with_name(target.name + ".part")
        resumed = self._grow(part, path, size_bytes)
        if self._digest(part, size_bytes) != digest and resumed:
            part.unlink(missing_ok=True)
            self._grow(part, path, size_bytes)
        if self._digest(part, size_bytes) != digest:
            part.unlink(missing_ok=True)
            raise TrustError(f"expected {digest} at {path}, got other bytes", "digest_mismatch")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        fsync_dir(target.parent)

    def _grow(self, part: Path, path: str, size_bytes: int) -> bool:
        """Bring a part to its full size; tell whether some of it was there."""
        have = part.stat().st_size if part.exists() else 0
        if have > size_bytes:
            part.unlink()
            have = 0
        if have == size_bytes and size_bytes > 0:
            return True
        check_room(part.parent, size_bytes - have, self._reserve_bytes)
        try:
            with self._open(path, offset=have) as response:
                resumed = have > 0 and response.status == 206
                with part.open("ab" if resumed else "wb") as file:
                    self._copy(response, file, size_bytes - (have if resumed else 0))
        except (OSError, http.client.HTTPException) as error:
            raise self._broken("fetching", path, error) from None
        if part.stat().st_size < size_bytes:
            raise UnreachableError(f"fetching {self._base}{path}: the connection ended early")
        return resumed

    def _broken(self, doing: str, path: str, error: Exception) -> SkerryError:
        if isinstance(error, TooSlow):
            return SlowError(f"{self._base} sends {error}")
        if isinstance(error, OSError) and error.errno in _FULL:
            return RefusedError(f"{doing} {path}: {error.strerror}; make room on the disk", NO_ROOM)
        return UnreachableError(f"{doing} {self._base}{path}: {error}")

    def _copy(self, response: Any, file: Any, budget: int) -> None:
        # what has come is written at once, so that a slow connection gets on at all
        while chunk := response.read1(SMALL_BYTES):
            if self._stopped():
                raise UnreachableError("the download was stopped")
            budget -= len(chunk)
            if budget < 0:
                # more than was promised: the digest could not be right
                file.write(chunk[:budget])
                return
            file.write(chunk)

    def _open(self, path: str, offset: int = 0, headers: Mapping[str, str] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - scheme checked above
            self._base + path, headers=dict(headers or {})
        )
        if offset:
            request.add_header("Range", f"bytes={offset}-")
        self._watchdog = self._new_watchdog()
        try:
            return self._current_opener().open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            if error.code == 304 and headers:
                return error  # which is an answer like any other
            code, detail = problem_of(error)
            message = f"{self._base}{path} answered {error.code}"
            if code in CERTIFICATE_CODES:
                # once the device is accepted again, it goes on where it stopped
                raise UnreachableError(f"{message}: {detail}") from None
            if error.code == 404:
                raise NotFoundError(message) from None
            if error.code >= 500 or error.code in {408, 429}:
                raise UnreachableError(message) from None
            raise RefusedError(message) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TooSlow):
                raise self._broken("asking for", path, reason) from None
            if isinstance(reason, ssl.SSLCertVerificationError):
                reason = tls_fault(reason, self._base, time.time())
            raise UnreachableError(f"no connection to {self._base}: {reason}") from None

    def _current_opener(self) -> urllib.request.OpenerDirector:
        """Return what opens connections, with certificates as they are now."""
        if self._base.startswith("http:"):
            plain = watched(urllib.request.HTTPHandler, self._current_watchdog)
            self._opener = self._opener or _opener(plain)
            return self._opener
        facts = [file.stat() for file in self._files if file is not None]
        read = [(fact.st_ino, fact.st_mtime_ns) for fact in facts]
        if self._opener is None or read != self._read:
            context = client_context(*self._files)
            handler = watched(urllib.request.HTTPSHandler, self._current_watchdog, context=context)
            self._opener, self._read = _opener(handler), read
        return self._opener

    def _current_watchdog(self) -> Watchdog:
        return self._watchdog

    def _digest(self, part: Path, size_bytes: int) -> str:
        if not part.exists() or part.stat().st_size != size_bytes:
            return ""
        hasher = hashlib.sha256()
        with part.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                hasher.update(chunk)
        return "sha256:" + hasher.hexdigest()


def _opener(handler: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    # a proxy of the environment has no business between a device and its fleet
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)
