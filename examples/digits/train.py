"""Train the four releases of the demo and write each as one ONNX file.

    1.0.0  weak: one small hidden layer on a quarter of the resolution
    1.1.0  good: a small convolutional network
    1.2.0  bad: the same network, trained on `scan` images that no camera sends
    1.2.1  good: the same network as 1.1.0, another seed, more passes over the data

Every pass over the training set sees fresh shots of the same originals. Equal
seeds give equal models on the same machine and library versions.
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import camera
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

HERE: Final = Path(__file__).parent
BATCH: Final = 32
OPSET: Final = 17


def weak() -> nn.Sequential:
    """Return one hidden layer on 4 x 4 mean pixels: it sees a quarter of the resolution."""
    return nn.Sequential(
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def good() -> nn.Sequential:
    """Return four convolutions and a linear layer: Conv and ReLU only, as int8 likes it."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 16, 10),
    )


@dataclass(frozen=True, slots=True)
class Release:
    """How one version comes about; `seed` is added to the one given on the command line."""

    network: Callable[[], nn.Sequential]
    preparation: Callable[[NDArray[np.generic], np.random.Generator], NDArray[np.float32]]
    passes: int
    seed: int


RELEASES: Final = {
    "1.0.0": Release(weak, camera.photograph, passes=60, seed=0),
    "1.1.0": Release(good, camera.photograph, passes=40, seed=0),
    "1.2.0": Release(good, camera.scan, passes=40, seed=0),
    "1.2.1": Release(good, camera.photograph, passes=60, seed=1),
}


def main() -> None:
    """Train and export the releases asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=list(RELEASES), metavar="VERSION")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in another order would be other models
    for version in arguments.versions:
        release = RELEASES[version]
        network = train(release, seed=arguments.seed + release.seed)
        path = HERE / f"reader-{version}.onnx"
        export(network, path)
        print(f"{path.name}  {path.stat().st_size:,} bytes")


def train(release: Release, *, seed: int) -> nn.Sequential:
    """Return the network after all its passes over train.npz."""
    with np.load(HERE / "train.npz") as digits:
        originals, labels = digits["original"], torch.from_numpy(digits["label"])
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = release.network()
    steps = release.passes * -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    for _ in range(release.passes):
        shots = torch.from_numpy(release.preparation(originals, rng))
        for batch in torch.from_numpy(rng.permutation(len(labels))).split(BATCH):
            loss = nn.functional.cross_entropy(
                network(shots[batch]), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(network: nn.Sequential, path: Path) -> None:
    """Write `image` float32 [batch, 1, 32, 32] -> `probabilities` float32 [batch, 10]."""
    example = torch.zeros(1, 1, camera.SIDE, camera.SIDE)
    with warnings.catch_warnings():
        # The newer exporter needs one more package and names its nodes less plainly.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            nn.Sequential(*network, nn.Softmax(dim=1)),
            (example,),
            path,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": {0: "batch"}, "probabilities": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
