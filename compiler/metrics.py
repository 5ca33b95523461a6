"""Metrics: how good outputs are against labels, or how near they are to fp32's.

A metric is either a mean over samples (`accuracy`, `top_k`, `mae`, `iou`, `cosine`,
`agreement`) or one number for all of them (`f1`, `auc`, `rmse`), which only resampling
can give an interval. Both are weighed by how often a sample is counted, so that one
bootstrap serves all. `cosine` and `agreement` compare with fp32 and need no labels, nor
does `iou` where there are none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.recipe import Metric
from skerry.errors import RefusedError, UsageError

__all__ = ["AGAINST_FP32", "Function", "Score", "check_labels", "predictions", "score"]

AGAINST_FP32: Final = frozenset({"cosine", "agreement"})
NEEDS_LABELS: Final = frozenset({"accuracy", "top_k", "f1", "auc", "mae", "rmse"})

Floats = NDArray[np.float64]
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric says of some outputs.

    Attributes:
        n: samples.
        per_sample: float64 [n], whose mean is the metric; None where it is no mean.
        of: the metric where each sample counts as often as a weight says, float64 [n].
    """

    n: int
    per_sample: Floats | None
    of: Callable[[Floats], float]

    @property
    def value(self) -> float:
        """The metric, each sample counted once."""
        return self.of(np.ones(self.n))


def predictions(output: NDArray[Any], metric: Metric) -> NDArray[np.int64]:
    """Return what is read from outputs: classes [n] of argmax, or 0 and 1 [n, ...]."""
    if metric.reading == "argmax" and _flat(output).shape[1] > 1:
        return np.asarray(_flat(output).argmax(axis=1), dtype=np.int64)
    return (output >= metric.threshold).astype(np.int64)


def check_labels(metric: Metric, output: NDArray[Any], labels: NDArray[Any] | None) -> None:
    """Refuse labels that the metric cannot be taken with.

    Raises:
        UsageError: missing, of another length or shape, or of a class that the output lacks.
    """
    if labels is None:
        if metric.name in NEEDS_LABELS:
            raise UsageError(
                f"expected labels for {metric.name} (data.label names their array), there are "
                "none; cosine and agreement compare with fp32 and need none"
            )
        return
    if len(labels) != len(output):
        raise UsageError(
            f"expected one label for each of the {len(output)} samples, got {len(labels)}"
        )
    if labels.dtype.kind not in "iufb":
        raise UsageError(f"expected labels that are numbers, got {labels.dtype}")
    if metric.name in ("accuracy", "top_k", "f1") and metric.reading == "argmax":
        classes = int(np.prod(output.shape[1:]))
        whole = labels.ndim == 1 and labels.dtype.kind in "iub"
        if not whole or labels.min() < 0 or labels.max() >= classes:
            got = f"{labels.min()} to {labels.max()}" if labels.size else "none"
            raise UsageError(
                f"expected whole-number labels of 0 to {classes - 1}, one per value of the "
                f"output; got {labels.dtype} {list(labels.shape)}, {got}"
            )
        return
    by_value = metric.name in ("mae", "rmse", "iou") or metric.reading == "threshold"
    if by_value and _flat(labels).shape != _flat(output).shape:
        raise UsageError(
            f"expected labels of the shape of the output, {list(output.shape)}; "
            f"got {list(labels.shape)}"
        )


def score(
    metric: Metric,
    output: NDArray[Any],
    labels: NDArray[Any] | None,
    reference: NDArray[Any],
    function: Function | None = None,
) -> Score:
    """Take a metric.

    Args:
        metric: the recipe's.
        output: of the variant, [n, ...].
        labels: [n] or [n, ...], as `check_labels` lets through.
        reference: fp32's output for the same samples.
        function: of a metric of one's own: (output, labels) -> float [n], or a number.

    Raises:
        RefusedError: the output is not finite, or the function raised or gave no number.
    """
    if output.dtype.kind == "f" and not np.isfinite(output).all():
        raise RefusedError("the model gives NaN or infinity on the evaluation samples")
    if function is not None:
        return _own(function, output, labels)
    name = metric.name
    if name == "accuracy":
        assert labels is not None
        return _mean(_share_right(predictions(output, metric), labels))
    if name == "agreement":
        return _mean(_share_right(predictions(output, metric), predictions(reference, metric)))
    if name == "top_k":
        assert labels is not None
        return _mean(_top_k(output, labels, metric.k))
    if name == "cosine":
        return _mean(_cosine(output, reference))
    if name == "iou":
        wanted = reference if labels is None else labels
        return _mean(_iou(output >= metric.threshold, wanted >= metric.threshold))
    assert labels is not None
    if name == "mae":
        return _mean(np.abs(_difference(output, labels)).mean(axis=1))
    if name == "rmse":
        square = (_difference(output, labels) ** 2).mean(axis=1)
        return Score(len(square), None, lambda w: float(np.sqrt(w @ square / w.sum())))
    if name == "f1":
        return _f1(predictions(output, metric), labels, binary=metric.reading == "threshold")
    return _auc(output, labels)


def _mean(values: NDArray[Any]) -> Score:
    per_sample = np.asarray(values, dtype=np.float64)
    return Score(len(per_sample), per_sample, lambda w: float(w @ per_sample / w.sum()))


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1)


def _share_right(mine: NDArray[Any], wanted: NDArray[Any]) -> Floats:
    same = _flat(mine == wanted.reshape(mine.shape))
    return np.asarray(same.mean(axis=1), dtype=np.float64)


def _difference(output: NDArray[Any], labels: NDArray[Any]) -> Floats:
    return _flat(output).astype(np.float64) - _flat(labels).astype(np.float64)


def _top_k(output: NDArray[Any], labels: NDArray[Any], k: int) -> NDArray[Any]:
    flat = _flat(output)
    right = flat[np.arange(len(flat)), labels]
    # ties count against the label, and so does NaN
    return np.asarray((flat > right[:, None]).sum(axis=1) < k)


def _cosine(output: NDArray[Any], reference: NDArray[Any]) -> Floats:
    a, b = _flat(output).astype(np.float64), _flat(reference).astype(np.float64)
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (a == 0).all(axis=1) & (b == 0).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.einsum("ij,ij->i", a, b) / length
    return np.where(both_zero, 1.0, np.where(length == 0, 0.0, value))


def _iou(mine: NDArray[Any], wanted: NDArray[Any]) -> Floats:
    a, b = _flat(mine), _flat(wanted)
    union = (a | b).sum(axis=1)
    return np.where(union == 0, 1.0, (a & b).sum(axis=1) / np.maximum(union, 1))


def _f1(mine: NDArray[np.int64], wanted: NDArray[Any], *, binary: bool) -> Score:
    """F1 of class 1, or the mean over all classes that occur (macro)."""
    a, b = _flat(mine), _flat(wanted.reshape(mine.shape))
    classes = [1] if binary else np.unique(b).tolist()
    cells = [
        [((a == c) & (b == c)).sum(axis=1), (a == c).sum(axis=1) + (b == c).sum(axis=1)]
        for c in classes
    ]
    counts = np.asarray(cells, dtype=np.float64)  # [class, 2, n]

    def of(weights: Floats) -> float:
        both, all_ = (counts @ weights).T
        return float(np.where(all_ == 0, 1.0, 2 * both / np.maximum(all_, 1e-300)).mean())

    return Score(len(a), None, of)


def _auc(output: NDArray[Any], labels: NDArray[Any]) -> Score:
    """Area under the ROC curve, ties counted half; of several classes the mean, one against all."""
    flat = _flat(output).astype(np.float64)
    columns = [1] if flat.shape[1] == 2 else range(flat.shape[1])
    binary = flat.shape[1] <= 2
    wanted = _flat(labels)[:, 0]
    pairs = []
    for column in columns:
        values = flat[:, column]
        positive = wanted == (1 if binary else column)
        if positive.any() and not positive.all():
            order = np.argsort(values, kind="stable")
            _, group = np.unique(values[order], return_inverse=True)
            pairs.append((order, group, positive[order]))
    if not pairs:
        raise RefusedError("expected samples of at least two classes for auc, there is one")

    def of(weights: Floats) -> float:
        return float(np.mean([_area(weights[order], g, p) for order, g, p in pairs]))

    return Score(len(flat), None, of)


def _area(weights: Floats, group: NDArray[np.int64], positive: NDArray[np.bool_]) -> float:
    good = np.bincount(group, weights * positive)
    bad = np.bincount(group, weights * ~positive)
    below = np.cumsum(bad) - bad
    total = good.sum() * bad.sum()
    return float((good * (below + bad / 2)).sum() / total) if total > 0 else 0.5


def _own(function: Function, output: NDArray[Any], labels: NDArray[Any] | None) -> Score:
    n = len(output)

    def call(rows: NDArray[np.int64]) -> Any:
        try:
            return function(output[rows], None if labels is None else labels[rows])
        except Exception as error:  # the publisher's own code may raise anything
            raise RefusedError(
                f"the metric {getattr(function, '__name__', function)} raised "
                f"{type(error).__name__}: {error}"
            ) from error

    value = np.asarray(call(np.arange(n)))
    if (
        value.dtype.kind not in "iufb"
        or not np.isfinite(value).all()
        or value.shape not in ((), (n,))
    ):
        raise RefusedError(
            f"expected a metric of one finite number, or one per sample ({n}); "
            f"got {value.dtype} {list(value.shape)}"
        )
    if value.shape == (n,):
        return _mean(value)
    return Score(n, None, lambda w: float(call(np.repeat(np.arange(n), w.astype(np.int64)))))
