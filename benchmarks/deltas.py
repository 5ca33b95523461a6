"""What patches save, and what they cost, beside other ways to the same end.

    python benchmarks/delta_models.py MODELS      once, where torch is
    python benchmarks/deltas.py MODELS            peers as far as they are installed: zstandard, bsdiff4

Eight updates of one network, in float and in int8 (onnxruntime's static quantization, per channel,
seven bits), and two of 90 MB made up of random weights. `scales kept` is the int8 update with the
scales of its parent. Patches are applied by the agent's own child process; its memory is the most
that it held.
"""

import argparse
import lzma
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from outcome import ROOT, write

sys.path.insert(0, str(ROOT))
from compiler.keep_scales import keep_scales
from compiler.patch import make_patch
from compiler.tensor_spans import tensor_spans
from skerry.canonical import sha256
from skerry.delta import filters

EXAMPLES = ROOT / "examples" / "digits"
PAIRS = (  # what it is, from, to, bytes of the new file that it may take
    ("fp32, last layer trained on", "base", "head", 0.01),
    ("fp32, all trained on", "base", "full", None),
    ("fp32, from another seed", "base", "anew", None),
    ("int8, calibrated anew", "base-int8", "recalibrated-int8", 0.01),
    ("int8, last layer trained on", "base-int8", "head-int8", 0.01),
    ("int8, all trained on", "base-int8", "full-int8", 0.12),
    ("int8, all trained on, scales kept", "base-int8", "full-kept-int8", 0.12),
    ("int8, from another seed", "base-int8", "anew-int8", None),
    ("fp32, 90 MB, last layer trained on", "large", "large-head", 0.01),
    ("fp32, 90 MB, all trained on", "large", "large-full", None),
)
LARGE = 7 * 1024  # rows of each of three weights of 1,024 columns, and a head


class Rows(CalibrationDataReader):
    """Calibration rows in batches."""

    def __init__(self, rows) -> None:
        self._left = iter([{"image": rows[at : at + 32]} for at in range(0, len(rows), 32)])

    def get_next(self):
        """Return the next batch."""
        return next(self._left, None)


def quantize(models: Path, name: str, to: str, rows) -> None:
    """Write the int8 form of a model."""
    prepared = models / f"{name}-prepared.onnx"
    quant_pre_process(models / f"{name}.onnx", prepared)
    quantize_static(
        prepared, models / f"{to}.onnx", Rows(rows), per_channel=True, reduce_range=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8, quant_format=QuantFormat.QDQ,
    )  # fmt: skip


def accuracy(path: Path) -> float:
    """Return the share of the evaluation rows that a model gets right."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with np.load(EXAMPLES / "evaluation.npz") as rows:
        found = session.run(None, {"image": rows["image"]})[0].argmax(1)
        return round(float((found == rows["label"]).mean()), 4)


def make_large(models: Path) -> None:
    """Write 90 MB of random weights, and what small steps make of them."""
    rng = np.random.default_rng(1)
    weights = {f"w{n}": rng.normal(0, 0.02, (LARGE, 1024)).astype(np.float32) for n in range(3)}
    weights["head"] = rng.normal(0, 0.02, (1024, 16)).astype(np.float32)

    def step(array):
        return array + rng.normal(0, 2e-4, array.shape).astype(np.float32)

    for name, changed in (("large", ()), ("large-head", ("head",)), ("large-full", tuple(weights))):
        tensors = [
            numpy_helper.from_array(step(array) if key in changed else array, key)
            for key, array in weights.items()
        ]
        node = helper.make_node("Concat", list(weights), ["y"], axis=0)
        graph = helper.make_graph(
            [node], "large", [], [helper.make_tensor_value_info("y", 1, None)], tensors
        )
        onnx.save(helper.make_model(graph), models / f"{name}.onnx")


def apply(old: Path, patch: bytes, new: bytes, folder: Path) -> tuple[float, float]:
    """Apply a patch as an agent does; return seconds of CPU and MiB of memory."""
    (folder / "patch").write_bytes(patch)
    # what a process held before its program began is not counted in VmHWM, as it is in rusage
    program = (
        "import sys, agent.patch_child as c; code = c.main(); "
        "print(*[x.split()[1] for x in open('/proc/self/status') if x[:6] == 'VmHWM:']); sys.exit(code)"
    )
    command = [
        sys.executable, "-c", program, str(old), str(folder / "patch"),
        str(folder / "out"), sha256(new), str(len(new)), "600",
    ]  # fmt: skip
    before = os.times()
    child = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        check=True,
    )  # fmt: skip
    after = os.times()
    used_s = sum(after[2:4]) - sum(before[2:4])  # of children
    assert sha256((folder / "out").read_bytes()) == sha256(new)
    return round(used_s, 2), round(int(child.stdout) / 1024, 1)


def idle(folder: Path) -> float:
    """Return the MiB of the same child that makes a file of one byte."""
    (folder / "tiny").write_bytes(b"")
    patch = make_patch(b"", b"x" * 1000)
    assert patch is not None
    return apply(folder / "tiny", patch, b"x" * 1000, folder)[1]


def encodings(was: bytes, now: bytes) -> dict[str, int]:
    """Return the bytes of all changed tensors' differences, written in several ways, behind LZMA."""
    before, after = tensor_spans(was), tensor_spans(now)
    pairs = [
        (was[before[name].start : before[name].end], now[span.start : span.end], span.width)
        for name, span in after.items()
        if name in before and span.end - span.start == before[name].end - before[name].start
    ]

    def total(write: Callable[[bytes, bytes, int], bytes]) -> int:
        data = b"".join(write(*pair) for pair in pairs if pair[0] != pair[1])
        chain = [filters(23)[0] | {"preset": 9 | lzma.PRESET_EXTREME}]
        return len(lzma.compress(data, lzma.FORMAT_RAW, filters=chain))

    def minus(old: bytes, new: bytes, width: int):
        return np.frombuffer(new, f"<u{width}") - np.frombuffer(old, f"<u{width}")

    def xor(old: bytes, new: bytes, _: int) -> bytes:
        return (np.frombuffer(old, "u1") ^ np.frombuffer(new, "u1")).tobytes()

    def zigzag(old: bytes, new: bytes, width: int):
        step = minus(old, new, width).view(f"<i{width}")
        return (step << 1) ^ (step >> (8 * width - 1))

    def planes(words) -> bytes:
        return words.view("u1").reshape(-1, words.itemsize).T.tobytes()

    return {
        "bytes, xor": total(xor),
        "bytes, minus": total(lambda old, new, _: minus(old, new, 1).tobytes()),
        "words, minus": total(lambda *pair: minus(*pair).tobytes()),
        "words, zigzag": total(lambda *pair: zigzag(*pair).tobytes()),
        "words, zigzag, planes": total(lambda *pair: planes(zigzag(*pair))),
    }


def peers() -> dict[str, Callable[[bytes, bytes], int]]:
    """Return other ways, by name: each gives the bytes that travel."""
    ways: dict[str, Callable[[bytes, bytes], int]] = {
        "xz": lambda old, new: len(
            lzma.compress(new, lzma.FORMAT_RAW, filters=[filters(23)[0] | {"preset": 9}])
        )
    }
    try:
        import zstandard as zstd

        def patch_from(old: bytes, new: bytes) -> int:
            base = zstd.ZstdCompressionDict(old, dict_type=zstd.DICT_TYPE_RAWCONTENT)
            level = zstd.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
            return len(zstd.ZstdCompressor(compression_params=level, dict_data=base).compress(new))

        ways["zstd --patch-from"] = patch_from
    except ImportError:
        pass
    try:
        import bsdiff4

        ways["bsdiff4"] = lambda old, new: len(bsdiff4.diff(old, new))
    except ImportError:
        pass
    return ways


def main() -> None:
    """Measure every pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    models = parser.parse_args().models.resolve()
    rows = np.load(EXAMPLES / "calibration.npz")["image"]
    half = len(rows) // 2
    for name, to, part in (
        ("base", "base-int8", rows[:half]), ("base", "recalibrated-int8", rows[half:]),
        ("head", "head-int8", rows[:half]), ("full", "full-int8", rows[:half]),
        ("anew", "anew-int8", rows[:half]),
    ):  # fmt: skip
        quantize(models, name, to, part)
    kept = keep_scales(
        (models / "full-int8.onnx").read_bytes(), (models / "base-int8.onnx").read_bytes(),
        onnx.load(models / "full-prepared.onnx"),
    )  # fmt: skip
    assert kept is not None
    (models / "full-kept-int8.onnx").write_bytes(kept)
    make_large(models)
    found, ways = [], peers()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        floor = idle(folder)
        for what, before, after, goal in PAIRS:
            old, new = (models / f"{name}.onnx" for name in (before, after))
            was, now = old.read_bytes(), new.read_bytes()
            began = time.process_time()
            patch = make_patch(was, now)
            row = {"update": what, "file_bytes": len(now), "goal": goal,
                   "patch_bytes": patch and len(patch), "make_cpu_s": round(time.process_time() - began, 2)}  # fmt: skip
            if patch is not None:
                row["apply_cpu_s"], row["apply_rss_mib"] = apply(old, patch, now, folder)
                row["good"] = goal is None or len(patch) <= goal * len(now)
            if len(now) < 50 << 20:
                row["peers_bytes"] = {name: way(was, now) for name, way in ways.items()}
            if what in ("fp32, all trained on", "int8, all trained on"):
                row["encodings_bytes"] = encodings(was, now)
            found.append(row)
    int8 = {n: accuracy(models / f"{n}.onnx") for n in ("full", "full-int8", "full-kept-int8")}
    write("deltas", {"idle_rss_mib": floor, "updates": found, "accuracy": int8})


if __name__ == "__main__":
    main()
