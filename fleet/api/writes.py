"""The changing routes: publish, roll out, enrol, acknowledge, set the policy."""

import asyncio
import tempfile
from collections.abc import Callable
from typing import IO, Any, Final, TypeVar

import msgspec
from aiohttp import BodyPartReader, web

from fleet.api.auth import ACTOR
from fleet.api.backend import Backend
from fleet.api.reads import QUERIES, answer, in_thread
from fleet.plan import Plan
from skerry.bundle import MAX_BUNDLE_BYTES
from skerry.errors import SkerryError, UsageError
from skerry.wire import Policy

__all__ = ["BACKEND", "routes"]

T = TypeVar("T")
BACKEND: Final = web.AppKey("backend", Backend)
MAX_METADATA_BYTES: Final = 1 << 20
MAX_BODY_BYTES: Final = 1 << 20
SPOOL_BYTES: Final = 8 << 20  # of an upload kept in memory; more goes to a file
CHUNK_BYTES: Final = 1 << 16

routes = web.RouteTableDef()


class _Preauthorize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_id: str
    tags: dict[str, str] = {}


async def _body(request: web.Request, kind: type[T]) -> T:
    """Return the request's JSON as a typed value.

    Raises:
        UsageError: too long, not JSON, unknown keys, or not of that type.
    """
    data = await request.read()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"the request's JSON is wrong: {error}") from None


@routes.post("/api/v1/bundles")
async def publish(request: web.Request) -> web.Response:
    """Take a bundle and its publisher's signed metadata (multipart: `metadata`, `bundle`)."""
    if not request.content_type.startswith("multipart/"):
        raise UsageError("expected multipart/form-data with the parts metadata and bundle")
    commands, actor = request.app[BACKEND].commands, request[ACTOR]
    metadata: bytes | None = None
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as bundle:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise UsageError("expected plain parts, got nested ones")
            if part.name == "metadata":
                metadata = await _read_part(part, MAX_METADATA_BYTES)
            elif part.name == "bundle":
                await _save_part(part, bundle)
        if metadata is None or bundle.tell() == 0:
            raise UsageError("expected the parts metadata and bundle; one of them is missing")
        bundle.seek(0)
        published = await in_thread(commands.publish, bundle, metadata, actor)
    return answer(published, 201)


@routes.post("/api/v1/rollouts")
async def create_rollout(request: web.Request) -> web.Response:
    """Start a rollout from a plan."""
    plan = await _body(request, Plan)
    rollout_id = await in_thread(request.app[BACKEND].commands.create_rollout, plan, request[ACTOR])
    return answer({"rollout_id": rollout_id}, 201)


@routes.post("/api/v1/rollouts/{rollout}/{verb:pause|resume|abort|rollback}")
async def act(request: web.Request) -> web.Response:
    """Pause, resume, abort or roll back a rollout."""
    commands, rollout_id = request.app[BACKEND].commands, request.match_info["rollout"]
    act_on: Callable[..., None] = getattr(commands, request.match_info["verb"])
    await in_thread(act_on, rollout_id, request[ACTOR])
    return answer(await in_thread(request.app[QUERIES].rollout, rollout_id))


@routes.post("/api/v1/devices/preauthorize")
async def preauthorize(request: web.Request) -> web.Response:
    """Allow a device to enrol, and give its one-time token."""
    wanted = await _body(request, _Preauthorize)
    commands = request.app[BACKEND].commands
    made = await in_thread(commands.preauthorize, wanted.device_id, wanted.tags, request[ACTOR])
    return answer(made, 201)


@routes.get("/api/v1/policy")
async def policy(request: web.Request) -> web.Response:
    """Show the policy that holds for every device."""
    return answer(await in_thread(request.app[BACKEND].commands.policy))


@routes.put("/api/v1/policy")
async def set_policy(request: web.Request) -> web.Response:
    """Put a policy in force; its version is given by the fleet."""
    wanted: dict[str, Any] = await _body(request, dict[str, Any])
    try:
        # version is the fleet's to give; a typo must not pass as "unchanged"
        given = msgspec.convert({**wanted, "version": 0}, Policy)
    except msgspec.ValidationError as error:
        raise UsageError(f"the policy is wrong: {error}") from None
    unknown = sorted(set(wanted) - set(Policy.__struct_fields__))
    if unknown:
        known = ", ".join(Policy.__struct_fields__)
        raise UsageError(f"expected keys of {known} in a policy, got {', '.join(unknown)}")
    commands = request.app[BACKEND].commands
    return answer(await in_thread(commands.set_policy, given, request[ACTOR]))


@routes.post("/api/v1/alerts/{alert}/acknowledge")
async def acknowledge(request: web.Request) -> web.Response:
    """Note that somebody is looking at an alert."""
    alert_id = request.match_info["alert"]
    await in_thread(request.app[BACKEND].commands.acknowledge_alert, alert_id, request[ACTOR])
    found = await in_thread(request.app[QUERIES].alerts)
    return answer(next(alert for alert in found if alert.alert_id == alert_id))


async def _read_part(part: BodyPartReader, limit: int) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        data += chunk
        if len(data) > limit:
            raise UsageError(f"expected {part.name} of at most {limit} bytes")
    return bytes(data)


async def _save_part(part: BodyPartReader, out: IO[bytes]) -> None:
    size = 0
    while chunk := await part.read_chunk(CHUNK_BYTES):
        size += len(chunk)
        if size > MAX_BUNDLE_BYTES:
            raise SkerryError(f"expected a bundle of at most {MAX_BUNDLE_BYTES} bytes")
        await asyncio.to_thread(out.write, chunk)
