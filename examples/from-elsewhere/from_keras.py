"""A Keras 3 network as a model and data for `skerry build`.

pip install keras torch onnx onnxscript     # or with the TensorFlow backend: tf2onnx
python from_keras.py OUT
skerry build --init OUT/sums.onnx --data data.npz
skerry build OUT/sums.toml --out bundles
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np


def main(out: Path) -> None:
    """Train, export, and write the recipe's data beside the model."""
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4000, 12)).astype(np.float32)
    y = (np.sort(x, axis=1)[:, -3:].sum(axis=1))[:, None]  # the sum of the three largest
    net = keras.Sequential(
        [keras.Input((12,), name="numbers"), keras.layers.Dense(128, "relu"),
         keras.layers.Dense(128, "relu"), keras.layers.Dense(1)]
    )  # fmt: skip
    net.compile(optimizer=keras.optimizers.Adam(3e-3), loss="mse")
    net.fit(x[:2500], y[:2500], epochs=15, batch_size=64, verbose=0)
    net.export(str(out / "sums.onnx"), format="onnx")
    np.savez(out / "data.npz", numbers=x[2500:], label=y[2500:].astype(np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
