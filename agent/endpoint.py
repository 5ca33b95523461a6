"""The device's HTTP interface: Open Inference Protocol v2, ``/metrics``, ``/healthz``.

    GET  /v2                                     what this server is
    GET  /v2/health/live, /v2/health/ready
    GET  /v2/models/{model}[/versions/{v}]       inputs, outputs; also .../ready, /config, /stats
    POST /v2/models/{model}[/versions/{v}]/infer
    POST /v2/repository/index                    which models there are

What is loaded is the fleet's decision, so loading, unloading, shared memory, tracing
and log settings are refused, in JSON as clients expect.

A prediction is run, recorded and counted in the event loop: record first, then reply.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from agent import oip
from agent.http import HttpError, Request, Response
from agent.latency import Latencies
from agent.observe import Observer
from agent.runtime import Model
from agent.serve_protocol import ServeSlot, SlotStats
from skerry.errors import UsageError

__all__ = ["Endpoint", "Served"]

JSON_LENGTH: Final = b"inference-header-content-length"
MAX_ROWS: Final = 4096  # of one request
MAX_ROUTES: Final = 256  # remembered
_TRITON_TYPES: Final = {"BYTES": "TYPE_STRING"}
Route = Callable[[Request], Response]
try:
    _VERSION = version("skerry")
except PackageNotFoundError:  # run from a source tree
    _VERSION = "0"


@dataclass(slots=True)
class Served:
    """One model in service, and what it did."""

    slot: ServeSlot
    model: Model
    ctx: int
    answered: int = 0
    repeated: int = 0
    errors: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def stats(self) -> SlotStats:
        """Return what control wants to know."""
        return SlotStats(
            self.answered,
            self.errors,
            self.latencies.quantile(0.5),
            self.latencies.quantile(0.99),
        )


class Endpoint:
    """Answers requests for the models in service.

    Args:
        models: in the order of the contexts.
        observer: records what was answered.
        before_look_up: called before an id is looked up (another process may have seen it).
        metrics: returns the text of ``/metrics``.
    """

    def __init__(
        self,
        models: Sequence[Served],
        observer: Observer,
        *,
        before_look_up: Callable[[], None],
        metrics: Callable[[], str],
    ) -> None:
        self._models = models
        self._observer = observer
        self._before_look_up = before_look_up
        self._metrics = metrics
        self._routes: dict[tuple[str, bytes], Route] = {}

    def __call__(self, request: Request) -> Response:
        """Answer one request; a refusal is an `HttpError`."""
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
                get = _server_metadata
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
                return _only("POST", method, partial(self._infer, served))
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

    def _infer(self, served: Served, request: Request) -> Response:
        try:
            asked, raw = oip.decode_request(request.body, _json_length(request))
            tensors = oip.read_inputs(asked, raw, served.model.inputs)
            most = max(len(values) for values in tensors.values())
            if most > MAX_ROWS:
                raise UsageError(f"expected at most {MAX_ROWS} rows in a request, got {most}")
            oip.check_wanted(asked, served.model.outputs)
        except UsageError as error:
            raise HttpError(400, str(error)) from None
        try:
            outputs = served.model.run(tensors)
            rows = served.model.rows(tensors, outputs)
        except Exception as error:  # whatever a model may do: it is the model's error
            served.errors += 1
            self._observer.error(served.ctx, time.time())
            raise HttpError(500, f"the model failed: {str(error)[:300]}") from None
        id = asked.id or secrets.token_hex(8)
        slot = served.slot
        answer = oip.Answer(
            slot.model, slot.model_version, id, {"bundle": slot.bundle, "variant": slot.variant}
        )
        parts, json_length = oip.encode_answer(answer, asked, outputs, served.model.outputs)
        if asked.id:
            self._before_look_up()
        at = time.time()
        latency_us = (perf_counter() - request.received) * 1e6
        served.latencies.add(latency_us)
        for i, row in enumerate(rows):
            new = self._observer.record(
                served.ctx,
                id if len(rows) == 1 else f"{id}#{i}",
                at=at,
                prediction=row.prediction,
                confidence=row.confidence,
                latency_us=int(latency_us),
                features=row.features,
            )
            if new:
                served.answered += 1
            else:
                served.repeated += 1
        if json_length is None:
            return Response(200, parts)
        head = {"Inference-Header-Content-Length": str(json_length)}
        return Response(200, parts, "application/octet-stream", head)

    def _ready(self, _: Request) -> Response:
        if not self._models:
            raise HttpError(503, "no model is in service yet")
        return Response(200, [])

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


def _json_length(request: Request) -> int | None:
    text = request.headers.get(JSON_LENGTH)
    if text is None:
        return None
    if not text.isdigit() or len(text) > 12:
        raise UsageError(
            f"expected Inference-Header-Content-Length to be a number, got {text[:40]!r}"
        )
    return int(text)


def _json(value: Any) -> Response:
    return Response(200, [msgspec.json.encode(value)])


def _empty(_: Request) -> Response:
    return Response(200, [])


def _not_offered(_: Request) -> Response:
    raise HttpError(400, "not offered here: the fleet decides what is loaded and how it is watched")


def _server_metadata(_: Request) -> Response:
    extensions = ["binary_tensor_data", "statistics", "model_configuration"]
    return _json({"name": "skerry-agent", "version": _VERSION, "extensions": extensions})


def _model_metadata(served: Served, _: Request) -> Response:
    manifest = served.model.manifest
    slot = served.slot
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
            "parameters": {"bundle": slot.bundle, "variant": slot.variant, "slot": slot.slot},
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
