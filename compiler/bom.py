"""The bill of materials: CycloneDX 1.6 with a machine-learning model component.

Made of what the bundle says of itself, so that it is the same wherever it is built: no serial
number and no time. Source: CycloneDX specification 1.6, `modelCard`.
"""

import json
from collections.abc import Mapping

from compiler.recipe import Recipe
from skerry.canonical import sha256
from skerry.manifest import Evaluation, Lineage

__all__ = ["make_bom"]


def make_bom(
    recipe: Recipe, evaluation: Evaluation, lineage: Lineage, models: Mapping[str, bytes]
) -> bytes:
    """Return the bill of materials of a bundle, JSON.

    Args:
        recipe: what was built.
        evaluation: what came of each candidate.
        lineage: where model and data came from.
        models: form -> bytes of each model that ships.
    """
    model = recipe.model
    data = [
        {
            "type": "data",
            "bom-ref": f"data/{name}",
            "name": name,
            "data": [{"type": "dataset", "name": name, "contents": {"url": _reference(value)}}],
        }
        for name, value in sorted(lineage.data.items())
    ]
    forms = [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model/{form}",
            "name": f"{model.name} ({form})",
            "version": model.version,
            "hashes": [{"alg": "SHA-256", "content": sha256(content).removeprefix("sha256:")}],
            "modelCard": {
                "modelParameters": {
                    "datasets": [{"ref": component["bom-ref"]} for component in data]
                },
                "quantitativeAnalysis": {"performanceMetrics": _metrics(evaluation, form)},
            },
        }
        for form, content in sorted(models.items())
    ]
    properties = {
        "skerry:recipe": lineage.recipe,
        "skerry:model_file": lineage.model_file,
        "skerry:run": lineage.run,
        "skerry:git_commit": lineage.git_commit,
    }
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": model.name,
                "version": model.version,
                "description": model.description or model.name,
            },
            "properties": [
                {"name": name, "value": value} for name, value in properties.items() if value
            ],
        },
        "components": [*forms, *data],
        "dependencies": [
            {"ref": "model", "dependsOn": [f["bom-ref"] for f in forms]},
            *({"ref": f["bom-ref"], "dependsOn": [d["bom-ref"] for d in data]} for f in forms),
        ],
    }
    return json.dumps(bom, indent=1, ensure_ascii=False).encode() + b"\n"


def _metrics(evaluation: Evaluation, form: str) -> list[dict[str, object]]:
    found = []
    for candidate in evaluation.candidates:
        if candidate.precision == form and candidate.accuracy is not None:
            metric: dict[str, object] = {
                "type": evaluation.metric,
                "value": f"{candidate.accuracy:.6g}",
            }
            found.append(metric)
            break
    found += [
        {"type": evaluation.metric, "value": f"{s.value:.6g}", "slice": f"{s.slice}={s.group}"}
        for s in evaluation.slices
        if found and form == next(c.precision for c in evaluation.candidates if c.chosen)
    ]
    return found


def _reference(value: str) -> str:
    return value if ":" in value else f"urn:skerry:{value}"
