"""The routes that hand out whole files."""

import asyncio
import tempfile
from collections.abc import Callable
from typing import IO

from aiohttp import web

from fleet.api.writes import BACKEND

__all__ = ["routes"]

CHUNK_BYTES = 1 << 18

routes = web.RouteTableDef()


@routes.get("/api/v1/models/{model}/versions/{version}/bundle")
async def bundle(request: web.Request) -> web.StreamResponse:
    """Hand out the bundle file of a version; `latest` is the newest."""
    model, version = request.match_info["model"], request.match_info["version"]
    commands = request.app[BACKEND].commands
    # beside the spool: a bundle may be larger than the memory
    with await asyncio.to_thread(tempfile.TemporaryFile) as file:
        name = await asyncio.to_thread(commands.export, model, version, file)
        size = await asyncio.to_thread(file.seek, 0, 2)
        await asyncio.to_thread(file.seek, 0)
        response = web.StreamResponse(
            headers={
                "Content-Type": "application/x-tar",
                "Content-Length": str(size),
                "Content-Disposition": f'attachment; filename="{name}"',
            }
        )
        await response.prepare(request)
        read: Callable[[int], bytes] = _reader(file)
        while chunk := await asyncio.to_thread(read, CHUNK_BYTES):
            await response.write(chunk)
        await response.write_eof()
        return response


def _reader(file: IO[bytes]) -> Callable[[int], bytes]:
    return file.read
