"""A scikit-learn pipeline, its scaling included, as a model and data for `skerry build`.

pip install scikit-learn skl2onnx
python from_scikit_learn.py OUT
skerry build --init OUT/wine.onnx --data data.npz
skerry build OUT/wine.toml --out bundles
"""

import sys
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import make_classification
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main(out: Path) -> None:
    """Train, export, and write the recipe's data beside the model."""
    out.mkdir(parents=True, exist_ok=True)
    x, y = make_classification(4000, 20, n_informative=10, n_classes=3, random_state=0)
    x = x.astype(np.float32)
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=60, random_state=0))
    pipeline.fit(x[:2500], y[:2500])
    # maps of classes (ZipMap) are for Python; devices read the tensor
    options = {id(pipeline): {"zipmap": False}}
    model = to_onnx(pipeline, x[:1], options=options, target_opset={"": 17, "ai.onnx.ml": 3})
    (out / "wine.onnx").write_bytes(model.SerializeToString())
    np.savez(out / "data.npz", X=x[2500:], label=y[2500:])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
