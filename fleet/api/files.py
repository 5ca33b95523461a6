"""The routes of whole files: bundles that are handed out, patches that are taken in."""

import asyncio
import tempfile
from collections.abc import Callable
from typing import IO, Final

from aiohttp import web

from fleet.api.auth import ACTOR
from fleet.api.reads import answer
from fleet.api.writes import BACKEND
from skerry.errors import UsageError

__all__ = ["routes"]

CHUNK_BYTES = 1 << 18
SPOOL_BYTES: Final = 8 << 20  # of a patch kept in memory; more goes to a file

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


@routes.put("/api/v1/patches/{digest}")
async def put_patch(request: web.Request) -> web.Response:
    """Take in a patch that a published release lists; a second time changes nothing."""
    commands, digest = request.app[BACKEND].commands, request.match_info["digest"]
    limit = await asyncio.to_thread(commands.patch_size, digest)
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as file:
        async for chunk in request.content.iter_chunked(CHUNK_BYTES):
            if file.tell() + len(chunk) > limit:
                raise UsageError(f"expected the {limit} bytes of {digest}, got more")
            await asyncio.to_thread(file.write, chunk)
        new = await asyncio.to_thread(commands.add_patch, digest, file, request[ACTOR])
    return answer({"digest": digest, "new": new}, 201)


def _reader(file: IO[bytes]) -> Callable[[int], bytes]:
    return file.read
