"""The Open Inference Protocol by FastAPI and uvicorn, as one would write it in an afternoon."""

import numpy as np
import orjson
from common import MODELS, open_model, wanted
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

app = FastAPI()
sessions = {name: open_model(name) for name in wanted()}


class Tensor(BaseModel):
    """An input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] = []
    parameters: dict = {}


class Infer(BaseModel):
    """A request."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict = {}


@app.get("/v2/health/ready")
async def ready() -> Response:
    """The models are loaded by the time the application is."""
    return Response()


@app.post("/v2/models/{name}/infer")
async def infer(name: str, request: Request) -> Response:
    """Run a model inline."""
    body = await request.body()
    length = request.headers.get("inference-header-content-length")
    at = len(body) if length is None else int(length)
    asked = Infer.model_validate_json(body[:at])
    feed = {}
    for one in asked.inputs:
        if "binary_data_size" in one.parameters:
            size = one.parameters["binary_data_size"]
            feed[one.name] = np.frombuffer(body[at : at + size], np.float32).reshape(one.shape)
            at += size
        else:
            feed[one.name] = np.array(one.data, np.float32).reshape(one.shape)
    out = MODELS[name]["output"]
    scores = sessions[name].run([out], feed)[0]
    entry = {"name": out, "datatype": "FP32", "shape": list(scores.shape)}
    answer = {"model_name": name, "id": asked.id, "outputs": [entry]}
    if length is None:
        entry["data"] = scores.ravel().tolist()
        return Response(orjson.dumps(answer), media_type="application/json")
    raw = scores.tobytes()
    entry["parameters"] = {"binary_data_size": len(raw)}
    head = orjson.dumps(answer)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + raw, media_type="application/octet-stream", headers=headers)
