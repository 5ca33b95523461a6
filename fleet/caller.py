"""Who asks on the device listener: a device whose certificate is current, or nobody yet.

    GET /ca, POST /enrol     anybody: that is how a device comes by its certificate
    everything else          401 certificate_missing    none was shown
                             403 certificate_refused    the registry does not let it in

The registry is asked at each request, not once for each connection: a device that is rejected is
refused at once, and its downloads end with the request that is under way.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from aiohttp import web
from cryptography import x509

from fleet.api.problems import Handler, problem
from fleet.callout import Gate, Refusals
from fleet.certificates import subject_of
from skerry.enrolment import CA_PATH, ENROL_PATH
from skerry.errors import RefusedError
from skerry.ids import is_id

__all__ = ["CALLER", "Caller", "callers"]

OPEN: Final = frozenset({("GET", CA_PATH), ("POST", ENROL_PATH)})


@dataclass(frozen=True, slots=True)
class Caller:
    """A device that may ask, and the serial number of the certificate that it showed."""

    device_id: str
    serial: int


CALLER: Final = web.RequestKey("caller", Caller)


class Middleware(Protocol):
    """What aiohttp calls around a handler."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request."""
        ...


def callers(gate: Gate, clock: Callable[[], datetime]) -> Middleware:
    """Return the middleware that lets nobody in but accepted devices.

    Args:
        gate: who may connect.
        clock: returns the present, aware UTC.
    """
    refusals = Refusals()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (request.method, request.path) in OPEN:
            return await handler(request)
        shown = _shown(request)
        if shown is None:
            return problem(
                401, "expected the certificate of a device; enrol it first: skerry-agent enroll",
                code="certificate_missing", exit_code=RefusedError.exit_code,
            )  # fmt: skip
        now = clock()
        try:
            name = subject_of(shown)
            if not is_id(name):
                raise RefusedError(f"{name[:80]!r} is no device")
            # the handshake may be long ago
            if shown.not_valid_after_utc <= now:
                raise RefusedError(f"the certificate of {name} has expired")
            if not await asyncio.to_thread(gate.may_connect, name, shown.serial_number):
                raise RefusedError(f"{name} may not connect with this certificate")
        except RefusedError as error:
            refusals.tell(str(error), now.timestamp())
            return problem(
                403, f"{error}; is the device accepted? if so, preauthorize it again",
                code="certificate_refused", exit_code=RefusedError.exit_code,
            )  # fmt: skip
        request[CALLER] = Caller(name, shown.serial_number)
        return await handler(request)

    return check


def _shown(request: web.Request) -> x509.Certificate | None:
    """Return the certificate that TLS has verified for this connection."""
    connection = request.get_extra_info("ssl_object")
    der = None if connection is None else connection.getpeercert(binary_form=True)
    return None if der is None else x509.load_der_x509_certificate(der)
