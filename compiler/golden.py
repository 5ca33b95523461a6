"""The golden set: a few real inputs and what every variant must answer to them.

A device runs it before it activates a release: a CPU on which int8 saturates, a
damaged cache or another onnxruntime shows here, not on live traffic. Rows are taken
from every class the model predicts, its middling answer first, then its least and
its most certain one, as far as the budget goes.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.runtime import DTYPES, Outputs, Port
from skerry.canonical import to_msgpack
from skerry.errors import RefusedError
from skerry.manifest import Golden, GoldenTensor
from skerry.reading import read_predictions

__all__ = ["choose_rows", "make_golden"]

BUDGET_BYTES: Final = 250 * 1024  # of tensors; with its frame the file stays below 256 kB
MAX_ROW_BYTES: Final = 4 << 20  # one row may break the budget: some inputs are large
MAX_ROWS: Final = 48
PER_CLASS: Final = (0.5, 0.0, 1.0)  # ranks by certainty, in order of preference
MARGIN: Final = 2.0  # on the measured spread, for CPUs that were not measured
FLOAT_NOISE: Final = 1e-4  # relative: sums in another order


def make_golden(
    port: Port, rows: NDArray[Any], reference: Outputs, others: Sequence[Outputs], output: str
) -> bytes:
    """Return the golden set as MessagePack.

    Args:
        port: the model's input.
        rows: evaluation rows [n, ...], as the model takes them.
        reference: fp32's outputs for all of them.
        others: the outputs of each further variant that ships.
        output: the output from which predictions are read.

    Raises:
        RefusedError: one row alone is too large.
    """
    row_bytes = rows[:1].nbytes + sum(values[:1].nbytes for values in reference.values())
    if row_bytes > MAX_ROW_BYTES:
        raise RefusedError(f"one row has {row_bytes} bytes; a golden set takes {MAX_ROW_BYTES}")
    most = min(MAX_ROWS, max(1, BUDGET_BYTES // row_bytes))
    chosen = choose_rows(reference[output], most)
    wanted = {name: values[chosen] for name, values in reference.items()}
    variants = [{name: values[chosen] for name, values in o.items()} for o in others]
    disagree, spread = measured_spread(wanted, variants, output)
    n = len(chosen)
    largest = max(float(np.abs(v).max()) for v in wanted.values())
    return to_msgpack(
        Golden(
            inputs=[_tensor(port.name, rows[chosen])],
            outputs=[_tensor(name, values) for name, values in wanted.items()],
            # one row more than measured may tip over elsewhere, where there are several
            max_disagree=min(1.0, (disagree + (1 if n >= 8 else 0)) / n),
            atol=_round_up(MARGIN * spread + FLOAT_NOISE * max(1.0, largest)),
        )
    )


def choose_rows(output: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Return positions of rows that cover the predicted classes, ascending, int64.

    Args:
        output: fp32's, float [n, classes].
        most: how many rows to take.
    """
    classes, confidence = read_predictions(output, "argmax")
    picks: list[int] = []
    members = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    # stable, so that equal confidences keep the order of the rows
    ranked = [m[np.argsort(confidence[m], kind="stable")] for m in members]
    for rank in PER_CLASS:
        picks += [int(m[round(rank * (len(m) - 1))]) for m in ranked]
    unique = list(dict.fromkeys(picks))
    return np.asarray(sorted(unique[:most]), dtype=np.int64)


def measured_spread(
    reference: Outputs, variants: Sequence[Outputs], output: str
) -> tuple[int, float]:
    """Return how far the variants are from fp32: rows that differ, and the largest difference."""
    theirs, _ = read_predictions(reference[output], "argmax")
    disagree, spread = 0, 0.0
    for variant in variants:
        mine, _ = read_predictions(variant[output], "argmax")
        disagree = max(disagree, int((mine != theirs).sum()))
        for name, values in reference.items():
            difference = np.abs(variant[name].astype(np.float64) - values.astype(np.float64))
            spread = max(spread, float(difference.max()))
    return disagree, spread


def _tensor(name: str, values: NDArray[Any]) -> GoldenTensor:
    datatype = next((d for d, dtype in DTYPES.items() if values.dtype == dtype), None)
    if datatype is None:
        raise RefusedError(f"a golden set takes numbers; {name!r} is {values.dtype}")
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return GoldenTensor(name, datatype, list(values.shape), little.tobytes())


def _round_up(value: float) -> float:
    """Return the value with two significant digits, upwards: it is a tolerance, no measurement."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step) * step:.2g}")
