"""The model card: Markdown for people, with the front matter that model hubs read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from compiler.recipe import Recipe
from compiler.texts import REQUIREMENT, tokenizers_of
from skerry.manifest import CandidateReport, Evaluation, TensorSpec

__all__ = ["make_card"]


def make_card(
    recipe: Recipe,
    evaluation: Evaluation,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    data: Mapping[str, str],
) -> bytes:
    """Return the card, UTF-8.

    Args:
        recipe: what was built.
        evaluation: what came of each candidate.
        inputs: what the model takes.
        outputs: what it gives.
        data: data set -> digest or reference.
    """
    model = recipe.model
    parts = [
        _front_matter(recipe, evaluation),
        f"# {model.name} {model.version}",
        model.description,
        recipe.card.text.strip(),
        "## Input and output",
        _table(
            ("tensor", "type", "shape"),
            [
                *((f"in: {s.name}", s.datatype, _shape(s)) for s in inputs),
                *((f"out: {s.name}", s.datatype, _shape(s)) for s in outputs),
            ],
        ),
        _needs(recipe),
        _classes(recipe),
        "## Evaluation",
        f"{evaluation.metric.capitalize()} on {evaluation.n} samples, measured on "
        f"{evaluation.isa}; other classes of hardware are unmeasured until a device of theirs has "
        f"run the golden set. The gate takes at most {recipe.gate.max_drop:g} worse than fp32"
        f"{_limit(recipe)}.",
        _table(
            ("precision", "bytes", evaluation.metric, "first choice", "why"),
            [_candidate(candidate) for candidate in evaluation.candidates],
        ),
        "## Watched on devices",
        _features(recipe),
        "## Lineage",
        _table(("data", "what"), sorted(data.items())),
        f"Training run: {_text(recipe.lineage.run)}" if recipe.lineage.run else "",
    ]
    return ("\n\n".join(part for part in parts if part) + "\n").encode()


def _needs(recipe: Recipe) -> str:
    steps = tokenizers_of(recipe.preprocess)
    if not steps:
        return ""
    told = f"Texts are split by a tokenizer in the model: devices need `{REQUIREMENT}`."
    differs = sorted({name for wanted in steps.values() for name in wanted.differs})
    return (
        f"{told} It may split otherwise than training: {', '.join(differs)}." if differs else told
    )


def _front_matter(recipe: Recipe, evaluation: Evaluation) -> str:
    # JSON is YAML: every scalar is quoted by a writer that is certain to be right
    chosen = next(c for c in evaluation.candidates if c.chosen)
    result = {
        "task": {"type": "classification"},
        "dataset": {"type": "private", "name": PurePosixPath(recipe.data.evaluation).name},
        "metrics": [{"type": evaluation.metric, "value": chosen.accuracy}],
    }
    fields: dict[str, object] = {
        "library_name": "onnx",
        "tags": ["onnx", "onnxruntime", "edge", "skerry"],
        "model_name": recipe.model.name,
        "version": recipe.model.version,
        "model-index": [{"name": recipe.model.name, "results": [result]}],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _candidate(candidate: CandidateReport) -> tuple[str, ...]:
    value = "-" if candidate.accuracy is None else f"{candidate.accuracy:.4f}"
    chosen = "yes" if candidate.chosen else ""
    return candidate.precision, str(candidate.size_bytes), value, chosen, candidate.reason


def _classes(recipe: Recipe) -> str:
    names = recipe.classes.names
    return f"Classes, in this order: {', '.join(map(_text, names))}." if names else ""


def _limit(recipe: Recipe) -> str:
    gate = recipe.gate
    if gate.min_value is not None:
        return f" and at least {gate.min_value:g}"
    return f" and at most {gate.max_value:g}" if gate.max_value is not None else ""


def _features(recipe: Recipe) -> str:
    watched = [
        f"- {name}: `{notes if isinstance(notes, str) else notes.kind}` of the input"
        for name, notes in sorted(recipe.features.items())
    ]
    return "\n".join([*watched, "- predictions, their confidence, and latency"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines)


def _shape(spec: TensorSpec) -> str:
    return " x ".join("n" if dim < 0 else str(dim) for dim in spec.shape)


def _text(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
