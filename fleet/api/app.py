"""The operators' application: API, console, health and metrics, on one listener."""

import asyncio
import re
from typing import Final

from aiohttp import web

from fleet.api import files, reads, writes
from fleet.api.auth import Sessions, make_auth
from fleet.api.backend import Backend
from fleet.api.openapi import document
from fleet.api.problems import problems
from fleet.console import pages
from fleet.queries import Queries
from skerry.errors import NotFoundError

__all__ = ["make_app"]

METADATA_NAME: Final = re.compile(r"[0-9a-z.\-]{1,100}\.json")


def make_app(backend: Backend) -> web.Application:
    """Return the operators' application over a running service."""
    sessions = Sessions(backend.admin_token)
    app = web.Application(
        middlewares=[problems, make_auth(sessions)], client_max_size=writes.MAX_BODY_BYTES
    )
    app[reads.QUERIES] = Queries(backend.store.database)
    app[reads.STOPPING] = asyncio.Event()
    app.on_shutdown.append(_end_streams)
    app[writes.BACKEND] = backend
    app[pages.SESSIONS] = sessions
    for routes in (reads.routes, writes.routes, files.routes, pages.routes, _own_routes()):
        app.router.add_routes(routes)
    app.router.add_static("/static/", pages.STATIC)
    return app


async def _end_streams(app: web.Application) -> None:
    app[reads.STOPPING].set()


def _own_routes() -> web.RouteTableDef:
    routes = web.RouteTableDef()

    @routes.get("/healthz")
    async def healthz(_: web.Request) -> web.Response:
        """Say that the process answers."""
        return web.Response(text="ok\n")

    @routes.get("/readyz")
    async def readyz(request: web.Request) -> web.Response:
        """Say whether broker, ingest and engine are at work."""
        ready = request.app[writes.BACKEND].is_ready
        return web.Response(
            text="ready\n" if ready else "not ready\n", status=200 if ready else 503
        )

    @routes.get("/metrics")
    async def metrics(request: web.Request) -> web.Response:
        """Say the fleet's numbers to Prometheus."""
        totals = await reads.in_thread(request.app[reads.QUERIES].totals)
        lines = [
            "# TYPE skerry_predictions_stored_total counter",
            f"skerry_predictions_stored_total {totals.stored}",
            "# TYPE skerry_lost_records_at_most counter",
            f"skerry_lost_records_at_most {totals.lost_at_most}",
            "# TYPE skerry_messages_refused_total counter",
            *(
                f'skerry_messages_refused_total{{reason="{reason}"}} {count}'
                for reason, count in sorted(totals.refused.items())
            ),
        ]
        return web.Response(text="\n".join(lines) + "\n")

    @routes.get("/tuf/catalog/metadata/{name}")
    async def metadata(request: web.Request) -> web.Response:
        """Give the catalog's metadata; it is signed and public."""
        catalog, name = request.app[writes.BACKEND].catalog, request.match_info["name"]
        if METADATA_NAME.fullmatch(name) is None:
            raise NotFoundError(f"there is no metadata {name[:80]!r}")
        data = await reads.in_thread(catalog.metadata, name)
        return web.Response(body=data, content_type="application/json")

    @routes.get("/api/v1/openapi.json")
    async def openapi(request: web.Request) -> web.Response:
        """Describe this API (OpenAPI 3.1)."""
        return reads.answer(document(request.app))

    return routes
