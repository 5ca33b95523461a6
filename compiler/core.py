"""The model without its tokenizers: quantization takes numbers, and leaves operators for texts alone.

Forms are made of the core, on samples that its tokenizers turned into numbers once, and then get the
tokenizers back: every form has the same, node for node.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.passes import Graph, graph_of, parse
from compiler.ports import Arrays, Ports, count
from compiler.recipe import Recipe, Source
from compiler.runtime import open_session
from compiler.text_parity import tokenizer_alone
from compiler.texts import put_tokenizers, tokenizers_of

__all__ = ["Core", "make_core", "with_texts"]


@dataclass(frozen=True, slots=True)
class Core:
    """What quantization works on.

    Attributes:
        graph: the model that takes numbers.
        ports: its inputs.
        calibration: the calibration samples as it takes them.
        finish: puts the tokenizers before a form of it.
    """

    graph: Graph
    ports: Ports
    calibration: Arrays
    finish: Callable[[bytes], bytes]


def with_texts(core: Graph, recipe: Recipe, folder: Path) -> Graph:
    """Return a model with its recipe's tokenizers before it; as it is, where there are none.

    Args:
        core: that takes numbers.
        recipe: that names the tokenizers.
        folder: of the recipe.

    Raises:
        NotFoundError: a file of a tokenizer is not there.
        UsageError: a tokenizer does not fit the model, or onnxruntime-extensions is not there.
    """
    steps = tokenizers_of(recipe.preprocess)
    if not steps:
        return core
    model = parse(core.data)
    done = put_tokenizers(model, steps, folder)
    data = model.SerializeToString(deterministic=True)
    open_session(data)
    return graph_of(model, data, (*core.notes, *done))


def make_core(source: Source, core: Graph, graph: Graph, ports: Ports, samples: Arrays) -> Core:
    """Return the core of a model, and its calibration samples.

    Args:
        source: the recipe.
        core: that takes numbers.
        graph: the same with tokenizers; `core` itself, where there are none.
        ports: inputs of `graph`.
        samples: calibration samples as `graph` takes them.
    """
    if graph is core:
        return Core(core, ports, samples, lambda data: data)
    steps, inputs = tokenizers_of(source.recipe.preprocess), parse(core.data).graph.input
    # all in one call, so that they are of one length, unless the model fixes the batch
    step = ports.fixed or count(samples)
    whole = max(step, count(samples) // step * step)
    numbers = {name: values[:whole] for name, values in samples.items() if name not in steps}
    for name, wanted in steps.items():
        session = open_session(tokenizer_alone(name, wanted, source.folder, inputs))
        names = [port.name for port in session.get_outputs()]
        calls = []
        for start in range(0, whole, step):
            part = samples[name][start : start + step]
            calls.append(session.run(names, {name: part}))
        for place, fed in enumerate(names):
            numbers[fed] = np.concatenate([call[place] for call in calls])
    known = {spec.name for spec in core.inputs}
    notes = {name: note for name, note in source.recipe.inputs.items() if name in known}

    def finish(data: bytes) -> bytes:
        model = parse(data)
        put_tokenizers(model, steps, source.folder)
        result: bytes = model.SerializeToString(deterministic=True)
        return result

    return Core(core, Ports.of(core.inputs, notes), numbers, finish)
