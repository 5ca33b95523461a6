"""Two image classifiers on scikit-learn's digits, enlarged: a plain CNN and a small MobileNetV2.

1,797 handwritten digits of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits). 897 are
trained on, each shown turned, moved and scaled anew in every epoch; the other 900 are drawn
twice each for evaluation.
"""

from collections.abc import Iterator

import numpy as np
import torch
from common import Arrays, Entry, export, run, train
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

SEED = 7
SIDE = 32
TRAINED = 897


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return originals and labels, trained on and held out: float32 [n, 1, 8, 8], 0 to 1."""
    found = load_digits()
    order = np.random.default_rng(SEED).permutation(len(found.target))
    images = (found.images[order] / 16).astype(np.float32)[:, None]
    labels = found.target[order].astype(np.int64)
    return images[:TRAINED], labels[:TRAINED], images[TRAINED:], labels[TRAINED:]


def draw(originals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put each on bright paper, a little turned, moved and scaled: float32 [n, 1, 32, 32], 0 to 1.

    Bright paper is what cameras see, and what springs the trap: the first convolution's inputs are
    all near their largest value, and so are their products' sums.
    """
    n = len(originals)
    angle = rng.uniform(-0.25, 0.25, n)
    scale = rng.uniform(0.95, 1.35, n)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = np.cos(angle) * scale
    theta[:, 0, 1], theta[:, 1, 0] = -np.sin(angle) * scale, np.sin(angle) * scale
    theta[:, :, 2] = rng.uniform(-0.15, 0.15, (n, 2))
    grid = functional.affine_grid(torch.from_numpy(theta), (n, 1, SIDE, SIDE), align_corners=False)
    drawn = functional.grid_sample(torch.from_numpy(originals), grid, align_corners=False).numpy()
    paper = rng.uniform(0.82, 0.95, (n, 1, 1, 1))
    drawn = paper * (1 - rng.uniform(0.6, 0.85, (n, 1, 1, 1)) * drawn)
    drawn = drawn + rng.normal(0, 0.04, drawn.shape)
    return np.clip(drawn, 0, 1).astype(np.float32)


def data() -> dict[str, Arrays]:
    """Return calibration, evaluation and baseline."""
    known, known_labels, held, held_labels = digits()
    rng = np.random.default_rng(SEED + 1)
    twice, labels = np.concatenate([held, held]), np.concatenate([held_labels, held_labels])
    return {
        "calibration": {"image": draw(known[:256], rng), "label": known_labels[:256]},
        "evaluation": {"image": draw(twice, rng), "label": labels},
        "baseline": {"image": draw(known, rng), "label": known_labels},
    }


def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the training digits, drawn anew."""
    known, labels, _, _ = digits()
    rng = np.random.default_rng([SEED, epoch])
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(2)])
    for at in range(0, len(order) - 63, 64):
        some = order[at : at + 64]
        yield torch.from_numpy(draw(known[some], rng)), torch.from_numpy(labels[some])


def entry(net: nn.Module, epochs: int, kind: str, rate: float) -> Entry:
    """Train, export with probabilities, and hand over."""
    train(net, batches, epochs, rate=rate)
    found = data()
    whole = nn.Sequential(net, nn.Softmax(dim=1))
    model = export(whole, torch.zeros(2, 1, SIDE, SIDE), ["image"], "probabilities")
    given = found["evaluation"]
    value = float((run(model, {"image": given["image"]}).argmax(1) == given["label"]).mean())
    print(f"fp32 accuracy {value:.4f}")
    recipe = f"""\
[metric]
name = "accuracy"
output = "probabilities"

[gate]
max_drop = 0.01

[classes]
names = {[str(i) for i in range(10)]}

[features]
brightness = "image.brightness"
contrast = "image.contrast"

[lineage]
data = "sklearn-digits, split seed {SEED}"
""".replace("'", '"')
    about = {
        "kind": kind,
        "source": "trained here (torch) on scikit-learn's digits",
        "licence": "own; data CC BY 4.0 (UCI)",
        "metric": "accuracy",
        "fp32": value,
    }
    return Entry(model, **found, recipe=recipe, about=about)


def digits_cnn() -> Entry:
    """A plain convolutional network."""
    torch.manual_seed(SEED)

    def block(into: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]

    net = nn.Sequential(
        *block(1, 32), nn.MaxPool2d(2), *block(32, 64), nn.MaxPool2d(2), *block(64, 128),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip
    return entry(net, 10, "small CNN that reads a digit", 3e-3)


class Inverted(nn.Module):
    """MobileNetV2's block: widen, filter each channel by itself, narrow without a non-linearity."""

    def __init__(self, into: int, out: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = into * widen
        self.short = stride == 1 and into == out
        self.body = nn.Sequential(
            nn.Conv2d(into, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.ReLU6(), nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the input where the shape is the same."""
        return x + self.body(x) if self.short else self.body(x)


def digits_mbv2() -> Entry:
    """A small MobileNetV2."""
    torch.manual_seed(SEED)
    plan = [(16, 1, 1), (24, 2, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (64, 2, 6)]
    layers: list[nn.Module] = [
        nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
    ]  # fmt: skip
    into = 16
    for out, stride, widen in plan:
        layers.append(Inverted(into, out, stride, widen))
        into = out
    layers += [
        nn.Conv2d(into, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    ]  # fmt: skip
    return entry(nn.Sequential(*layers), 12, "MobileNetV2-style net that reads a digit", 4e-3)
