"""The API's description (OpenAPI 3.1), made from its routes and the types it answers with."""

import re
from typing import Any, Final

import msgspec
from aiohttp import web

from fleet.api import views
from fleet.labels import LabelReport
from fleet.plan import Plan
from fleet.store_alerts import CommandRow
from skerry.wire import Policy

__all__ = ["document"]

PREFIX: Final = "/api/v1"
ANSWERS: Final[dict[tuple[str, str], type]] = {
    ("GET", "/devices/{device}"): views.DeviceView,
    ("POST", "/devices/preauthorize"): views.TokenView,
    ("GET", "/rollouts/{rollout}"): views.RolloutView,
    ("POST", "/rollouts/{rollout}/{action}"): views.RolloutView,
    ("GET", "/labels"): LabelReport,
    ("GET", "/predictions/ids"): views.IdPage,
    ("GET", "/accounting"): views.Accounting,
    ("GET", "/policy"): Policy,
    ("PUT", "/policy"): Policy,
    ("POST", "/devices/{device}/{state}"): views.DeviceView,
    ("POST", "/devices/{device}/commands"): CommandRow,
    ("GET", "/devices/{device}/commands/{command}"): CommandRow,
    ("POST", "/alerts/{alert}/acknowledge"): views.AlertView,
}
BODIES: Final[dict[tuple[str, str], type]] = {
    ("POST", "/rollouts"): Plan,
    ("PUT", "/policy"): Policy,
}


def document(app: web.Application) -> dict[str, Any]:
    """Return the OpenAPI document of an application's routes below ``/api/v1``."""
    kinds = {**ANSWERS, **BODIES}.values()
    unique = list({kind.__name__: kind for kind in kinds}.values())
    schemas, components = msgspec.json.schema_components(
        unique, ref_template="#/components/schemas/{name}"
    )
    references = {kind.__name__: schema for kind, schema in zip(unique, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in app.router.routes():
        resource = route.resource
        if resource is None or route.method == "HEAD":
            continue
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", resource.canonical)
        if not path.startswith(PREFIX):
            continue
        key = (route.method, path.removeprefix(PREFIX))
        paths.setdefault(key[1], {})[route.method.lower()] = _operation(route, key, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Skerry fleet", "version": "v1"},
        "servers": [{"url": PREFIX}],
        "security": [{"token": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    route: web.AbstractRoute, key: tuple[str, str], references: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    answered = ANSWERS.get(key)
    schema = references[answered.__name__] if answered is not None else {"type": "object"}
    operation: dict[str, Any] = {
        "summary": (route.handler.__doc__ or "").split("\n")[0],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", key[1])
        ],
        "responses": {
            "200": {"description": "ok", "content": {"application/json": {"schema": schema}}},
            "default": {
                "description": "what went wrong (RFC 9457)",
                "content": {"application/problem+json": {"schema": {"type": "object"}}},
            },
        },
    }
    body = BODIES.get(key)
    if body is not None:
        content = {"application/json": {"schema": references[body.__name__]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
