"""Measure what the README of this folder claims of the data and the models, and print it.

Three tables: accuracy (on each release's own evaluation set, and on live shots that
no release has seen), what int8 gains, and what a smudged lens does to the features
in which drift is explained. Thread CPU time, so busy neighbours matter little.
"""

import logging
import tempfile
import time
from pathlib import Path
from typing import Final

import camera
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from skerry.features import EXTRACTORS

HERE: Final = Path(__file__).parent
PREFIX: Final = {"1.0.0": "", "1.1.0": "", "1.2.0": "scan-", "1.2.1": ""}
LIVE_SHOTS: Final = 10  # of each live original
WINDOW: Final = 45  # shots; what one device sends in about a second of the demo
ROUNDS, RUNS = 60, 20  # interleaved rounds, and runs of each model in one

Floats = NDArray[np.float32]


class Images(CalibrationDataReader):  # type: ignore[misc]  # its base class has no types
    """Hand calibration images to the quantizer one by one."""

    def __init__(self, images: Floats) -> None:
        self._rest = iter(np.split(images, len(images)))

    def get_next(self) -> dict[str, Floats] | None:
        """Return the next input, or None at the end."""
        image = next(self._rest, None)
        return None if image is None else {"image": image}


def main() -> None:
    """Print the three tables."""
    logging.disable(logging.WARNING)  # the quantizer advises a step that was already taken
    check_split()
    with np.load(HERE / "live.npz") as live:
        labels = np.tile(live["label"], LIVE_SHOTS)
        clean = camera.photograph(
            np.tile(live["original"], (LIVE_SHOTS, 1, 1)), np.random.default_rng(0)
        )
    smudged = camera.smudge(clean)
    reference = predict(session(HERE / "reader-1.1.0.onnx"), clean)

    accuracy_rows, int8_rows = [], []
    for version, prefix in PREFIX.items():
        path = HERE / f"reader-{version}.onnx"
        with np.load(HERE / f"{prefix}evaluation.npz") as evaluation:
            images, truth = evaluation["image"], evaluation["label"]
        with np.load(HERE / f"{prefix}calibration.npz") as calibration:
            int8, int8_bytes = quantized(path, calibration["image"])
        fp32 = session(path)

        own, seen = share(predict(fp32, images), truth), predict(fp32, clean)
        accuracy_rows.append(
            f"| {version} | {own} | {share(seen, labels)} "
            f"| {share(predict(fp32, smudged), labels)} | {distance(seen, labels):.3f} "
            f"| {distance(seen, reference):.3f} | {windowed_distance(seen, reference):.3f} |"
        )
        low, middle, high, cpu_us = latency(fp32, int8, images[:1])
        int8_rows.append(
            f"| {version} | {path.stat().st_size:,} | {int8_bytes:,} "
            f"| {own} | {share(predict(int8, images), truth)} "
            f"| {share(predict(int8, clean), labels)} | {cpu_us:.0f} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )
    feature_rows = [
        feature_row(kind, clean, smudged) for kind in EXTRACTORS if kind.startswith("image.")
    ]

    table(
        "version | own evaluation | live | live, smudged | TV to truth | TV to 1.1.0 "
        f"| TV to 1.1.0 in {WINDOW} shots",
        accuracy_rows,
    )
    table(
        "version | fp32 bytes | int8 bytes | fp32 evaluation | int8 evaluation | int8 live "
        "| fp32 CPU us | int8/fp32 CPU (10th to 90th percentile)",
        int8_rows,
    )
    table("feature | clean | smudged | sd of clean images | shift in sd", feature_rows)


def check_split() -> None:
    """Stop if an original is in two sets."""
    indexes = []
    for name in ("train", "calibration", "evaluation", "live"):
        with np.load(HERE / f"{name}.npz") as digits:
            indexes.append(digits["index"])
    originals, times = np.unique(np.concatenate(indexes), return_counts=True)
    if times.max() > 1:
        raise SystemExit(
            f"expected every original in one set; {np.sum(times > 1)} are in several: "
            "run prepare.py again"
        )
    print(f"{len(originals)} originals, each in one set only\n")


def session(path: Path) -> ort.InferenceSession:
    """Open a model on one thread that does not spin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def predict(model: ort.InferenceSession, images: Floats) -> NDArray[np.int64]:
    """Return the class of each image, int64 [batch]."""
    (probabilities,) = model.run(["probabilities"], {"image": images})
    return np.asarray(probabilities.argmax(axis=1))


def quantized(source: Path, calibration: Floats) -> tuple[ort.InferenceSession, int]:
    """Return the int8 model and its bytes: static, weights per channel, 7 bits (no VNNI needed)."""
    with tempfile.TemporaryDirectory() as scratch:
        prepared, target = Path(scratch, "prepared.onnx"), Path(scratch, "int8.onnx")
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            target,
            Images(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return session(target), target.stat().st_size


def latency(
    fp32: ort.InferenceSession, int8: ort.InferenceSession, image: Floats
) -> tuple[float, float, float, float]:
    """Return the ratio's 10th, 50th and 90th percentile over rounds, and fp32's microseconds."""
    seconds = np.empty((ROUNDS, 2))
    for row in seconds:
        for column, model in enumerate((fp32, int8)):
            start = time.thread_time()
            for _ in range(RUNS):
                model.run(None, {"image": image})
            row[column] = (time.thread_time() - start) / RUNS
    low, middle, high = np.quantile(seconds[:, 1] / seconds[:, 0], [0.1, 0.5, 0.9])
    return float(low), float(middle), float(high), float(np.median(seconds[:, 0]) * 1e6)


def distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the total variation distance of two equally many predictions, 0 to 1."""
    counts = np.bincount(one, minlength=10) - np.bincount(other, minlength=10)
    return float(np.abs(counts).sum() / (2 * len(one)))


def windowed_distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the mean distance over windows of `WINDOW` shots of both, shuffled alike."""
    rows = np.random.default_rng(0).permutation(len(one))[: len(one) // WINDOW * WINDOW]
    windows = rows.reshape(-1, WINDOW)
    return float(np.mean([distance(one[window], other[window]) for window in windows]))


def share(predicted: NDArray[np.int64], truth: NDArray[np.int64]) -> str:
    """Return the share that is right, as a percentage."""
    return f"{np.mean(predicted == truth):.1%}"


def feature_row(kind: str, clean: Floats, dirty: Floats) -> str:
    """Return one line of the feature table."""
    before, after = EXTRACTORS[kind](clean), EXTRACTORS[kind](dirty)
    shift = (after.mean() - before.mean()) / before.std()
    return (
        f"| {kind} | {before.mean():.3f} | {after.mean():.3f} | {before.std():.4f} | {shift:+.1f} |"
    )


def table(head: str, rows: list[str]) -> None:
    """Print one Markdown table."""
    print(f"| {head} |", "|---" * (head.count("|") + 1) + "|", *rows, "", sep="\n")


if __name__ == "__main__":
    main()
