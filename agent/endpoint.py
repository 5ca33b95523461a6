"""The device's HTTP interface: Open Inference Protocol v2, ``/metrics``, ``/healthz``.

    GET  /v2                                     what this server is
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models/{model}[/versions/{v}]       inputs, outputs; also .../ready, /config, /stats
    POST /v2/models/{model}[/versions/{v}]/infer
    POST /v2/models/{model}[/versions/{v}]/feedback   labels that come later (`agent.feedback`)
    POST /v2/repository/index                    which models there are

What is loaded is the fleet's decision, so loading, unloading, shared memory, tracing
and log settings are refused, in JSON as clients expect.

What a prediction is asked and answered is `agent.infer`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from agent.feedback import Feedback
from agent.http import HttpError
from agent.http_types import Request, Response
from agent.infer import Inference, Served

__all__ = ["Endpoint"]

MAX_ROUTES: Final = 256  # remembered
_TRITON_TYPES: Final = {"BYTES": "TYPE_STRING"}
Route = Callable[[Request], Response | None]


class Endpoint:
    """Answers requests for the models in service.

    Args:
        inference: answers requests for predictions.
        metrics: returns the text of ``/metrics``.
        feedback: takes labels.
        version: of the agent.
    """

    def __init__(
        self,
        inference: Inference,
        *,
        metrics: Callable[[], str],
        feedback: Feedback,
        version: str,
    ) -> None:
        self._feedback = feedback
        self._version = version
        self._inference = inference
        self._models = inference.models
        self._metrics = metrics
        self._routes: dict[tuple[str, bytes], Route] = {}

    def __call__(self, request: Request) -> Response | None:
        """Answer one request, or see to it that it is; a refusal is an `HttpError`."""
        key = (request.method, request.target)
        route = self._routes.get(key)
        if route is None:
            route = self._find(request)
            if len(self._routes) < MAX_ROUTES:
                self._routes[key] = route
        return route(request)

    def _find(self, request: Request) -> Route:
        path = unquote(request.target.split(b"?", 1)[0].decode("latin-1"))
        match path.strip("/").split("/"):
            case ["healthz"] | ["v2", "health", "live"]:
                get: Route = _empty
            case ["metrics"]:
                get = self._metrics_text
            case ["v2"]:
                get = self._server_metadata
            case ["v2", "health", "ready"]:
                get = self._ready
            case ["v2", "models", "stats"]:
                get = partial(self._statistics, self._models)
            case ["v2", "models", model, "versions", version, *rest]:
                return self._model_route(request.method, self._named(model, version), rest)
            case ["v2", "models", model, *rest]:
                return self._model_route(request.method, self._named(model, None), rest)
            case ["v2", "repository", "index"]:
                return _only("POST", request.method, self._index)
            case ["v2", "repository" | "systemsharedmemory" | "cudasharedmemory" | "trace", *_]:
                return _not_offered
            case ["v2", "logging", *_]:
                return _not_offered
            case _:
                raise HttpError(404, f"nothing is at {path[:200]!r}; the protocol begins at /v2")
        return _only("GET", request.method, get)

    def _model_route(self, method: str, served: Served, rest: list[str]) -> Route:
        match rest:
            case []:
                return _only("GET", method, partial(_model_metadata, served))
            case ["ready"]:
                return _only("GET", method, _empty)
            case ["config"]:
                return _only("GET", method, partial(_model_config, served))
            case ["stats"]:
                return _only("GET", method, partial(self._statistics, [served]))
            case ["infer"]:
                return _only("POST", method, partial(self._inference, served))
            case ["feedback"]:
                return _only("POST", method, partial(self._feedback, served.slot))
            case ["trace", *_]:
                return _not_offered
        raise HttpError(404, f"a model has no {'/'.join(rest)[:200]!r}")

    def _named(self, model: str, version: str | None) -> Served:
        for served in self._models:
            if served.slot.model == model and version in (None, "", served.slot.model_version):
                return served
        have = ", ".join(f"{s.slot.model} {s.slot.model_version}" for s in self._models)
        asked = model if version is None else f"{model} {version}"
        raise HttpError(404, f"expected a model of: {have or 'none yet'}; got {asked[:200]!r}")

    def _ready(self, _: Request) -> Response:
        if not self._models:
            raise HttpError(503, "no model is in service yet")
        return Response(200, [])

    def _server_metadata(self, _: Request) -> Response:
        extensions = ["binary_tensor_data", "statistics", "model_configuration"]
        return _json({"name": "skerry-agent", "version": self._version, "extensions": extensions})

    def _metrics_text(self, _: Request) -> Response:
        return Response(200, [self._metrics().encode()], "text/plain; version=0.0.4; charset=utf-8")

    def _index(self, _: Request) -> Response:
        return _json(
            [
                {
                    "name": s.slot.model,
                    "version": s.slot.model_version,
                    "state": "READY",
                    "reason": "",
                }
                for s in self._models
            ]
        )

    def _statistics(self, models: Sequence[Served], _: Request) -> Response:
        return _json({"model_stats": [_model_statistics(served) for served in models]})


def _only(wanted: str, method: str, route: Route) -> Route:
    if method != wanted:
        raise HttpError(405, f"expected {wanted}, got {method[:20]}")
    return route


def _json(value: Any) -> Response:
    return Response(200, [msgspec.json.encode(value)])


def _empty(_: Request) -> Response:
    return Response(200, [])


def _not_offered(_: Request) -> Response:
    raise HttpError(400, "not offered here: the fleet decides what is loaded and how it is watched")


def _model_metadata(served: Served, _: Request) -> Response:
    manifest = served.model.manifest
    slot, reading = served.slot, manifest.prediction
    return _json(
        {
            "name": slot.model,
            "versions": [slot.model_version],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in manifest.inputs
            ],
            "outputs": [
                {"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in manifest.outputs
            ],
            "parameters": {
                "bundle": slot.bundle,
                "variant": slot.variant,
                "slot": slot.slot,
                "ranges": {s.name: s.range for s in manifest.inputs if s.range},
                "prediction": {
                    "output": reading.output,
                    "kind": reading.kind,
                    "threshold": reading.threshold,
                    "class_names": served.model.outputs[reading.output].class_names,
                },
            },
        }
    )


def _model_config(served: Served, _: Request) -> Response:
    manifest = served.model.manifest
    ports = {
        side: [
            {
                "name": s.name,
                "data_type": _TRITON_TYPES.get(s.datatype, f"TYPE_{s.datatype}"),
                "dims": s.shape,
            }
            for s in specs
        ]
        for side, specs in (("input", manifest.inputs), ("output", manifest.outputs))
    }
    head = {"name": served.slot.model, "platform": "onnxruntime_onnx", "max_batch_size": 0}
    return _json(head | ports)


def _model_statistics(served: Served) -> dict[str, Any]:
    ns = int(served.latencies.sum_us * 1000)
    return {
        "name": served.slot.model,
        "version": served.slot.model_version,
        "inference_count": served.answered + served.repeated,
        "execution_count": served.latencies.n,
        "inference_stats": {
            "success": {"count": served.latencies.n, "ns": ns},
            "fail": {"count": served.errors, "ns": 0},
        },
    }
