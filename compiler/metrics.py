"""Metrics: how good outputs are against labels, or how near they are to fp32's.

A metric is either a mean over samples (`accuracy`, `top_k`, `mae`, `iou`, `cosine`,
`agreement`) or one number for all of them (`f1`, `auc`, `rmse`), which only resampling
can give an interval. Both are weighed by how often a sample is counted, so that one
bootstrap serves all. `cosine` and `agreement` compare with fp32 and need no labels, nor
do `iou`, `mae` and `rmse` where there are none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compiler.recipe import Metric
from skerry.errors import RefusedError, UsageError

__all__ = [
    "OWN_METRIC",
    "Function",
    "Score",
    "check_labels",
    "gives_classes",
    "predictions",
    "score",
]

NEEDS_LABELS: Final = frozenset({"accuracy", "top_k", "f1", "auc"})
OF_CLASSES: Final = frozenset({"accuracy", "top_k", "f1", "auc"})

OWN_METRIC: Final = "own_metric"  # code of what a metric of the recipe's own does wrong

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
    """Return what is read from outputs: classes [n] of argmax, or 0 and 1 [n, ...].

    Whole numbers, one per sample, are the classes themselves: models may end with ArgMax.
    """
    if gives_classes(output, metric):
        return _flat(output)[:, 0].astype(np.int64)
    if metric.reading == "argmax" and _flat(output).shape[1] > 1:
        return np.asarray(_flat(output).argmax(axis=1), dtype=np.int64)
    return (output >= metric.threshold).astype(np.int64)


def gives_classes(output: NDArray[Any], metric: Metric) -> bool:
    """Whether an output [n, ...] holds classes rather than values to read them from."""
    one = bool(np.prod(output.shape[1:]) == 1)
    return output.dtype.kind in "iu" and one and metric.reading != "threshold"


def check_labels(metric: Metric, output: NDArray[Any], labels: NDArray[Any] | None) -> None:
    """Refuse labels that the metric cannot be taken with.

    Raises:
        UsageError: missing, of another length or shape, or of a class that the output lacks.
    """
    values = int(np.prod(output.shape[1:]))
    if metric.name == "cosine" and values == 1:
        raise UsageError(
            f"cosine compares directions, and {metric.output!r} has one value per sample; take "
            "mae or rmse, which compare with fp32 where there are no labels"
        )
    if metric.name in ("top_k", "auc") and gives_classes(output, metric):
        raise UsageError(f"{metric.name} needs scores, {metric.output!r} gives classes")
    unread = metric.reading == "none" and metric.name in ("accuracy", "f1", "agreement", "top_k")
    if unread and not gives_classes(output, metric):
        raise UsageError(
            f"{metric.name} with postprocess none is for outputs that are classes, whole "
            f"numbers; {metric.output!r} is {output.dtype} {list(output.shape)}"
        )
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
        raise UsageError(
            f"expected labels that are numbers, got {labels.dtype}; text is looked up in "
            "classes.names, in the order of the output"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        bad = np.flatnonzero(~np.isfinite(_flat(labels)).all(axis=1))
        raise UsageError(
            f"expected labels that are finite, {len(bad)} of {len(labels)} are not, the first is "
            f"of sample {bad[0]}; leave out samples without a label"
        )
    if metric.name in OF_CLASSES and metric.reading != "threshold":
        kinds = "iubf" if metric.name == "auc" else "iub"  # others take places by them
        whole = labels.ndim == 1 and labels.dtype.kind in kinds and not (labels % 1).any()
        # one value is the share of class 1; whole numbers may be any class
        most = None if gives_classes(output, metric) else max(values, 2) - 1
        if not whole or (most is not None and (labels.min() < 0 or labels.max() > most)):
            raise UsageError(
                "expected whole-number labels"
                + (f" of 0 to {most}, one per value of the output" if most is not None else "")
                + f"; got {labels.dtype} {list(labels.shape)}, {labels.min()} to {labels.max()}"
            )
        return
    if metric.name in OF_CLASSES and not np.isin(labels, (0, 1)).all():
        raise UsageError(
            f"expected labels of 0 and 1 for {metric.name} of a threshold, "
            f"got {labels.min()} to {labels.max()}"
        )
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
    wanted = reference if labels is None else labels
    if name == "iou":
        return _mean(_iou(output >= metric.threshold, wanted >= metric.threshold))
    if name == "mae":
        return _mean(np.abs(_difference(output, wanted)).mean(axis=1))
    if name == "rmse":
        square = (_difference(output, wanted) ** 2).mean(axis=1)
        return Score(len(square), None, lambda w: float(np.sqrt(w @ square / w.sum())))
    assert labels is not None
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
            found = function(output[rows], None if labels is None else labels[rows])
            return np.asarray(found)
        except Exception as error:  # the publisher's own code may raise anything
            raise RefusedError(
                f"the metric {getattr(function, '__name__', function)} raised "
                f"{type(error).__name__}: {error}; it is called with the output and the labels "
                f"of {len(rows)} samples",
                OWN_METRIC,
            ) from error

    def number(rows: NDArray[np.int64]) -> float:
        value = call(rows)
        if value.shape != () or value.dtype.kind not in "iufb" or not np.isfinite(value):
            raise _no_number(value, len(rows))
        return float(value)

    value = call(np.arange(n))
    if value.shape == (n,) and value.dtype.kind in "iufb" and np.isfinite(value).all():
        return _mean(value)
    number(np.arange(n))
    return Score(n, None, lambda w: number(np.repeat(np.arange(n), w.astype(np.int64))))


def _no_number(value: NDArray[Any], n: int) -> RefusedError:
    told = f"{value.dtype} {list(value.shape)}"
    if value.shape == ():
        told = repr(value.item())[:80]
    elif value.dtype.kind == "f":
        told += f", {np.count_nonzero(~np.isfinite(value))} of them NaN or infinity"
    return RefusedError(
        f"expected a metric of one finite number, or one per sample ({n}); got {told}", OWN_METRIC
    )
