"""A PyTorch network as a model and data for `skerry build`.

pip install torch onnx
python from_pytorch.py OUT
skerry build --init OUT/spirals.onnx --data data.npz
skerry build OUT/spirals.toml --out bundles
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn


def spirals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arms of a spiral: points float32 [n, 2] and their arm [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    along = rng.uniform(0.5, 3, n)
    angle = 2.5 * along + labels * np.pi
    points = np.stack([along * np.cos(angle), along * np.sin(angle)], axis=1)
    return (points + rng.normal(0, 0.05, points.shape)).astype(np.float32), labels


def main(out: Path) -> None:
    """Train, export, and write the recipe's data beside the model."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    x, y = spirals(2000, 0)
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(rows), labels).backward()
        optimizer.step()
    net.eval()
    torch.onnx.export(
        net, rows[:1], str(out / "spirals.onnx"), opset_version=17, dynamo=False,
        input_names=["point"], output_names=["logits"],
        dynamic_axes={"point": {0: "n"}, "logits": {0: "n"}},
    )  # fmt: skip
    x, y = spirals(1500, 1)
    np.savez(out / "data.npz", point=x, label=y)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
