"""Split scikit-learn's 1,797 digits once and for all, and write the data files.

Every original goes to exactly one of four sets, class by class in the same
proportions, so that nothing is evaluated on, or seen live, that a model was
trained on. What each file holds (`index` is the row in scikit-learn's set):

    train.npz, live.npz                            original uint8 [n, 8, 8], label, index
    calibration.npz, evaluation.npz, baseline.npz  image float32 [n, 1, 32, 32], label, index
    scan-*.npz                                     the same three, prepared the way of 1.2.0

The baseline is training data as the cameras would have shot it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import camera
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

HERE: Final = Path(__file__).parent
SHARES: Final = {"train": 0.48, "calibration": 0.06, "evaluation": 0.27, "live": 0.19}
BASELINE_IMAGES: Final = 500

Digits = dict[str, NDArray[np.generic]]


def main() -> None:
    """Write all files into this folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    seed = parser.parse_args().seed

    sets = split(np.random.default_rng(seed))
    save("train", sets["train"])
    save("live", sets["live"])
    rows = {
        "calibration": sets["calibration"],
        "evaluation": sets["evaluation"],
        "baseline": {name: array[:BASELINE_IMAGES] for name, array in sets["train"].items()},
    }
    for name, digits in rows.items():
        save(name, imaged(digits, camera.photograph, np.random.default_rng(seed)))
        save(f"scan-{name}", imaged(digits, camera.scan, np.random.default_rng(seed)))


def split(rng: np.random.Generator) -> dict[str, Digits]:
    """Deal the originals out to the sets of `SHARES`, each class apart, then shuffle each set."""
    source = load_digits()
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SHARES}
    ends = np.cumsum(list(SHARES.values()))[:-1]
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(source.target == digit))
        pieces = np.split(members, np.rint(ends * len(members)).astype(int))
        for name, piece in zip(SHARES, pieces, strict=True):
            parts[name].append(piece)
    sets: dict[str, Digits] = {}
    for name, pieces in parts.items():
        index = rng.permutation(np.concatenate(pieces))
        sets[name] = {
            "original": source.images[index].astype(np.uint8),
            "label": source.target[index].astype(np.int64),
            "index": index.astype(np.int64),
        }
    return sets


def imaged(
    digits: Digits,
    preparation: Callable[[NDArray[np.generic], np.random.Generator], NDArray[np.float32]],
    rng: np.random.Generator,
) -> Digits:
    """Replace the originals by one image of each."""
    image = preparation(digits["original"], rng)
    return {"image": image, "label": digits["label"], "index": digits["index"]}


def save(name: str, arrays: Digits) -> None:
    """Write one compressed file and say how big it became."""
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name:24} {len(arrays['label']):5} images {path.stat().st_size:9,} bytes")


if __name__ == "__main__":
    main()
