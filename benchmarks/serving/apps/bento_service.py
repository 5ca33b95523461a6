"""A service for BentoML: one worker, arrays in JSON as it has them."""

import bentoml
import numpy as np
from common import MODELS, open_model, wanted


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Measured:
    """Runs the models."""

    def __init__(self) -> None:
        self._sessions = {name: open_model(name) for name in wanted()}

    @bentoml.api(route="/infer/table")
    def table(self, row: np.ndarray) -> np.ndarray:
        """A row of a table."""
        return self._run("table", row)

    @bentoml.api(route="/infer/cnn")
    def cnn(self, row: np.ndarray) -> np.ndarray:
        """An image."""
        return self._run("cnn", row)

    def _run(self, name: str, row: np.ndarray) -> np.ndarray:
        about = MODELS[name]
        return self._sessions[name].run([about["output"]], {about["input"]: row.astype("f4")})[0]
