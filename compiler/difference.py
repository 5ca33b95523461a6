"""What two bundles differ in: graph, schema, accuracy, size, and what ordinary data looks like."""

from collections import Counter
from typing import Any

import msgspec
import numpy as np

from compiler.passes import opset_of, parse
from skerry.bundle import Bundle
from skerry.manifest import Baseline, BaselineColumn, TensorSpec, Variant, parse_baseline
from skerry.sketch import CategoricalCounts, CategoricalSpec, NumericCounts, NumericSpec, big_to_int

__all__ = ["Difference", "difference"]


class Change(msgspec.Struct, frozen=True):
    """One thing that differs: what it was, and what it is."""

    what: str
    before: str
    after: str


class Difference(msgspec.Struct, frozen=True):
    """Everything that two bundles differ in, by topic."""

    before: str
    after: str
    schema: list[Change]
    graph: list[Change]
    size: list[Change]
    accuracy: list[Change]
    baseline: list[Change]
    lineage: list[Change]

    @property
    def topics(self) -> dict[str, list[Change]]:
        """The changes by topic, those without any left out."""
        names = ("schema", "graph", "size", "accuracy", "baseline", "lineage")
        found: dict[str, list[Change]] = {name: getattr(self, name) for name in names}
        return {name: changes for name, changes in found.items() if changes}


def difference(a: Bundle, b: Bundle) -> Difference:
    """Compare two bundles whose digests were checked."""
    before, after = a.manifest, b.manifest
    return Difference(
        before=f"{before.model} {before.model_version} {a.digest}",
        after=f"{after.model} {after.model_version} {b.digest}",
        schema=[
            *_changes(_specs("in", before.inputs), _specs("in", after.inputs)),
            *_changes(_specs("out", before.outputs), _specs("out", after.outputs)),
            *_changes(
                {"prediction": f"{before.prediction.kind} of {before.prediction.output}"},
                {"prediction": f"{after.prediction.kind} of {after.prediction.output}"},
            ),
            *_changes(dict.fromkeys(before.needs, "needed"), dict.fromkeys(after.needs, "needed")),
        ],
        graph=_changes(_graph(a, before.variants[-1]), _graph(b, after.variants[-1])),
        size=_changes(
            {v.id: f"{v.file.size_bytes:,} bytes" for v in before.variants},
            {v.id: f"{v.file.size_bytes:,} bytes" for v in after.variants},
        ),
        accuracy=_changes(_accuracy(before.variants), _accuracy(after.variants)),
        baseline=_baseline(a, b),
        lineage=_changes(_lineage(a), _lineage(b)),
    )


def _changes(before: dict[str, str], after: dict[str, str]) -> list[Change]:
    names = [*before, *(name for name in after if name not in before)]
    return [
        Change(name, before.get(name, "-"), after.get(name, "-"))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _specs(way: str, specs: list[TensorSpec]) -> dict[str, str]:
    return {
        f"{way} {spec.name}": f"{spec.datatype} {spec.shape}"
        + (f" of {len(spec.class_names)} classes" if spec.class_names else "")
        for spec in specs
    }


def _accuracy(variants: list[Variant]) -> dict[str, str]:
    return {
        v.id: f"{v.accuracy.metric} {v.accuracy.value:.4f} (n={v.accuracy.n}, {v.accuracy.isa})"
        for v in variants
    }


def _graph(bundle: Bundle, variant: Variant) -> dict[str, str]:
    """Return what can be said of a graph in a line each: the last variant's, which is fp32."""
    model = parse(bundle.blobs[variant.file.digest])
    nodes = Counter(node.op_type for node in model.graph.node)
    weights = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    return {
        "opset": str(opset_of(model)),
        "parameters": f"{weights:,}",
        **{f"{kind} nodes": str(many) for kind, many in sorted(nodes.items())},
    }


def _lineage(bundle: Bundle) -> dict[str, str]:
    lineage = bundle.manifest.lineage
    return {
        "recipe": lineage.recipe,
        "model file": lineage.model_file,
        "run": lineage.run or "-",
        "git commit": lineage.git_commit or "-",
        **{f"data {name}": value for name, value in sorted(lineage.data.items())},
    }


# --- what ordinary data looks like -------------------------------------------------------------


def _baseline(a: Bundle, b: Bundle) -> list[Change]:
    old = parse_baseline(a.blobs[a.manifest.baseline.digest])
    new = parse_baseline(b.blobs[b.manifest.baseline.digest])
    before, after = old.columns, new.columns
    found = _changes(_groups(old), _groups(new))
    for name in sorted({*before, *after} - {"latency_us"}):
        one, other = before.get(name), after.get(name)
        told = tuple("-" if column is None else _told(column) for column in (one, other))
        if told[0] == told[1]:
            continue
        moved = _moved(one, other)
        found.append(Change(f"{name}{moved}", told[0], told[1]))
    return found


def _groups(baseline: Baseline) -> dict[str, str]:
    return {
        f"by {name}": ", ".join(f"{group} {part.n}" for group, part in groups.items()) or "no group"
        for name, groups in baseline.slices.items()
    }


def _told(column: BaselineColumn) -> str:
    if isinstance(column.spec, CategoricalSpec):
        counts: Any = column.counts
        total = max(1, sum(counts.counts))
        shares = zip(column.spec.values, counts.counts, strict=True)
        top = sorted(shares, key=lambda share: -share[1])[:3]
        return ", ".join(f"{value} {count / total:.1%}" for value, count in top)
    mean, deviation = _moments(column)
    return f"{mean:.4g} +- {deviation:.3g}"


def _moments(column: BaselineColumn) -> tuple[float, float]:
    counts, spec = column.counts, column.spec
    assert isinstance(counts, NumericCounts)
    assert isinstance(spec, NumericSpec)
    n = max(1, sum(counts.bins))
    mean = big_to_int(counts.sum) / spec.scale / n
    square = big_to_int(counts.sum_sq) / spec.scale / spec.scale / n
    return mean, max(0.0, square - mean * mean) ** 0.5


def _moved(a: BaselineColumn | None, b: BaselineColumn | None) -> str:
    """Return how far a column moved: in standard deviations, or as total variation."""
    if a is None or b is None or type(a.spec) is not type(b.spec):
        return ""
    if isinstance(a.spec, CategoricalSpec) and isinstance(b.spec, CategoricalSpec):
        if a.spec.values != b.spec.values:
            return " (other classes)"
        assert isinstance(a.counts, CategoricalCounts)
        assert isinstance(b.counts, CategoricalCounts)
        p, q = (np.asarray(c.counts) / max(1, sum(c.counts)) for c in (a.counts, b.counts))
        return f" (total variation {float(np.abs(p - q).sum() / 2):.3f})"
    (mean, deviation), (other, _) = _moments(a), _moments(b)
    if deviation == 0:
        return ""
    return f" (moved by {abs(other - mean) / deviation:.2f} sd)"
