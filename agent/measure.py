"""How fast a model runs on this device, and whether several requests as one batch pay.

Measured when the model is loaded, on inputs within the ranges of its manifest, within
`MEASURE_S`.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skerry.manifest import TensorSpec
from skerry.tensors import DTYPES

__all__ = ["Pace", "example", "measure_pace"]

Tensors = dict[str, NDArray[Any]]
MEASURE_S: Final = 0.15
RUNS: Final = 5
BATCH: Final = 8  # rows that are tried together
MAX_BATCH: Final = 32
PAYS: Final = 0.6  # of the time that the rows take one by one
LETTERS: Final = "etaoin shrdlu "  # of texts that are made up
MOST_LETTERS: Final = 60
GOLDEN: Final = (math.sqrt(5) - 1) / 2  # its multiples spread evenly between whole numbers
TOLERANCE: Final = 1e-4  # of the largest output; dynamic int8, whose scales mix the rows, fails it


@dataclass(frozen=True, slots=True)
class Pace:
    """What was measured."""

    run_us: float  # one row, fastest of a few
    max_batch: int = 1  # rows that are worth running together


def example(specs: Mapping[str, TensorSpec], rows: int, *, seed: int | None = None) -> Tensors:
    """Return an input: zeros, or by a seed numbers within the range that the manifest tells, and texts.

    Args:
        specs: of all inputs; an open dimension behind the first is 1.
        rows: for inputs whose first dimension is open.
        seed: of the numbers; None for zeros and empty texts.
    """
    chance = None if seed is None else Random(seed)
    return {name: _tensor(spec, rows, chance) for name, spec in specs.items()}


def measure_pace(
    run: Callable[[Tensors], Tensors],
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
) -> Pace:
    """Return how fast a model is, and how many rows are worth running together.

    Together means: in less than `PAYS` of the time, and with each row's outputs as they are
    alone. A model that is too slow to try within `MEASURE_S`, or fails on made-up numbers,
    is not batched.
    """
    one = example(inputs, 1)
    run_us, spent = _fastest(run, one, MEASURE_S / 3)
    specs = [*inputs.values(), *outputs.values()]
    if any(spec.shape[0] != -1 for spec in specs) or spent * BATCH > MEASURE_S:
        return Pace(run_us)
    many = example(inputs, BATCH, seed=0)
    try:
        together = run(many)
        for row in (0, BATCH - 1):
            alone = run({name: tensor[row : row + 1] for name, tensor in many.items()})
            if not all(_same(together[name][row : row + 1], alone[name]) for name in outputs):
                return Pace(run_us)
        batch_us, _ = _fastest(run, many, MEASURE_S / 3)
    except Exception:  # not made for such numbers; it serves what it is asked, one by one
        return Pace(run_us)
    return Pace(run_us, MAX_BATCH if batch_us < PAYS * BATCH * run_us else 1)


def _fastest(
    run: Callable[[Tensors], Tensors], tensors: Tensors, limit_s: float
) -> tuple[float, float]:
    """Return the fastest run in microseconds, and the seconds that one took at most."""
    took: list[float] = []
    end = time.perf_counter() + limit_s
    while len(took) < RUNS and (not took or time.perf_counter() < end):
        began = time.perf_counter()
        run(tensors)
        took.append(time.perf_counter() - began)
    return min(took) * 1e6, max(took)


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool((a == b).all())
    scale = float(np.abs(b).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=0.0, atol=TOLERANCE * scale, equal_nan=True))


def _tensor(spec: TensorSpec, rows: int, chance: Random | None) -> NDArray[Any]:
    shape = [rows if spec.shape[0] == -1 else spec.shape[0]]
    shape += [1 if size == -1 else size for size in spec.shape[1:]]
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "O":
        texts = np.full(shape, "", dtype=object)
        if chance is not None:  # each of its own length: rows must not change each other
            flat = texts.reshape(-1)
            for place in range(flat.size):
                flat[place] = "".join(chance.choices(LETTERS, k=chance.randint(1, MOST_LETTERS)))
        return texts
    if chance is None:
        return np.zeros(shape, dtype=dtype)
    low, high = spec.range or (0.0, 1.0)
    # numpy's own generators would stay in memory, 1.3 MiB, for these numbers alone
    spread = (chance.random() + GOLDEN * np.arange(math.prod(shape)).reshape(shape)) % 1.0
    return np.asarray(low + (high - low) * spread).astype(dtype)
