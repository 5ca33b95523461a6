"""A 1-D CNN on a day's curve of electric power: summer or winter (UCR ItalyPowerDemand, by sktime).

67 days are trained on, moved and scaled a little in every epoch; of the 1,029 of the test set 900
are for evaluation.
"""

from collections.abc import Iterator

import numpy as np
import torch
from common import Entry, export, run, train
from sktime.datasets import load_italy_power_demand
from torch import nn

SEED = 23


def days(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return curves, float32 [n, 1, 24], and seasons, int64 [n]."""
    curves, seasons = load_italy_power_demand(split=split, return_type="numpy3D")
    return curves.astype(np.float32), (np.asarray(seasons).astype(np.int64) - 1)


def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the training days, varied anew."""
    curves, seasons = days("TRAIN")
    rng = np.random.default_rng([SEED, epoch])
    order = np.concatenate([rng.permutation(len(seasons)) for _ in range(4)])
    for at in range(0, len(order) - 31, 32):
        some = order[at : at + 32]
        varied = curves[some] * rng.uniform(0.9, 1.1, (32, 1, 1))
        varied = varied + rng.normal(0, 0.08, varied.shape)
        yield torch.from_numpy(varied.astype(np.float32)), torch.from_numpy(seasons[some])


def power_cnn() -> Entry:
    """Three convolutions and a mean."""
    torch.manual_seed(SEED)
    net = nn.Sequential(
        nn.Conv1d(1, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Conv1d(32, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Conv1d(64, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 24, 2),
    )  # fmt: skip
    train(net, batches, 40, rate=3e-3)
    whole = nn.Sequential(net, nn.Softmax(dim=1))
    model = export(whole, torch.zeros(2, 1, 24), ["curve"], "probabilities")
    curves, seasons = days("TEST")
    order = np.random.default_rng(SEED).permutation(len(seasons))
    held, rest = order[:900], order[900:]
    known, known_seasons = days("TRAIN")
    value = float((run(model, {"curve": curves[held]}).argmax(1) == seasons[held]).mean())
    print(f"fp32 accuracy {value:.4f}")
    recipe = f"""\
[metric]
name = "accuracy"
output = "probabilities"

[gate]
max_drop = 0.01

[classes]
names = ["winter", "summer"]

[lineage]
data = "UCR ItalyPowerDemand, split seed {SEED}"
"""
    about = {
        "kind": "1-D CNN on a day's power demand",
        "source": "trained here (torch) on sktime's ItalyPowerDemand",
        "licence": "own; data UCR archive",
        "metric": "accuracy",
        "fp32": value,
    }
    rest_of = {"curve": curves[rest], "label": seasons[rest]}
    return Entry(
        model, rest_of, {"curve": curves[held], "label": seasons[held]},
        {"curve": np.concatenate([known, curves[rest]]),
         "label": np.concatenate([known_seasons, seasons[rest]])},
        recipe, about,
    )  # fmt: skip
