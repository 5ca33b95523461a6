"""A tiny release on disk, and a real serve process that a test plays control for."""

import os
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.labels import Label
from agent.observe import Failure
from agent.segments import boots, iter_records, segments
from agent.serve_protocol import (
    Accept,
    Drain,
    Drained,
    FromServe,
    Ready,
    ServeConfig,
    ServeSlot,
    ToServe,
    frame,
    frames_from_serve,
    serve_command,
    serve_environment,
)
from skerry.canonical import sha256, to_json, to_msgpack
from skerry.counting import count_categorical, count_numeric, quantile_spec
from skerry.features import extractor
from skerry.manifest import (
    Accuracy,
    Baseline,
    BaselineColumn,
    FeatureSpec,
    FileRef,
    Golden,
    GoldenTensor,
    Lineage,
    Manifest,
    PredictionSpec,
    TensorSpec,
    Variant,
)
from skerry.reading import read_predictions
from skerry.records import Item, Prediction, SketchWindow
from skerry.sketch import CategoricalSpec, NumericCounts, NumericSpec
from skerry.tensors import DTYPES

CLASSES = ["low", "middle", "high"]
FEATURES = {"brightness": "image.brightness", "contrast": "image.contrast"}
ROOT = Path(__file__).resolve().parents[2]


def images(n: int, seed: int = 0) -> NDArray[np.float32]:
    """float32 [n, 1, 4, 4], 0 to 1."""
    return np.random.default_rng(seed).random((n, 1, 4, 4), dtype=np.float32)


def wide_model(width: int = 1024) -> bytes:
    """Scores [batch, 3] of an image [batch, 1, 4, 4] by way of a wide layer: a file of 4 MB."""
    random = np.random.default_rng(7)
    weights = {
        "into": random.normal(size=(16, width)) / 4,
        "across": random.normal(size=(width, width)) / width**0.5,
        "out": random.normal(size=(width, len(CLASSES))) / width**0.5,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "into"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "across"], ["c"]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("MatMul", ["d", "out"], ["scores"]),
        ],
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(CLASSES)])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return save(graph)


def linear_model(seed: int = 0) -> bytes:
    """Scores [batch, 3] of an image [batch, 1, 4, 4]: flatten, then a linear layer."""
    weight = np.random.default_rng(seed).normal(size=(16, len(CLASSES))).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(CLASSES)])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return save(graph)


def table_model() -> bytes:
    """The entry [batch] of a table of four at a position INT64 [batch]: others are an error."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "position"], ["entry"])],
        "table",
        [helper.make_tensor_value_info("position", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("entry", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")],
    )
    return save(graph)


def slow_model(side: int = 1024, times: int = 2) -> bytes:
    """A value [batch] that takes long: products of square matrices of a number [batch]."""
    ones = numpy_helper.from_array(np.ones((side, side), np.float32), "ones")
    share = numpy_helper.from_array(np.full((), 1 / side, np.float32), "share")
    nodes = [
        helper.make_node("ReduceMean", ["number"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["ones", "mean"], ["m0"]),
    ]
    for i in range(times):
        nodes.append(helper.make_node("MatMul", [f"m{i}", "ones"], [f"p{i}"]))
        nodes.append(helper.make_node("Mul", [f"p{i}", "share"], [f"m{i + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"m{times}"], ["all"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["number", "all"], ["square"]))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("number", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("square", TensorProto.FLOAT, ["n"])],
        [ones, share],
    )
    return save(graph)


def echo_model() -> bytes:
    """Every datatype, given back as it came: `in_FP32` [batch, 2] is `out_FP32`, and so on."""
    ports = {
        name: helper.np_dtype_to_tensor_dtype(dtype) if name != "BYTES" else TensorProto.STRING
        for name, dtype in DTYPES.items()
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in ports],
        "echo",
        [helper.make_tensor_value_info(f"in_{n}", t, ["n", 2]) for n, t in ports.items()],
        [helper.make_tensor_value_info(f"out_{n}", t, ["n", 2]) for n, t in ports.items()],
    )
    return save(graph)


def save(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class Release:
    """Files of one release, and the slot that serves it."""

    slot: ServeSlot
    manifest: Manifest
    golden_file: Path

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the model answers, without any server."""
        return scores(Path(self.slot.model_file).read_bytes(), image)


def scores(model: bytes, image: NDArray[np.float32]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["scores"], {"image": image})[0])


def linear_release(directory: Path, *, version: str = "1.0.0", seed: int = 0) -> Release:
    """A classifier of images into three classes, with baseline and golden set."""
    data = linear_model(seed)
    rows = images(400, seed=99)
    classes, confidence = read_predictions(scores(data, rows), "argmax")
    spec = CategoricalSpec(CLASSES)
    latency = NumericSpec([1.0, 100.0, 1000.0, 1e6], scale=1)
    columns = {
        **{name: numeric(extractor(kind)(rows)) for name, kind in FEATURES.items()},
        "prediction": BaselineColumn(spec, count_categorical(classes, spec)),
        "confidence": numeric(confidence),
        "latency_us": BaselineColumn(latency, NumericCounts(n=0, bins=[0, 0, 0])),
    }
    golden = Golden(
        [GoldenTensor("image", "FP32", [8, 1, 4, 4], rows[:8].tobytes())],
        [GoldenTensor("scores", "FP32", [8, 3], scores(data, rows[:8]).tobytes())],
        max_disagree=0.0,
        atol=1e-4,
    )
    return write_release(
        directory,
        data,
        model="reader",
        version=version,
        inputs=[TensorSpec("image", "FP32", [-1, 1, 4, 4], range=(0.0, 1.0))],
        outputs=[TensorSpec("scores", "FP32", [-1, 3], class_names=CLASSES)],
        prediction=PredictionSpec("scores", "argmax"),
        features=[FeatureSpec(name, kind, "image") for name, kind in FEATURES.items()],
        baseline=Baseline(columns, n=len(rows)),
        golden=golden,
    )


def value_release(directory: Path, name: str) -> Release:
    """`table`, `echo` or `slow`: models whose prediction is a number, without features."""
    if name == "slow":
        data = slow_model()
        inputs = [TensorSpec("number", "FP32", [-1])]
        outputs = [TensorSpec("square", "FP32", [-1])]
    elif name == "table":
        data = table_model()
        inputs = [TensorSpec("position", "INT64", [-1])]
        outputs = [TensorSpec("entry", "FP32", [-1])]
    else:
        data = echo_model()
        inputs = [TensorSpec(f"in_{t}", t, [-1, 2]) for t in DTYPES]
        outputs = [TensorSpec(f"out_{t}", t, [-1, 2]) for t in DTYPES]
    return write_release(
        directory,
        data,
        model=name,
        version="2.0.0",
        inputs=inputs,
        outputs=outputs,
        prediction=PredictionSpec(
            {"slow": "square", "table": "entry", "echo": "out_FP32"}[name], "value"
        ),
        features=[],
        baseline=Baseline({"confidence": numeric(np.arange(4.0))}, n=4),
        golden=Golden([], [], 0.0, 0.0),
    )


def numeric(values: NDArray[Any]) -> BaselineColumn:
    spec = quantile_spec(values, bins=8)
    return BaselineColumn(spec, count_numeric(values, spec))


def write_release(
    directory: Path,
    data: bytes,
    *,
    model: str,
    version: str,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    prediction: PredictionSpec,
    features: list[FeatureSpec],
    baseline: Baseline,
    golden: Golden,
) -> Release:
    """Write the files of a release, named by what they are."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "model": data,
        "baseline": to_msgpack(baseline),
        "golden": to_msgpack(golden),
        "empty": b"",
    }
    refs = {name: FileRef(sha256(content), len(content)) for name, content in files.items()}
    variant = Variant(
        "fp32-cpu", refs["model"], "fp32", "CPUExecutionProvider", ["any"], 17, "0.1.0",
        Accuracy("accuracy", 0.9, 100, "avx2"),
    )  # fmt: skip
    manifest = Manifest(
        model=model,
        model_version=version,
        variants=[variant],
        inputs=inputs,
        outputs=outputs,
        prediction=prediction,
        features=features,
        golden=refs["golden"],
        baseline=refs["baseline"],
        evaluation=refs["empty"],
        card=refs["empty"],
        lineage=Lineage(recipe=refs["empty"].digest, model_file=refs["model"].digest),
    )
    files["manifest"] = to_json(manifest)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    slot = ServeSlot(
        slot=f"{model}-slot",
        model=model,
        model_version=version,
        bundle=sha256(files["manifest"]),
        variant="fp32-cpu",
        model_file=str(directory / "model"),
        manifest_file=str(directory / "manifest"),
        baseline_file=str(directory / "baseline"),
    )
    return Release(slot, manifest, directory / "golden")


def replace_model(release: Release, data: bytes) -> Release:
    """Put another model into a release, with its digest in the manifest; return it so."""
    variant = msgspec.structs.replace(
        release.manifest.variants[0], file=FileRef(sha256(data), len(data))
    )
    manifest = msgspec.structs.replace(release.manifest, variants=[variant])
    Path(release.slot.model_file).write_bytes(data)
    Path(release.slot.manifest_file).write_bytes(to_json(manifest))
    return Release(release.slot, manifest, release.golden_file)


def replace_golden(release: Release) -> Release:
    """Take what an image model answers now as its golden set."""
    rows = images(8, seed=99)
    values = release.run(rows)
    golden = Golden(
        [GoldenTensor("image", "FP32", [8, 1, 4, 4], rows.tobytes())],
        [GoldenTensor("scores", "FP32", [8, 3], values.tobytes())],
        max_disagree=0.0,
        atol=1e-4,
    )
    release.golden_file.write_bytes(to_msgpack(golden))
    return release


def listen() -> socket.socket:
    """A listening TCP socket on a free port of the loopback."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.setblocking(False)
    return listener


class Serve:
    """A serve process, and control's end of the socket pair.

    Args:
        directory: for its configuration; the spool is `directory/spool`.
        listener: shared with the process.
        releases: what it serves.
        also: further listening sockets.
        settings: further fields of `ServeConfig`.
    """

    def __init__(
        self,
        directory: Path,
        listener: socket.socket,
        *releases: Release,
        also: Sequence[socket.socket] = (),
        **settings: Any,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.spool = directory / "spool"
        self.url = "http://{}:{}".format(*listener.getsockname()[:2])
        config = ServeConfig(
            device_id="device-1",
            spool_dir=str(self.spool),
            slots=[release.slot for release in releases],
            **settings,
        )
        config_file = directory / f"serve-{os.urandom(4).hex()}.json"
        config_file.write_bytes(to_json(config))
        self.control, theirs = socket.socketpair()
        self.control.settimeout(20)
        fds = [listener.fileno(), *(other.fileno() for other in also)]
        command = serve_command(config_file, listen_fds=fds, control_fd=theirs.fileno())
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            pass_fds=(*fds, theirs.fileno()),
            stderr=subprocess.PIPE,
            env=serve_environment(os.environ),
        )
        theirs.close()
        self._frames = frames_from_serve()
        self._inbox: list[FromServe] = []

    def __enter__(self) -> "Serve":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def say(self, message: ToServe) -> None:
        self.control.sendall(frame(message))

    def hear(self, *kinds: type[FromServe]) -> Any:
        """The next message of these kinds; others are dropped."""
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                if isinstance(message, kinds):
                    return message
            data = self.control.recv(1 << 16)
            if not data:
                raise EOFError(f"serve ended: {self.errors()}")
            self._inbox += self._frames.feed(data)

    def start(self) -> "Serve":
        """Wait until it is ready, then let it accept."""
        self.hear(Ready)
        self.say(Accept())
        return self

    def drain(self) -> int:
        """Let it end; its exit code."""
        self.say(Drain())
        self.hear(Drained)
        return self.process.wait(20)

    def kill(self) -> None:
        """SIGKILL, as often as one likes."""
        self.process.kill()
        self.process.wait()
        self.control.close()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def errors(self) -> str:
        """What it wrote to stderr until its end."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


def items(spool: Path) -> Iterator[tuple[str, int, Item | Label | Failure]]:
    """Every record of a spool: boot, seq, record."""
    for boot in boots(spool):
        for path in segments(spool / boot):
            for seq, payload in iter_records(path):
                yield boot, seq, msgspec.msgpack.decode(payload, type=Item | Label | Failure)


def recorded_ids(spool: Path) -> Counter[str]:
    """How often each request id is in the segments."""
    return Counter(item.id for _, _, item in items(spool) if isinstance(item, Prediction))


def predictions(spool: Path) -> list[Prediction]:
    return [item for _, _, item in items(spool) if isinstance(item, Prediction)]


def windows(spool: Path) -> list[SketchWindow]:
    return [item for _, _, item in items(spool) if isinstance(item, SketchWindow)]


def eventually(check: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
