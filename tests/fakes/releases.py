"""Bundles whose baseline and evaluation the fleet can read; the model in them is none."""

import io

from skerry.bundle import write_bundle
from skerry.canonical import sha256, to_json, to_msgpack
from skerry.manifest import (
    Accuracy,
    Baseline,
    BaselineColumn,
    CandidateReport,
    Evaluation,
    FeatureSpec,
    FileRef,
    Lineage,
    Manifest,
    PredictionSpec,
    TensorSpec,
    Variant,
)
from skerry.sketch import (
    CategoricalCounts,
    CategoricalSpec,
    Column,
    NumericCounts,
    NumericSpec,
    int_to_big,
)

CLASSES = 10
EDGES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
SCALE = 1_000_000
FEATURES = ("brightness", "contrast")

BASELINE = Baseline(
    columns={
        "prediction": BaselineColumn(
            CategoricalSpec([str(n) for n in range(CLASSES)]),
            CategoricalCounts(1000, [100] * CLASSES),
        ),
        "confidence": BaselineColumn(
            NumericSpec(EDGES, SCALE), NumericCounts(1000, [10, 40, 150, 300, 500])
        ),
        **{
            name: BaselineColumn(
                NumericSpec(EDGES, SCALE),
                NumericCounts(
                    1000, [100, 200, 400, 200, 100],
                    sum=int_to_big(500 * SCALE), sum_sq=int_to_big(298 * SCALE * SCALE),
                    min=0.0, max=1.0,
                ),
            )
            for name in FEATURES
        },
    },
    n=1000,
)  # fmt: skip


def readable_bundle(
    version: str = "1.0.0",
    model: str = "reader",
    baseline: Baseline = BASELINE,
    weights: bytes = b"",
) -> bytes:
    """A bundle file that the fleet can publish."""
    evaluation = Evaluation(
        "accuracy", 100, 0.9, [CandidateReport("fp32", 100, 0.9, True, "the only one")]
    )
    layers = {
        "model.onnx": weights or b"weights" + version.encode(),
        "golden.msgpack": b"golden",
        "baseline.msgpack": to_msgpack(baseline),
        "evaluation.json": to_json(evaluation),
        "card.md": b"# card",
    }
    refs = {name: FileRef(sha256(data), len(data)) for name, data in layers.items()}
    manifest = Manifest(
        model=model,
        model_version=version,
        variants=[
            Variant("fp32-cpu", refs["model.onnx"], "fp32", "CPUExecutionProvider", ["any"], 17,
                    "0.1.0", Accuracy("accuracy", 0.9, 100, "avx2"))
        ],
        inputs=[TensorSpec("image", "FP32", [-1, 64])],
        outputs=[TensorSpec("scores", "FP32", [-1, CLASSES])],
        prediction=PredictionSpec("scores", "argmax"),
        features=[FeatureSpec(name, f"image.{name}", "image") for name in FEATURES],
        golden=refs["golden.msgpack"],
        baseline=refs["baseline.msgpack"],
        evaluation=refs["evaluation.json"],
        card=refs["card.md"],
        lineage=Lineage(recipe=sha256(b"recipe"), model_file=sha256(b"model")),
    )  # fmt: skip
    out = io.BytesIO()
    write_bundle(out, to_json(manifest), layers)
    return out.getvalue()


def columns(predicted: list[int], features: dict[str, list[int]]) -> dict[str, Column]:
    """The columns of a window: class counts, and bin counts of each feature."""
    made: dict[str, Column] = {"prediction": CategoricalCounts(sum(predicted), predicted)}
    for name, bins in features.items():
        made[name] = NumericCounts(sum(bins), bins, min=0.0, max=1.0)
    return made
