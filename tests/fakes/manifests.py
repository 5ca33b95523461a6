"""The smallest manifest that says everything."""

from collections.abc import Mapping

from skerry.canonical import sha256
from skerry.manifest import (
    Accuracy,
    FeatureSpec,
    FileRef,
    Lineage,
    Manifest,
    PredictionSpec,
    TensorSpec,
    Variant,
)


def tiny_manifest(
    layers: Mapping[str, bytes], *, model: str = "reader", version: str = "1.0.0"
) -> Manifest:
    """A manifest whose one variant is ``model.onnx`` of the layers."""

    def file(name: str) -> FileRef:
        data = layers[name]
        return FileRef(sha256(data), len(data))

    return Manifest(
        model=model,
        model_version=version,
        variants=[
            Variant(
                id="fp32-cpu",
                file=file("model.onnx"),
                precision="fp32",
                provider="CPUExecutionProvider",
                hw_classes=["any"],
                opset=17,
                min_agent="0.1.0",
                accuracy=Accuracy("accuracy", 0.96875, 484, "linux-x86_64-avx2"),
            )
        ],
        inputs=[TensorSpec("image", "FP32", [-1, 1, 32, 32], (0.0, 1.0))],
        outputs=[TensorSpec("probabilities", "FP32", [-1, 2], class_names=["no", "yes"])],
        prediction=PredictionSpec("probabilities", "argmax"),
        features=[FeatureSpec("brightness", "image.brightness", "image")],
        golden=file("golden.msgpack"),
        baseline=file("baseline.msgpack"),
        evaluation=file("evaluation.json"),
        card=file("card.md"),
        lineage=Lineage("sha256:" + "1" * 64, "sha256:" + "2" * 64, {"source": "dvc:digits"}),
    )
