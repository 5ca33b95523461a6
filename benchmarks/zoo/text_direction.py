"""rapidocr-onnxruntime's text direction classifier, on lines of text drawn here, half of them upside down.

PaddleOCR's mobile classifier (MobileNetV3-small, opset 11). The words are those of Python's own
documentation strings, drawn with Debian's fonts in random colours, with blur and noise.
"""

import ast
import sys
import sysconfig
from pathlib import Path

import numpy as np
from common import Arrays, Entry, run
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SEED = 11
HEIGHT, WIDTH = 48, 192
FONTS = "/usr/share/fonts/truetype/dejavu"


def documentation(modules: int = 200) -> list[tuple[str, str]]:
    """Return (module, documentation string) of Python's standard library, in a fixed order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(folder.glob("*.py"))[:modules]:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    found.append((path.stem, text))
    assert len(found) > 1000, f"expected documentation strings in {folder}, {sys.version}"
    return found


def line(
    text: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator, wide: int = WIDTH
) -> np.ndarray:
    """Draw a line as a camera may see it: float32 [3, 48, wide], -1 to 1, as PaddleOCR prepares it."""
    left, top, right, bottom = font.getbbox(text)
    pad = int(rng.integers(2, 8))
    paper = rng.integers(150, 256, 3)
    ink = rng.integers(0, 110, 3)
    size = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad)
    image = Image.new("RGB", size, tuple(int(v) for v in paper))
    ImageDraw.Draw(image).text((pad - left, pad - top), text, font=font, fill=tuple(map(int, ink)))
    image = image.rotate(
        float(rng.uniform(-3, 3)), Image.Resampling.BILINEAR, fillcolor=tuple(map(int, paper))
    )
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2))))
    width = min(wide, max(8, round(HEIGHT * image.width / image.height)))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    pixels = np.clip(pixels + rng.normal(0, rng.uniform(2, 30), pixels.shape), 0, 255)
    whole = np.zeros((3, HEIGHT, wide), np.float32)
    whole[:, :, :width] = (pixels.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return whole


def fonts_of(sizes: tuple[int, ...]) -> list[ImageFont.FreeTypeFont]:
    """Return four of Debian's fonts in some sizes."""
    return [
        ImageFont.truetype(f"{FONTS}/{name}.ttf", size)
        for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")
        for size in sizes
    ]


def lines(n: int, seed: int) -> Arrays:
    """Draw lines, every other upside down; kept as 8-bit steps, so that the files stay small."""
    rng = np.random.default_rng([SEED, seed])
    words = sorted(
        {w for _, text in documentation() for w in text.split() if w.isalpha() and len(w) > 2}
    )
    fonts = fonts_of((18, 26, 34))
    images, labels = [], []
    for index in range(n):
        text = " ".join(rng.choice(words, int(rng.integers(1, 4))))
        drawn = line(text, fonts[int(rng.integers(len(fonts)))], rng)
        if index % 2:
            filled = np.flatnonzero(np.abs(drawn).sum((0, 1)))
            width = int(filled.max()) + 1
            drawn[:, :, :width] = drawn[:, ::-1, :width][:, :, ::-1]
        images.append((np.rint((drawn + 1) * 127.5) / 127.5 - 1).astype(np.float32))
        labels.append(index % 2)
    return {"x": np.stack(images), "label": np.asarray(labels, np.int64)}


def ocr_cls() -> Entry:
    """The classifier as the package ships it."""
    import rapidocr_onnxruntime

    name = "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    model = (Path(rapidocr_onnxruntime.__file__).parent / "models" / name).read_bytes()
    evaluation = lines(1000, 2)
    found = run(model, {"x": evaluation["x"]})
    value = float((found.argmax(1) == evaluation["label"]).mean())
    print(f"fp32 accuracy {value:.4f}")
    recipe = f"""\
[metric]
name = "accuracy"
output = "save_infer_model/scale_0.tmp_1"

[gate]
max_drop = 0.01

[classes]
names = ["0", "180"]

[lineage]
data = "drawn lines, seed {SEED}"
"""
    about = {
        "kind": "text direction classifier (MobileNetV3-small)",
        "source": f"rapidocr-onnxruntime 1.4.4, {name}",
        "licence": "Apache-2.0",
        "metric": "accuracy",
        "fp32": value,
    }
    return Entry(model, lines(200, 1), evaluation, lines(300, 3), recipe, about)
