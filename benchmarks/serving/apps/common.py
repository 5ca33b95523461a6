"""What the other servers' programs share: the models, opened as the agent opens them."""

import json
import os
from pathlib import Path

import onnxruntime as ort

MODELS = json.loads(Path(os.environ["MODELS_JSON"]).read_text())


def open_model(name: str) -> ort.InferenceSession:
    """One thread, no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return ort.InferenceSession(MODELS[name]["file"], options, providers=["CPUExecutionProvider"])


def wanted() -> list[str]:
    """Names of the models to serve."""
    return os.environ["MODELS"].split(",")
