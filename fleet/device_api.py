"""What devices ask of the fleet over HTTP: enrolment, bundles, catalog metadata.

    GET  /ca                                      the fleet's authorities, to compare
    POST /enrol                                   a token for a certificate (`skerry.enrolment`)
    POST /renew                                   a new certificate in time
    GET  /v2/                                     this is an OCI registry
    GET  /v2/{model}/manifests/{digest}           an OCI manifest
    GET  /v2/{model}/blobs/{digest}               a blob; Range, ETag, HEAD
    GET  /tuf/catalog/metadata/{name}             see `Catalog.metadata`
    GET  /tuf/director/metadata/{n}.root.json     later roots of the director

All but the first two want a device's certificate (`fleet.caller`).
Only digests name content, no tags: what a device asks for is what it has verified. Errors are
problem documents (RFC 9457). Source: OCI distribution specification 1.1, "Pulling manifests" and
"Pulling blobs"; RFC 9110, sections 13 and 14.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aiohttp import web

from fleet.api.problems import problem, problems
from fleet.blobs import CHUNK_BYTES, Blobs
from fleet.byte_range import byte_range
from fleet.caller import CALLER, Caller, callers
from fleet.catalog import Catalog
from fleet.director import Director
from fleet.registry import Registry
from skerry.bundle import MANIFEST_TYPE, MAX_MANIFEST_BYTES, parse_oci_manifest
from skerry.canonical import from_json, to_json
from skerry.enrolment import (
    CA_PATH,
    ENROL_PATH,
    MAX_ENROL_BYTES,
    RENEW_PATH,
    EnrolAnswer,
    EnrolRequest,
    RenewAnswer,
    RenewRequest,
)
from skerry.errors import FormatError, NotFoundError, RefusedError
from skerry.ids import ID_PATTERN

__all__ = ["DeviceListener", "add_catalog_routes", "device_app"]

ENROL_TIMEOUT_S: Final = 10.0
MAX_ENROLLING: Final = 8  # requests at a time: each signs a certificate and writes a transaction
MAX_PULLS: Final = 64
MAX_PULLS_EACH: Final = 8  # of one device: it cannot take every place
STALL_TIMEOUT_S: Final = 60.0  # for one chunk
DIGEST: Final = r"{digest:sha256:[0-9a-f]{64}}"
MODEL: Final = "{model:" + ID_PATTERN + "}"
IMMUTABLE: Final = "public, max-age=31536000, immutable"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceListener:
    """What stands behind the device listener.

    Attributes:
        fleet_id: in every topic.
        broker_url: where devices find the broker; asked at each enrolment.
        shards: ingest slots of this fleet.
        clock: returns the present, aware UTC.
    """

    registry: Registry
    catalog: Catalog
    director: Director
    blobs: Blobs
    ca: str  # PEM of the root authorities
    fleet_id: str
    broker_url: Callable[[], str]
    shards: int
    clock: Callable[[], datetime]


def device_app(listener: DeviceListener) -> web.Application:
    """Return the application of the device listener."""
    app = web.Application(
        middlewares=[problems, callers(listener.registry, listener.clock)],
        client_max_size=MAX_ENROL_BYTES,
    )
    pulls, certificates = _Pulls(listener.blobs), _Certificates(listener)
    app.router.add_get(CA_PATH, certificates.authorities)
    app.router.add_post(ENROL_PATH, certificates.enrol)
    app.router.add_post(RENEW_PATH, certificates.renew)
    app.router.add_get("/v2/", _version)
    app.router.add_get(f"/v2/{MODEL}/manifests/{DIGEST}", pulls.manifest)
    app.router.add_get(f"/v2/{MODEL}/blobs/{DIGEST}", pulls.blob)
    add_catalog_routes(app, listener.catalog, listener.director)
    return app


def add_catalog_routes(app: web.Application, catalog: Catalog, director: Director) -> None:
    """Serve the public metadata of both repositories, on whichever listener this is."""

    async def catalog_file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return _metadata(request, await asyncio.to_thread(catalog.metadata, name), name)

    async def director_file(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return _metadata(request, director.metadata(name), name)

    app.router.add_get("/tuf/catalog/metadata/{name}", catalog_file)
    app.router.add_get("/tuf/director/metadata/{name}", director_file)


def _metadata(request: web.Request, data: bytes, name: str) -> web.Response:
    # a file with its version in its name never changes
    numbered = name[:1].isdecimal()
    tag = hashlib.sha256(data).hexdigest()[:32]  # devices ask daily and nightly: few bytes
    headers = {"Cache-Control": IMMUTABLE if numbered else "no-cache", "ETag": _etag(tag)}
    if _unchanged(request, tag):
        return web.Response(status=304, headers=headers)
    return web.Response(body=data, content_type="application/json", headers=headers)


async def _version(request: web.Request) -> web.Response:
    return web.Response(body=b"{}", content_type="application/json")


class _Certificates:
    """Gives certificates, a few at a time."""

    def __init__(self, listener: DeviceListener) -> None:
        self._listener = listener
        self._gate = asyncio.Semaphore(MAX_ENROLLING)

    async def authorities(self, request: web.Request) -> web.Response:
        return web.Response(text=self._listener.ca, content_type="application/x-pem-file")

    async def enrol(self, request: web.Request) -> web.Response:
        wanted = from_json(await _body(request), EnrolRequest, limit=MAX_ENROL_BYTES)
        async with self._gate:
            try:
                answer = await asyncio.to_thread(self._enrol, wanted)
            except RefusedError as error:
                logger.warning("an enrolment was refused: %s", request.remote)
                return problem(403, str(error), code="token_refused", exit_code=error.exit_code)
        return web.Response(body=to_json(answer), content_type="application/json")

    async def renew(self, request: web.Request) -> web.Response:
        caller = request[CALLER]
        wanted = from_json(await _body(request), RenewRequest, limit=MAX_ENROL_BYTES)
        async with self._gate:
            try:
                answer = await asyncio.to_thread(self._renew, caller, wanted)
            except RefusedError as error:
                code = "certificate_refused"
                return problem(403, str(error), code=code, exit_code=error.exit_code)
        return web.Response(body=to_json(answer), content_type="application/json")

    def _renew(self, caller: Caller, request: RenewRequest) -> RenewAnswer:
        listener = self._listener
        certificate = listener.registry.renew(
            caller.device_id, caller.serial, request.csr, listener.clock()
        )
        logger.info("%s has a new certificate, until %s", caller.device_id, certificate.expires)
        return RenewAnswer(certificate.pem, listener.ca)

    def _enrol(self, request: EnrolRequest) -> EnrolAnswer:
        listener = self._listener
        enrolled = listener.registry.enrol(request, listener.clock())
        record = enrolled.record
        logger.info("%s enrolled%s", record.device_id, " again" if enrolled.again else "")
        return EnrolAnswer(
            device_id=record.device_id,
            client_id=record.client_id,
            fleet_id=listener.fleet_id,
            certificate=record.certificate,
            ca=listener.ca,
            catalog_root=listener.catalog.root,
            director_root=listener.director.root,
            broker_url=listener.broker_url(),
            shards=listener.shards,
        )


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(ENROL_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None


class _Pulls:
    """The pull part of an OCI registry."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._gate = asyncio.Semaphore(MAX_PULLS)
        self._pulling: Counter[str] = Counter()  # by device

    async def manifest(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        if self._blobs.size(digest) > MAX_MANIFEST_BYTES:
            raise NotFoundError(f"{digest} is no manifest")
        data = self._blobs.read(digest)
        try:
            oci = parse_oci_manifest(data)
        except FormatError:
            raise NotFoundError(f"{digest} is no manifest") from None
        if oci.annotations.get("org.opencontainers.image.title") != request.match_info["model"]:
            raise NotFoundError(f"no manifest {digest} of {request.match_info['model']}")
        headers = _headers(digest)
        if _unchanged(request, digest):
            return web.Response(status=304, headers=headers)
        return web.Response(body=data, content_type=MANIFEST_TYPE, headers=headers)

    async def blob(self, request: web.Request) -> web.StreamResponse:
        device = request[CALLER].device_id
        if self._pulling[device] >= MAX_PULLS_EACH:
            return problem(429, f"expected at most {MAX_PULLS_EACH} pulls at a time", code="busy")
        self._pulling[device] += 1
        try:
            return await self._pull(request)
        finally:
            self._pulling[device] -= 1
            if not self._pulling[device]:
                del self._pulling[device]

    async def _pull(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        size = self._blobs.size(digest)
        headers = _headers(digest) | {"Accept-Ranges": "bytes"}
        if _unchanged(request, digest):
            return web.Response(status=304, headers=headers)
        span = None
        # RFC 9110, 13.1.5: a range of something else than the client has is no use to it
        if request.headers.get("If-Range", _etag(digest)) == _etag(digest):
            span = byte_range(request.headers.get("Range"), size)
        if span is not None and not span:
            refused = problem(416, f"expected a range within {size} bytes", code="range")
            refused.headers["Content-Range"] = f"bytes */{size}"
            return refused
        first, length = (span.start, len(span)) if span is not None else (0, size)
        response = web.StreamResponse(status=200 if span is None else 206, headers=headers)
        if span is not None:
            response.headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        response.content_type = "application/octet-stream"
        response.content_length = length
        async with self._gate:
            await response.prepare(request)
            if request.method != "HEAD":
                await self._send(response, digest, first, length)
        await response.write_eof()
        return response

    async def _send(
        self, response: web.StreamResponse, digest: str, first: int, length: int
    ) -> None:
        with self._blobs.open(digest) as stream:
            stream.seek(first)
            while length > 0:
                chunk = await asyncio.to_thread(stream.read, min(CHUNK_BYTES, length))
                if not chunk:
                    raise ConnectionResetError(f"{digest} became shorter while it was sent")
                length -= len(chunk)
                try:
                    async with asyncio.timeout(STALL_TIMEOUT_S):
                        await response.write(chunk)
                except TimeoutError:
                    # it may go on later where it stopped; others wait for the place
                    raise ConnectionResetError(f"{digest} was not taken in time") from None


def _etag(digest: str) -> str:
    return f'"{digest}"'


def _headers(digest: str) -> dict[str, str]:
    return {
        "ETag": _etag(digest),
        "Docker-Content-Digest": digest,
        "Cache-Control": IMMUTABLE,
        "X-Content-Type-Options": "nosniff",
    }


def _unchanged(request: web.Request, digest: str) -> bool:
    held = request.headers.get("If-None-Match", "")
    return held.strip() == "*" or _etag(digest) in (tag.strip() for tag in held.split(","))
