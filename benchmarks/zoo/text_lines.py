"""rapidocr-onnxruntime's reader of text lines (PP-OCRv4, 10.9 MB), on lines drawn here.

Convolutions, then attention, then 6,625 characters at each step along the line. Judged by a metric of
its own, `metric.py` beside the recipe: the share of characters that are right after decoding.
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from common import Arrays, Entry, run
from text_direction import documentation, fonts_of, line

SEED = 12
WIDE = 192  # pixels: 24 steps
LONGEST = 14  # characters

METRIC = '''\
"""The share of characters that a reader of text lines has right."""

import numpy as np


def characters(output, labels):
    """Return one minus the edit distance over the length, per line: float64 [n], at least 0.

    Args:
        output: float32 [n, steps, characters]; 0 is the blank between characters.
        labels: int64 [n, longest], -1 where a line is shorter.
    """
    found = output.argmax(axis=2)
    values = []
    for steps, wanted in zip(found, labels, strict=True):
        kept = np.append(True, steps[1:] != steps[:-1]) & (steps != 0)
        read, right = steps[kept].tolist(), wanted[wanted >= 0].tolist()
        row = list(range(len(right) + 1))
        for i, one in enumerate(read, 1):
            last, row[0] = row[0], i
            for j, other in enumerate(right, 1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (one != other))
        values.append(max(0.0, 1 - row[-1] / len(right)))
    return np.asarray(values)
'''


def drawn(n: int, seed: int, places: dict[str, int]) -> Arrays:
    """Draw lines of one to three words, and what they say."""
    rng = np.random.default_rng([SEED, seed])
    words = sorted({
        w for _, text in documentation() for w in text.split()
        if 3 <= len(w) <= LONGEST and w.isascii() and w.isalnum()
    })  # fmt: skip
    fonts = fonts_of((26, 34))
    images, labels = [], np.full((n, LONGEST), -1, np.int64)
    for index in range(n):
        text = str(rng.choice(words))
        while rng.random() < 0.5:
            longer = f"{text} {rng.choice(words)}"
            if len(longer) > LONGEST:
                break
            text = longer
        image = line(text, fonts[int(rng.integers(len(fonts)))], rng, WIDE)
        images.append((np.rint((image + 1) * 127.5) / 127.5 - 1).astype(np.float32))
        labels[index, : len(text)] = [places[c] for c in text]
    return {"x": np.stack(images), "label": labels}


def ocr_rec() -> Entry:
    """The reader as the package ships it."""
    import rapidocr_onnxruntime

    name = "ch_PP-OCRv4_rec_infer.onnx"
    model = (Path(rapidocr_onnxruntime.__file__).parent / "models" / name).read_bytes()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    places = {c: i for i, c in enumerate(["", *characters, " "])}
    evaluation = drawn(300, 2, places)
    scope: dict[str, object] = {}
    exec(METRIC, scope)
    found = run(model, {"x": evaluation["x"]}, batch=16)
    value = float(scope["characters"](found, evaluation["label"]).mean())
    print(f"fp32 characters {value:.4f}")
    recipe = f"""\
[metric]
name = "metric:characters"
output = "{session.get_outputs()[0].name}"
postprocess = "none"

[gate]
max_drop = 0.01

[lineage]
data = "drawn lines, seed {SEED}"
"""
    about = {
        "kind": "reader of text lines (convolutions and attention, 10.9 MB)",
        "source": f"rapidocr-onnxruntime 1.4.4, {name}",
        "licence": "Apache-2.0",
        "metric": "characters right (own function)",
        "fp32": value,
    }
    return Entry(
        model, drawn(100, 1, places), evaluation, drawn(100, 3, places), recipe, about,
        {"metric.py": METRIC},
    )  # fmt: skip
