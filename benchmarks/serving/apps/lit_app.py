"""A server by LitServe: one worker, JSON."""

import os

import litserve as ls
import numpy as np
from common import MODELS, open_model, wanted


class Measured(ls.LitAPI):
    """Runs the models."""

    def setup(self, device: str) -> None:
        """Open them in the worker."""
        self._sessions = {name: open_model(name) for name in wanted()}

    def decode_request(self, request: dict) -> tuple:
        """JSON into an array."""
        return request["model"], np.array(request["row"], np.float32)

    def predict(self, x: tuple) -> np.ndarray:
        """Run a model."""
        name, row = x
        about = MODELS[name]
        return self._sessions[name].run([about["output"]], {about["input"]: row})[0]

    def encode_response(self, output: np.ndarray) -> dict:
        """An array into JSON."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Measured(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
