"""The changing routes: publish, roll out, enrol, acknowledge, set the policy."""

import asyncio
import functools
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any, Final, TypeVar

import msgspec
from aiohttp import BodyPartReader, web

from fleet.actions import Action
from fleet.api.auth import ACTOR
from fleet.api.backend import Backend
from fleet.api.body import parse_body
from fleet.api.reads import QUERIES, answer, in_thread
from fleet.commands import Commands
from fleet.plan import Plan
from skerry.bundle import MAX_BUNDLE_BYTES
from skerry.errors import ConflictError, SkerryError, UsageError
from skerry.states import DeviceState
from skerry.wire import Policy

__all__ = ["BACKEND", "routes"]

T = TypeVar("T")
BACKEND: Final = web.AppKey("backend", Backend)
MAX_METADATA_BYTES: Final = 4 << 20  # a role has 1 MiB at most; the move into bins has 65
MAX_BODY_BYTES: Final = 1 << 20
SPOOL_BYTES: Final = 8 << 20  # of an upload kept in memory; more goes to a file
CHUNK_BYTES: Final = 1 << 16
OPERATORS: Final = [action for action in Action if action is not Action.SUBMIT]

routes = web.RouteTableDef()


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verb: str
    args: dict[str, str] = {}


class _Preauthorize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device_id: str
    tags: dict[str, str] = {}
    again: bool = False  # also for a device that has enrolled before


async def _body(request: web.Request, kind: type[T]) -> T:
    """Return the request's JSON as a typed value.

    Raises:
        UsageError: too long, not JSON, unknown keys, or not of that type.
    """
    return parse_body(await request.read(), kind)


@routes.post("/api/v1/bundles")
async def publish(request: web.Request) -> web.Response:
    """Take a bundle and its publisher's signed metadata (multipart: `metadata`, `bundle`)."""
    if not request.content_type.startswith("multipart/"):
        raise UsageError("expected multipart/form-data with the parts metadata and bundle")
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
        published = await _command(request, Commands.publish, bundle, metadata)
    return answer({"target": published.target, "new": published.new}, 201)


@routes.post("/api/v1/rollouts")
async def create_rollout(request: web.Request) -> web.Response:
    """Start a rollout from a plan."""
    rollout_id = await _command(request, Commands.create_rollout, await _body(request, Plan))
    return answer({"rollout_id": rollout_id}, 201)


@routes.post(f"/api/v1/rollouts/{{rollout}}/{{action:{'|'.join(OPERATORS)}}}")
async def act(request: web.Request) -> web.Response:
    """Take one of an operator's actions on a rollout."""
    rollout_id, action = request.match_info["rollout"], Action(request.match_info["action"])
    await _command(request, Commands.act, rollout_id, action)
    return answer(await in_thread(request.app[QUERIES].rollout, rollout_id))


@routes.post("/api/v1/devices/preauthorize")
async def preauthorize(request: web.Request) -> web.Response:
    """Allow a device to enrol, and give its one-time token."""
    wanted = await _body(request, _Preauthorize)
    call = functools.partial(Commands.preauthorize, again=wanted.again)
    return answer(await _command(request, call, wanted.device_id, wanted.tags), 201)


@routes.post("/api/v1/devices/{device}/{state:accepted|rejected|decommissioned}")
async def move_device(request: web.Request) -> web.Response:
    """Accept, reject or decommission a device."""
    device, state = request.match_info["device"], DeviceState(request.match_info["state"])
    await _command(request, Commands.move_device, device, state)
    return answer((await in_thread(request.app[QUERIES].devices, time.time(), device))[0])


@routes.post("/api/v1/devices/{device}/commands")
async def command(request: web.Request) -> web.Response:
    """Ask something of a device, to be done at most once; its answer comes later."""
    wanted, device = await _body(request, _Order), request.match_info["device"]
    await in_thread(request.app[QUERIES].devices, time.time(), device)  # known at all
    command_id = await _command(request, Commands.command, device, wanted.verb, wanted.args)
    store = request.app[BACKEND].store.alerts
    return answer(await in_thread(store.command, device, command_id), 202)


@routes.get("/api/v1/devices/{device}/commands/{command}")
async def command_result(request: web.Request) -> web.Response:
    """Show a command, and what came of it."""
    store = request.app[BACKEND].store.alerts
    device, command_id = request.match_info["device"], request.match_info["command"]
    return answer(await in_thread(store.command, device, command_id))


@routes.get("/api/v1/policy")
async def policy(request: web.Request) -> web.Response:
    """Show the policy that holds for every device."""
    found = await in_thread(request.app[BACKEND].commands.policy)
    return answer(msgspec.structs.asdict(found))  # on the wire, defaults are left out


@routes.put("/api/v1/policy")
async def set_policy(request: web.Request) -> web.Response:
    """Change the policy; what is not given stays."""
    changes = await _body(request, dict[str, Any])
    old = await in_thread(request.app[BACKEND].commands.policy)
    unknown = sorted(set(changes) - set(Policy.__struct_fields__))
    if unknown:
        known = ", ".join(Policy.__struct_fields__)
        raise UsageError(f"expected keys of {known} in a policy, got {unknown[0]!r}")
    if changes.get("version", old.version) != old.version:
        raise ConflictError(
            f"expected the present version {old.version}, got {changes['version']}: "
            "somebody else changed the policy; read it again"
        )
    try:
        policy = msgspec.convert({**msgspec.to_builtins(old), **changes}, Policy)
    except msgspec.ValidationError as error:
        raise UsageError(f"expected a policy: {error}") from None
    return answer(msgspec.structs.asdict(await _command(request, Commands.set_policy, policy)))


@routes.post("/api/v1/alerts/{alert}/acknowledge")
async def acknowledge(request: web.Request) -> web.Response:
    """Note that somebody is looking at an alert."""
    alert_id = request.match_info["alert"]
    await _command(request, Commands.acknowledge_alert, alert_id)
    found = await in_thread(request.app[QUERIES].alerts)
    return answer(next(alert for alert in found if alert.alert_id == alert_id))


async def _command(request: web.Request, command: Callable[..., T], *arguments: Any) -> T:
    """Run one of the operators' commands in a thread, in the name of who asked."""
    commands, actor = request.app[BACKEND].commands, request[ACTOR]
    return await asyncio.to_thread(command, commands, *arguments, actor)


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
