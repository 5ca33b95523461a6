"""Train the models whose updates `deltas.py` measures: a base, and what became of it.

    base.onnx    a small convolutional network on the demo's digits
    head.onnx    its last layer trained on, the rest left alone
    full.onnx    all of it trained on, at a tenth of the rate
    anew.onnx    the same network from another seed: nothing in common but its shape

Runs where torch is (examples/digits/requirements.txt); writes into the folder that it is given.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "digits"
sys.path.insert(0, str(EXAMPLES))

import camera  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from train import BATCH, export  # noqa: E402


def network() -> nn.Sequential:
    """Return four convolutions and two layers: 0.57 million weights, 2.3 MB."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128 * 16, 160), nn.ReLU(), nn.Linear(160, 10),
    )  # fmt: skip


def train(net: nn.Sequential, parameters, *, rate: float, passes: int, seed: int) -> None:
    """Train on fresh shots of the demo's originals."""
    with np.load(EXAMPLES / "train.npz") as digits:
        originals, labels = digits["original"], torch.from_numpy(digits["label"])
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    net.train()
    for _ in range(passes):
        shots = torch.from_numpy(camera.photograph(originals, rng))
        for batch in torch.from_numpy(rng.permutation(len(labels))).split(BATCH):
            loss = nn.functional.cross_entropy(net(shots[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with np.load(EXAMPLES / "evaluation.npz") as rows, torch.no_grad():
        right = net(torch.from_numpy(rows["image"])).argmax(1).numpy() == rows["label"]
    print(f"accuracy {right.mean():.4f}")


def main() -> None:
    """Train and export all four."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--passes", type=int, default=8)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, seed in (("base", 1), ("anew", 2)):
        torch.manual_seed(seed)
        net = network()
        train(net, net.parameters(), rate=0.001, passes=arguments.passes, seed=seed)
        export(net, arguments.out / f"{name}.onnx")
        if name == "base":
            kept = {key: value.clone() for key, value in net.state_dict().items()}
    for name, chosen in (("head", net[-1]), ("full", net)):
        net.load_state_dict(kept)
        for parameter in net.parameters():
            parameter.requires_grad = False
        for parameter in chosen.parameters():
            parameter.requires_grad = True
        train(net, chosen.parameters(), rate=0.0001, passes=3, seed=3)
        export(net, arguments.out / f"{name}.onnx")


if __name__ == "__main__":
    main()
