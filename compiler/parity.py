"""Parity: the graph's preprocessing against the function that training uses, as a gate.

Training-serving skew is two pieces of code that were meant to do the same. So the steps in
the graph are run against the recipe's `reference` on real samples and on a corpus of odd ones: the
smallest, flat and extreme, odd sizes, silence, clipping. One difference fails the build.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.data import entry_point
from compiler.ports import Arrays
from compiler.preprocess import build_step
from compiler.recipe import Preprocess, Source
from compiler.runtime import open_session
from skerry.errors import GateError, UsageError

__all__ = ["check_parity", "corpus", "steps_alone"]

REAL: Final = 16  # samples of the evaluation data
SIZES: Final = ((1, 1), (2, 3), (7, 5), (31, 33), (64, 48), (127, 200), (480, 640))


def check_parity(source: Source, samples: Arrays) -> None:
    """Refuse steps that do another thing than training did.

    Args:
        source: the recipe.
        samples: raw evaluation samples, by input.

    Raises:
        GateError: they differ by more than `max_difference`; the message names the sample.
        UsageError: the reference raised, or gives another shape.
    """
    for name, steps in source.recipe.preprocess.items():
        if not steps.reference or steps.kind == "tokenizer":  # `compiler.text_parity`
            continue
        function = entry_point(steps.reference, source.folder)
        session = open_session(steps_alone(name, steps, samples[name].shape))
        for told, raw in corpus(steps, samples[name]):
            mine: NDArray[Any] = session.run(None, {name: raw})[0]
            try:
                theirs = np.asarray(function(raw.copy()))
            except Exception as error:  # the publisher's own code may raise anything
                raise UsageError(
                    f"{steps.reference} raised {type(error).__name__} on {told}: {error}"
                ) from error
            if theirs.shape != mine.shape:
                raise UsageError(
                    f"preprocess.{name}: on {told} the graph gives {list(mine.shape)}, "
                    f"{steps.reference} gives {list(theirs.shape)}"
                )
            worst = float(np.abs(mine.astype(np.float64) - theirs).max()) if mine.size else 0.0
            if not worst <= steps.max_difference:  # NaN differs
                raise GateError(
                    f"preprocess.{name} differs from {steps.reference} by {worst:.4g} on {told}, "
                    f"more than max_difference {steps.max_difference:g}: what devices would do is "
                    "not what training did. Make the steps the same, or allow the difference "
                    "knowingly"
                )


def corpus(steps: Preprocess, samples: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield what parity is tried on, with its name: real samples, then odd ones."""
    yield f"{min(REAL, len(samples))} real samples", samples[:REAL]
    rng = np.random.default_rng(0)
    if steps.kind == "image":
        channels = samples.shape[3]
        for height, width in SIZES:
            image = rng.integers(0, 256, (1, height, width, channels)).astype(np.uint8)
            yield f"noise of {height} x {width}", image
        for value in (0, 255):
            yield f"a flat image of {value}", np.full((1, 40, 30, channels), value, np.uint8)
    elif steps.kind == "mel":
        for count in (steps.window, steps.window + 1, 3 * steps.rate // 2):
            yield f"noise of {count} samples", rng.normal(0, 0.3, (1, count)).astype(np.float32)
        yield "silence", np.zeros((1, 2 * steps.window), np.float32)
        clipped = np.clip(rng.normal(0, 9, (1, 4 * steps.window)), -1, 1).astype(np.float32)
        yield "clipped sound", clipped
    else:
        few = samples[:1].astype(np.float32)
        for told, number in (("zeros", 0.0), ("large numbers", 1e6), ("negative ones", -1e3)):
            yield told, np.full_like(few, number)


def steps_alone(name: str, steps: Preprocess, shape: tuple[int, ...]) -> bytes:
    """Return a model of the steps and nothing else, for raw samples of this shape's rank."""
    open_axes = [-1] * {"image": 4, "mel": 3}.get(steps.kind, len(shape))
    if steps.kind == "image":
        open_axes[1 if steps.layout == "nchw" else 3] = shape[3]
    raw, graph = build_step(name, "prepared", steps, open_axes)
    dims = [f"p{place}" for place in range(len(open_axes))]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "steps",
            [raw],
            [helper.make_tensor_value_info("prepared", TensorProto.FLOAT, dims)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 8
    onnx.checker.check_model(model)
    result: bytes = model.SerializeToString()
    return result
