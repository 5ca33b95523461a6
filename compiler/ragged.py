"""Words of texts, in one line behind each other, as the tensors that a language model takes.

Whatever split the texts, what follows is the same plain ONNX: cut each text to a length, put
the words around it that the model was trained with, fill the short ones, and say where words
are and where filling is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.nodes import Nodes

__all__ = ["Frame", "lay_out"]


@dataclass(frozen=True, slots=True)
class Frame:
    """How words of a text become a row.

    Attributes:
        begin: numbers of the words before every text; `end` of those behind it.
        padding: number of the word that fills.
        max_length: words of a row at most.
        width: words of every row; None for those of the longest text, at least one.
    """

    begin: Sequence[int]
    end: Sequence[int]
    padding: int
    max_length: int
    width: int | None = None

    @property
    def room(self) -> int:
        """Words of the text itself at most."""
        return self.max_length - len(self.begin) - len(self.end)


def lay_out(
    graph: Nodes, words: str, starts: str, lengths: str, frame: Frame, outputs: Mapping[str, int]
) -> None:
    """Add the nodes that make rows of words.

    Args:
        graph: that they are added to.
        words: int64 [k], all texts' words; others may stand between two texts.
        starts: int64 [n], the place of each text's first word.
        lengths: int64 [n], how many words each text has.
        frame: how rows are made.
        outputs: ``ids``, ``mask``, ``types`` with the tensor type that the model wants; each becomes
            a tensor of the name that `Nodes.outputs` gives it.
    """
    first, last = len(frame.begin), len(frame.end)
    integers = np.int64
    cut = graph.node("Min", [lengths, graph.weight(frame.room, integers)])
    full = graph.node("Add", [cut, graph.weight(first + last, integers)])
    full = graph.node("Unsqueeze", [full, graph.weight([1], integers)])  # [n, 1]
    if frame.width is None:
        width = graph.node("ReduceMax", [full], keepdims=0)
        width = graph.node("Max", [width, graph.weight(1, integers)])  # no model takes none
    else:
        width = graph.weight(frame.width, integers)
    zero, one = graph.weight(0, integers), graph.weight(1, integers)
    places = graph.node("Range", [zero, width, one])  # [width]
    own = graph.node("Sub", [places, graph.weight(first, integers)])
    cut = graph.node("Unsqueeze", [cut, graph.weight([1], integers)])
    inside = graph.node("And", [
        graph.node("GreaterOrEqual", [own, zero]), graph.node("Less", [own, cut])
    ])  # fmt: skip
    begins = graph.node("Unsqueeze", [starts, graph.weight([1], integers)])
    # one word more behind the last: a batch without any word has something to take
    filled = graph.node("Concat", [words, graph.weight([frame.padding], integers)], axis=0)
    picked = graph.node("Where", [inside, graph.node("Add", [begins, own]), zero])
    ids = graph.node(
        "Where",
        [inside, graph.node("Gather", [filled, picked]), graph.weight(frame.padding, integers)],
    )
    for place, word in enumerate(frame.begin):
        at = graph.node("Equal", [places, graph.weight(place, integers)])
        ids = graph.node("Where", [at, graph.weight(word, integers), ids])
    for place, word in enumerate(frame.end):
        at = graph.node("Equal", [own, graph.node("Add", [cut, graph.weight(place, integers)])])
        ids = graph.node("Where", [at, graph.weight(word, integers), ids])
    mask = graph.node("Less", [places, full])
    types = graph.node("Mul", [ids, zero])
    for kind, value in (("ids", ids), ("mask", mask), ("types", types)):
        if kind in outputs:
            graph.node("Cast", [value], graph.outputs[kind], to=outputs[kind])
