"""The golden set: a few real inputs and what every variant must answer to them.

A device runs it before it activates a release: a CPU on which int8 saturates, a
damaged cache or another onnxruntime shows here, not on live traffic. Samples are taken
from every class the model predicts, its middling answer first, then its least and
its most certain one, as far as the budget goes; of a model that predicts no class, from
the least to the largest answer. A device runs the set in one call, so a model that takes
each sample by itself gives one.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.ports import DTYPES, Arrays, Ports
from compiler.runtime import Outputs
from skerry.canonical import to_msgpack
from skerry.errors import RefusedError
from skerry.manifest import Golden, GoldenTensor, PredictionSpec
from skerry.reading import NO_CLASS, read_predictions
from skerry.tensors import to_raw

__all__ = ["choose_samples", "make_golden"]

BUDGET_BYTES: Final = 250 * 1024  # of tensors; with its frame the file stays below 256 kB
MAX_SAMPLE_BYTES: Final = 4 << 20  # one sample may break the budget: some inputs are large
MAX_SAMPLES: Final = 48
PER_CLASS: Final = (0.5, 0.0, 1.0)  # ranks by certainty, in order of preference
MARGIN: Final = 2.0  # on the measured spread, for CPUs that were not measured
FLOAT_NOISE: Final = 1e-4  # relative: sums in another order


def make_golden(
    ports: Ports,
    samples: Arrays,
    reference: Outputs,
    others: Sequence[Outputs],
    reading: PredictionSpec,
) -> bytes:
    """Return the golden set as MessagePack.

    Args:
        ports: the model's inputs.
        samples: of the evaluation, as the model takes them.
        reference: the first variant's outputs for all of them.
        others: the outputs of each further variant that ships.
        reading: how predictions are read.

    Raises:
        RefusedError: one sample alone is too large, or is no numbers.
    """
    first = [*(values[:1] for values in samples.values()), *(v[:1] for v in reference.values())]
    size = sum(_bytes(values) for values in first)
    if size > MAX_SAMPLE_BYTES:
        raise RefusedError(f"one sample has {size} bytes; a golden set takes {MAX_SAMPLE_BYTES}")
    alone = ports.by_sample or len(ports.fed) < len(ports.ports)
    most = 1 if alone else min(MAX_SAMPLES, max(1, BUDGET_BYTES // size))
    chosen = choose_samples(reference[reading.output], reading, most)
    wanted = {name: values[chosen] for name, values in reference.items()}
    variants = [{name: values[chosen] for name, values in o.items()} for o in others]
    if ports.by_sample:  # as the model gives them: the first axis is its own
        wanted = {name: values[0] for name, values in wanted.items()}
        variants = [{name: values[0] for name, values in o.items()} for o in variants]
    disagree, spread = measured_spread(wanted, variants, reading)
    n = len(wanted[reading.output])
    numbers = [values for values in wanted.values() if values.dtype.kind != "O" and values.size]
    largest = max(float(np.abs(values.astype(np.float64)).max()) for values in numbers)
    inputs = (
        ports.call(samples, int(chosen[0]), int(chosen[0]) + 1)[0]
        if alone
        else {name: values[chosen] for name, values in samples.items()}
    )
    return to_msgpack(
        Golden(
            inputs=[_tensor(name, values) for name, values in inputs.items()],
            outputs=[_tensor(name, values) for name, values in wanted.items()],
            # one row more than measured may tip over elsewhere, where there are several
            max_disagree=min(1.0, (disagree + (1 if n >= 8 else 0)) / n),
            atol=_round_up(MARGIN * spread + FLOAT_NOISE * max(1.0, largest)),
        )
    )


def choose_samples(output: NDArray[Any], reading: PredictionSpec, most: int) -> NDArray[np.int64]:
    """Return positions of samples that cover the predictions, ascending, int64.

    Args:
        output: [n, ...], from which predictions are read.
        reading: how.
        most: how many to take.
    """
    classes, confidence = read_predictions(output, reading.kind, reading.threshold)
    if (classes == NO_CLASS).all():
        order = np.argsort(confidence, kind="stable")
        places = np.linspace(0, len(order) - 1, most) if most > 1 else [len(order) // 2]
        return np.unique(order[np.asarray(places).astype(np.int64)])
    picks: list[int] = []
    members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    # stable, so that equal confidences keep the order of the samples
    ranked = [m[np.argsort(confidence[m], kind="stable")] for m in members]
    for rank in PER_CLASS:
        picks += [int(m[round(rank * (len(m) - 1))]) for m in ranked]
    unique = list(dict.fromkeys(picks))
    return np.asarray(sorted(unique[:most]), dtype=np.int64)


def measured_spread(
    reference: Outputs, variants: Sequence[Outputs], reading: PredictionSpec
) -> tuple[int, float]:
    """Return how far the variants are apart: rows that differ, and the largest difference."""
    theirs, _ = read_predictions(reference[reading.output], reading.kind, reading.threshold)
    disagree, spread = 0, 0.0
    for variant in variants:
        mine, _ = read_predictions(variant[reading.output], reading.kind, reading.threshold)
        disagree = max(disagree, int((mine != theirs).sum()))
        for name, values in reference.items():
            if values.dtype.kind == "O" or not values.size:
                continue
            difference = np.abs(variant[name].astype(np.float64) - values.astype(np.float64))
            spread = max(spread, float(difference.max()))
    return disagree, spread


def _tensor(name: str, values: NDArray[Any]) -> GoldenTensor:
    datatype = next((d for d, dtype in DTYPES.items() if values.dtype == dtype), None)
    if datatype == "BYTES" and all(isinstance(text, str) for text in values.ravel()):
        return GoldenTensor(name, datatype, list(values.shape), to_raw(values))
    if datatype is None or datatype == "BYTES":
        raise RefusedError(f"a golden set takes numbers and texts; {name!r} is {values.dtype}")
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return GoldenTensor(name, datatype, list(values.shape), little.tobytes())


def _bytes(values: NDArray[Any]) -> int:
    return len(to_raw(values)) if values.dtype.kind == "O" else values.nbytes


def _round_up(value: float) -> float:
    """Return the value with two significant digits, upwards: it is a tolerance, no measurement."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.2g}")
