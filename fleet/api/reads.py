"""The reading routes: devices, models, rollouts, drift, alerts, accounting, changes."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from aiohttp import web

from fleet.histograms import histograms
from fleet.queries import Queries
from skerry.canonical import to_json
from skerry.errors import UsageError

__all__ = ["DAY_S", "LABEL_DAYS", "QUERIES", "STOPPING", "answer", "in_thread", "number", "routes"]

T = TypeVar("T")
QUERIES: Final = web.AppKey("queries", Queries)
STOPPING: Final = web.AppKey("stopping", asyncio.Event)  # an open stream must not hold up the end
CHANGES_EVERY_S: Final = 0.5
KEEP_ALIVE_S: Final = 15.0
MAX_DIGITS: Final = 15
DAY_S: Final = 86_400.0
LABEL_DAYS: Final = 30

routes = web.RouteTableDef()


def answer(value: object, status: int = 200) -> web.Response:
    """Return a value of `views` as JSON."""
    return web.Response(status=status, body=to_json(value), content_type="application/json")


async def in_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Run a database call off the event loop."""
    return await asyncio.to_thread(call, *arguments)


def number(request: web.Request, name: str, default: int) -> int:
    """Return a whole number of the query string.

    Raises:
        UsageError: it is none.
    """
    text = request.query.get(name, str(default))
    # isdigit alone is true of superscripts, and int() refuses thousands of digits
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise UsageError(f"expected {name} to be a whole number, got {text[:40]!r}")
    return int(text)


def _required(request: web.Request, name: str) -> str:
    value = request.query.get(name, "")
    if not value:
        raise UsageError(f"expected ?{name}=… in the address")
    return value


@routes.get("/api/v1/devices")
async def devices(request: web.Request) -> web.Response:
    """List the devices."""
    found = await in_thread(request.app[QUERIES].devices, time.time())
    return answer({"items": found, "next": None})


@routes.get("/api/v1/devices/{device}")
async def device(request: web.Request) -> web.Response:
    """Show one device."""
    name = request.match_info["device"]
    return answer((await in_thread(request.app[QUERIES].devices, time.time(), name))[0])


@routes.get("/api/v1/models")
async def models(request: web.Request) -> web.Response:
    """List the published versions of every model."""
    return answer({"items": await in_thread(request.app[QUERIES].releases), "next": None})


@routes.get("/api/v1/models/{model}/versions")
async def versions(request: web.Request) -> web.Response:
    """List the published versions of one model."""
    found = await in_thread(request.app[QUERIES].releases, request.match_info["model"])
    return answer({"items": found, "next": None})


@routes.get("/api/v1/rollouts")
async def rollouts(request: web.Request) -> web.Response:
    """List the rollouts, newest first."""
    return answer({"items": await in_thread(request.app[QUERIES].rollouts), "next": None})


@routes.get("/api/v1/rollouts/{rollout}")
async def rollout(request: web.Request) -> web.Response:
    """Show one rollout with its stages and assignments."""
    found = await in_thread(request.app[QUERIES].rollout, request.match_info["rollout"])
    response = answer(found)
    response.headers["ETag"] = f'"{found.revision}"'
    return response


@routes.get("/api/v1/drift")
async def drift(request: web.Request) -> web.Response:
    """Show the latest drift report of a model."""
    return answer(await in_thread(request.app[QUERIES].drift, _required(request, "model")))


@routes.get("/api/v1/drift/histograms")
async def drift_histograms(request: web.Request) -> web.Response:
    """Show a device's live features beside the baseline of its bundle, or of one of its slices."""
    found = await in_thread(
        histograms,
        request.app[QUERIES],
        _required(request, "device"),
        _required(request, "model"),
        number(request, "windows", 5),
        request.query.get("slice"),
    )
    return answer({"items": found, "next": None})


@routes.get("/api/v1/labels")
async def labels(request: web.Request) -> web.Response:
    """Show how right a model's releases were, by the labels that came later."""
    since = time.time() - DAY_S * number(request, "days", LABEL_DAYS)
    return answer(await in_thread(request.app[QUERIES].labels, _required(request, "model"), since))


@routes.get("/api/v1/alerts")
async def alerts(request: web.Request) -> web.Response:
    """List the alerts, newest first."""
    return answer({"items": await in_thread(request.app[QUERIES].alerts), "next": None})


@routes.get("/api/v1/windows/counts")
async def window_counts(request: web.Request) -> web.Response:
    """Count the full windows that each device has sent of a version."""
    found = await in_thread(
        request.app[QUERIES].window_counts,
        _required(request, "model"),
        _required(request, "model_version"),
        number(request, "min_n", 1),
    )
    return answer(found)


@routes.get("/api/v1/predictions/ids")
async def prediction_ids(request: web.Request) -> web.Response:
    """Page through the request ids of stored predictions."""
    cursor, limit = request.query.get("cursor", ""), number(request, "limit", 10_000)
    return answer(await in_thread(request.app[QUERIES].prediction_ids, cursor, limit))


@routes.get("/api/v1/accounting")
async def accounting(request: web.Request) -> web.Response:
    """Show totals of what was stored, refused and lost."""
    return answer(await in_thread(request.app[QUERIES].accounting))


@routes.get("/api/v1/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Say `change` whenever a rollout, a device's report or an alert changed (server-sent events)."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    queries, stopping = request.app[QUERIES], request.app[STOPPING]
    # the reader closes its tab whenever it likes: that is how a stream ends
    with suppress(ConnectionResetError):
        await response.prepare(request)
        last, silent = "", 0.0
        while not stopping.is_set():
            mark = await in_thread(queries.change_mark)
            if mark != last:
                last, silent = mark, 0.0
                await response.write(f"event: change\ndata: {mark}\n\n".encode())
            elif silent >= KEEP_ALIVE_S:
                silent = 0.0
                await response.write(b": still here\n\n")
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), CHANGES_EVERY_S)
            silent += CHANGES_EVERY_S
    return response
