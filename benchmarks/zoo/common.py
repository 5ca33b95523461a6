"""What every model of the zoo is handed over with, and how it gets into its folder."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__all__ = ["Arrays", "Entry", "export", "run", "save", "train"]

Arrays = dict[str, np.ndarray]


@dataclass
class Entry:
    """One model of the zoo.

    Attributes:
        model: ONNX bytes.
        calibration: arrays by name, as are the others.
        recipe: everything but [model] and [data], TOML.
        about: source, licence, kind: for the table of the README.
        files: what else lies beside the recipe, text by name.
    """

    model: bytes
    calibration: Arrays
    evaluation: Arrays
    baseline: Arrays
    recipe: str
    about: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def save(out: Path, name: str, entry: Entry) -> None:
    """Write a model's folder: under another name first, so that nobody meets a half of it."""
    onnx.checker.check_model(entry.model)
    scratch = out / f".{name}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / "model.onnx").write_bytes(entry.model)
    for part in ("calibration", "evaluation", "baseline"):
        np.savez_compressed(scratch / f"{part}.npz", **getattr(entry, part))
    head = f"""\
[model]
name = "{name.replace("_", "-")}"
version = "1.0.0"
file = "model.onnx"
description = "{entry.about["kind"]}"

[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
baseline = "baseline.npz"

"""
    (scratch / "recipe.toml").write_text(head + entry.recipe)
    for file, text in entry.files.items():
        (scratch / file).write_text(text)
    graph = onnx.load_from_string(entry.model)
    kinds: dict[str, int] = {}
    for node in graph.graph.node:
        kind = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
        kinds[kind] = kinds.get(kind, 0) + 1
    about = {
        **entry.about,
        "bytes": len(entry.model),
        "opset": {o.domain or "ai.onnx": o.version for o in graph.opset_import},
        "ops": dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
        "samples": {
            part: len(next(iter(getattr(entry, part).values())))
            for part in ("calibration", "evaluation", "baseline")
        },
    }
    (scratch / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    place = out / name
    if place.exists():
        shutil.rmtree(place)
    scratch.rename(place)
    print(name, about["bytes"], about["opset"], about["samples"], flush=True)


def run(model: bytes, feed: Arrays, batch: int = 128) -> np.ndarray:
    """Return the first output for all samples."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    n = len(next(iter(feed.values())))
    parts = [
        session.run([first], {name: values[at : at + batch] for name, values in feed.items()})[0]
        for at in range(0, n, batch)
    ]
    return np.concatenate(parts)


def train(net: Any, batches: Any, epochs: int, *, rate: float) -> None:
    """Train a torch classifier.

    Args:
        net: gives logits [n, classes].
        batches: function of the epoch that yields (inputs, labels).
        epochs: how many.
        rate: of Adam at its highest, a third of the way in.
    """
    import torch

    steps = sum(1 for _ in batches(0))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for inputs, labels in batches(epoch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch}: loss {total / steps:.4f}", flush=True)
    net.eval()


def export(net: Any, example: Any, names: list[str], output: str, opset: int = 18) -> bytes:
    """Return a torch module as ONNX with an open batch axis, in one file."""
    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        examples = example if isinstance(example, tuple) else (example,)
        axes = {0: torch.export.Dim("batch", min=1, max=4096)}
        torch.onnx.export(
            net.eval(),
            examples,
            str(path),
            input_names=names,
            output_names=[output],
            dynamic_shapes=tuple(axes for _ in examples),
            opset_version=opset,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        return path.read_bytes()
