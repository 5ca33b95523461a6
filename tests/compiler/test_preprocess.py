"""What is done to a raw input is a part of the model, and the same as in training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.build import build
from compiler.parity import corpus, steps_alone
from compiler.preprocess import mel_filters, put_before
from compiler.recipe import Preprocess, read_recipe
from compiler.runtime import open_session
from skerry.errors import GateError, UsageError
from skerry.onnx_outline import DEVICE, check_outline
from tests.compiler.conftest import NOW
from tests.fakes.models import graph, shapes

RNG = np.random.default_rng(41)


def run(steps: Preprocess, raw: np.ndarray) -> np.ndarray:
    found: np.ndarray = open_session(steps_alone("x", steps, raw.shape)).run(None, {"x": raw})[0]
    return found


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize [h, w] with half-pixel centres, edges repeated: plain numpy."""

    def places(new: int, old: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, old - 1), at - low

    top, bottom, down = places(height, image.shape[0])
    left, right, over = places(width, image.shape[1])
    upper = image[top][:, left] * (1 - over) + image[top][:, right] * over
    lower = image[bottom][:, left] * (1 - over) + image[bottom][:, right] * over
    return np.asarray(upper * (1 - down)[:, None] + lower * down[:, None])


IMAGE = Preprocess(
    "image", size=[16, 24], order="bgr", scale=1 / 255, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]
)


def prepared(raw: np.ndarray, steps: Preprocess = IMAGE) -> np.ndarray:
    rows = []
    for photo in raw.astype(np.float64):
        planes = [bilinear(photo[..., c], *steps.size) for c in range(photo.shape[2])]
        order = planes[::-1] if steps.order == "bgr" else planes
        value = np.stack(order) * steps.scale
        value = (value - np.reshape(steps.mean, (-1, 1, 1))) / np.reshape(steps.std, (-1, 1, 1))
        rows.append(value if steps.layout == "nchw" else np.moveaxis(value, 0, -1))
    return np.stack(rows)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_photos_of_any_size_are_resized_ordered_and_scaled(layout: Any) -> None:
    steps = Preprocess(
        "image", size=IMAGE.size, order="bgr", layout=layout, scale=IMAGE.scale, mean=IMAGE.mean,
        std=IMAGE.std,
    )  # fmt: skip
    for told, raw in corpus(steps, RNG.integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)):
        wanted = prepared(raw, steps)
        assert np.abs(run(steps, raw) - wanted).max() < 5e-4, told


def test_numbers_are_scaled_by_column() -> None:
    raw = RNG.normal(size=(5, 3)).astype(np.float32)
    steps = Preprocess("scale", scale=2.0, mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 4.0])
    assert run(steps, raw) == pytest.approx((raw * 2 - [1, 2, 3]) / [1, 2, 4], abs=1e-5)


def log_mel(raw: np.ndarray, steps: Preprocess) -> np.ndarray:
    window = np.hanning(steps.window + 1)[:-1]
    frames = 1 + (raw.shape[1] - steps.window) // steps.hop
    cut = np.stack(
        [raw[:, i * steps.hop : i * steps.hop + steps.window] * window for i in range(frames)], 1
    )
    power = np.abs(np.fft.rfft(cut.astype(np.float64), axis=2)) ** 2
    return np.asarray(10 * np.log10(np.maximum(power @ mel_filters(steps), 1e-10))).swapaxes(1, 2)


def test_sound_becomes_a_spectrogram() -> None:
    steps = Preprocess("mel", mels=40)
    for told, raw in corpus(steps, RNG.normal(0, 0.3, (2, 8000)).astype(np.float32)):
        assert np.abs(run(steps, raw) - log_mel(raw, steps)).max() < 0.05, told
    time = np.arange(16000, dtype=np.float32) / 16000
    low, high = (run(steps, np.sin(2 * np.pi * hz * time)[None])[0].mean(1) for hz in (300, 3000))
    assert low.argmax() < high.argmax()


def test_filters_have_equal_areas() -> None:
    steps = Preprocess("mel", mels=30, window=4096)
    areas = mel_filters(steps).sum(axis=0) * steps.rate / steps.window
    assert areas == pytest.approx(1.0, abs=0.05)


# --- in a build ---------------------------------------------------------------------------------


def camera(folder: Path, more: str = "", function: str = "") -> Path:
    """The shapes, as photos of 32 x 32 bytes in grey, before the model that tells them apart."""
    task = shapes()
    (folder / "model.onnx").write_bytes(task.model.SerializeToString())
    for name, (images, labels) in task.sets.items():
        photos = np.repeat(np.repeat(np.moveaxis(images, 1, -1), 2, axis=1), 2, axis=2)
        np.savez(folder / f"{name}.npz", image=(photos * 255).astype(np.uint8), label=labels)
    (folder / "training.py").write_text(
        "import numpy as np\n"
        "def prepare(raw):\n"
        "    rows = []\n"
        "    for photo in raw.astype(float):\n"
        "        h, w = photo.shape[:2]\n"
        "        def places(new, old):\n"
        "            at = np.clip((np.arange(new) + .5) * old / new - .5, 0, old - 1)\n"
        "            low = np.floor(at).astype(int)\n"
        "            return low, np.minimum(low + 1, old - 1), at - low\n"
        "        t, b, d = places(16, h)\n"
        "        l, r, o = places(16, w)\n"
        "        p = photo[..., 0]\n"
        "        up = p[t][:, l] * (1 - o) + p[t][:, r] * o\n"
        "        lo = p[b][:, l] * (1 - o) + p[b][:, r] * o\n"
        "        rows.append((up * (1 - d)[:, None] + lo * d[:, None])[None] / 255)\n"
        "    return np.stack(rows)\n"
        f"{function}"
    )
    path = folder / "recipe.toml"
    path.write_text(
        '[model]\nname = "camera"\nversion = "1.0.0"\nfile = "model.onnx"\n[data]\n'
        'calibration = "calibration.npz"\nevaluation = "evaluation.npz"\n'
        'baseline = "baseline.npz"\n[metric]\noutput = "y"\n'
        "[gate]\nmax_drop = 0.02\nmax_latency_ratio = 100.0\n[precisions]\ntry = ['int8']\n"
        '[features]\nlight = "photo.brightness"\n'
        '[preprocess.image]\nkind = "image"\nsize = [16, 16]\nscale = 0.00392156862745098\n'
        f"{more}"
    )
    return path


def test_the_model_takes_photos_and_ships(tmp_path: Path) -> None:
    path = camera(tmp_path, 'reference = "training:prepare"\n')
    made = build(read_recipe(path), now=NOW)
    spec = made.manifest.inputs[0]
    assert (spec.name, spec.datatype, spec.shape) == ("image", "UINT8", [-1, -1, -1, 1])
    assert made.manifest.variants[0].precision == "int8"
    assert made.record.variants[-1].accuracy is not None
    assert made.record.variants[-1].accuracy > 0.95
    assert any("image steps are a part of the model" in note for note in made.record.notes)


SKEWED: list[tuple[str, str]] = [
    ("def other(raw):\n    return prepare(raw) * 255 / 256\n", r"by 0\.0037\d* on 16 real samples"),
    (
        "def other(raw):\n    x = prepare(raw)\n    return x if raw.shape[1] > 1 else x + 1\n",
        "by 1 on noise of 1 x 1",
    ),
    ("def other(raw):\n    return prepare(raw) + float('nan')\n", "by nan on"),
]


@pytest.mark.parametrize(("function", "message"), SKEWED)
def test_steps_that_are_not_those_of_training_fail_the_build(
    tmp_path: Path, function: str, message: str
) -> None:
    path = camera(tmp_path, 'reference = "training:other"\n', function)
    with pytest.raises(GateError, match=message):
        build(read_recipe(path), now=NOW)
    if "nan" in message:
        return
    path.write_text(path.read_text() + "max_difference = 1.5\n")
    assert build(read_recipe(path), now=NOW).digest


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("def other(raw):\n    return prepare(raw)[:, 0]\n", r"the graph gives \[16, 1, 16, 16\]"),
        ("def other(raw):\n    raise KeyError('k')\n", "raised KeyError on 16 real samples"),
    ],
)
def test_a_reference_that_is_none_is_told(tmp_path: Path, function: str, message: str) -> None:
    path = camera(tmp_path, 'reference = "training:other"\n', function)
    with pytest.raises(UsageError, match=message):
        build(read_recipe(path), now=NOW)


def small(shape: list[Any]) -> onnx.ModelProto:
    return graph(
        [helper.make_node("Relu", ["x"], ["y"], name="r")], {},
        inputs=[("x", shape)], outputs=[("y", shape)],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "name", "steps", "message"),
    [
        (["n", 3, 16, 24], "z", IMAGE, "preprocess.z: the model has no such input; it has x"),
        (["n", 3, 16, 16], "x", IMAGE, r"the steps give \[16, 24\] in nchw, the model takes"),
        (["n", 3], "x", IMAGE, "a model that takes images of four axes"),
        (["n", 64, 10], "x", Preprocess("mel"), r"the steps give \[n, 80, frames\]"),
    ],
)
def test_steps_that_do_not_fit_the_model_are_named(
    shape: list[Any], name: str, steps: Preprocess, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        put_before(small(shape), {name: steps})


@pytest.mark.parametrize(
    "make",
    [
        lambda: (small(["n", 3, 16, 24]), IMAGE),
        lambda: (small(["n", 80, "t"]), Preprocess("mel")),
        lambda: (small(["n", 3]), Preprocess("scale", mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 2.0])),
    ],
)
def test_devices_run_it_without_anything_besides(
    make: Callable[[], tuple[onnx.ModelProto, Preprocess]],
) -> None:
    model, steps = make()
    assert put_before(model, {"x": steps})
    onnx.checker.check_model(model)
    check_outline(model.SerializeToString(), DEVICE)
    open_session(model.SerializeToString())
