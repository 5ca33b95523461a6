"""Nodes and weights of one input's steps, collected to be put before a model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["Nodes"]


class Nodes:
    """Collects the nodes and weights of one input's steps.

    Args:
        name: of the raw input; names of nodes and tensors begin with it.
        outputs: what the steps give -> the tensor's name.
    """

    def __init__(self, name: str, outputs: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.outputs = dict(outputs or {})
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._count = 0

    def weight(self, values: Any, dtype: Any) -> str:
        """Add a constant and return its name; `object` is the type of texts."""
        name = self._name("c")
        array = np.asarray(values, dtype)
        if array.dtype.kind == "O":
            texts = [text.encode() for text in array.ravel().tolist()]
            kind = onnx.TensorProto.STRING
            self.weights.append(helper.make_tensor(name, kind, array.shape, texts))
        else:
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node and return its output's name."""
        return self.several(kind, inputs, [output or self._name("t")], **attributes)[0]

    def several(
        self, kind: str, inputs: list[str], outputs: list[str] | int, **attributes: Any
    ) -> list[str]:
        """Add a node of several outputs, or a number of them, and return their names."""
        if isinstance(outputs, int):
            outputs = [self._name("t") for _ in range(outputs)]
        name = f"{self._name('')}{kind}"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self.name}__{kind}{self._count}"
