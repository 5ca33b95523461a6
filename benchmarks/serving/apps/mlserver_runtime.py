"""A model for MLServer: its own codecs, one session."""

from common import MODELS, open_model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    """Runs one model."""

    async def load(self) -> bool:
        """Open it."""
        self._session = open_model(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run it."""
        about = MODELS[self.name]
        row = NumpyCodec.decode_input(payload.inputs[0]).astype("float32", copy=False)
        scores = self._session.run([about["output"]], {about["input"]: row})[0]
        output = NumpyCodec.encode_output(about["output"], scores)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
