"""Patches of real models: what they save, and that they make what they shall."""

import io
from random import Random

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.patch import make_patch
from compiler.tensor_spans import tensor_spans
from skerry.delta import apply_patch
from tests.fakes.models import graph

RNG = np.random.default_rng(1)


def model(**weights: np.ndarray) -> bytes:
    """A chain of products, one for each weight [k, k]."""
    nodes, last = [], "x"
    for name in weights:
        nodes.append(helper.make_node("MatMul", [last, name], [f"after_{name}"]))
        last = f"after_{name}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return bytes(graph(nodes, weights).SerializeToString())


def patched(old: bytes, patch: bytes) -> bytes:
    return b"".join(apply_patch(io.BytesIO(old), io.BytesIO(patch), limit_bytes=1 << 30))


def share(old: bytes, new: bytes) -> float:
    """How much of the new file its patch has; checks that it makes that file."""
    patch = make_patch(old, new)
    assert patch is not None
    assert patched(old, patch) == new
    return len(patch) / len(new)


BODY = RNG.normal(size=(300, 300)).astype(np.float32)
HEAD = RNG.normal(size=(300, 10)).astype(np.float32)


def test_spans_are_where_the_values_lie() -> None:
    data = model(body=BODY, head=HEAD)
    spans = tensor_spans(data)
    for tensor in onnx.load_from_string(data).graph.initializer:
        span = spans[tensor.name]
        assert data[span.start : span.end] == numpy_helper.to_array(tensor).tobytes()
        assert span.width == 4


def test_a_new_head_costs_little_more_than_the_head() -> None:
    new = model(body=BODY, head=HEAD + RNG.normal(size=HEAD.shape).astype(np.float32))
    assert share(model(body=BODY, head=HEAD), new) < 1.05 * HEAD.size / (BODY.size + HEAD.size)


def test_small_steps_in_floats_and_in_int8_cost_a_part_of_the_weights() -> None:
    step = (BODY * (1 + 1e-4 * RNG.normal(size=BODY.shape))).astype(np.float32)
    assert share(model(body=BODY), model(body=step)) < 0.6
    whole = np.clip(np.rint(BODY * 20), -127, 127).astype(np.int8)
    moved = (whole + (RNG.random(BODY.shape) < 0.05)).astype(np.int8)
    assert share(model(body=whole), model(body=moved)) < 0.08


def test_a_graph_with_more_in_it_still_shares_the_tensors() -> None:
    new = model(first=RNG.normal(size=(8, 8)).astype(np.float32), body=BODY, head=HEAD)
    assert share(model(body=BODY, head=HEAD), new) < 0.01


def test_a_tensor_under_another_name_is_found_by_its_bytes() -> None:
    assert share(model(body=BODY, head=HEAD), model(trunk=BODY, top=HEAD)) < 0.01


def test_weights_that_have_nothing_in_common_have_no_patch() -> None:
    other = RNG.normal(size=BODY.shape).astype(np.float32)
    assert make_patch(model(body=BODY), model(body=other)) is None


def test_files_of_any_kind_have_patches() -> None:
    data = RNG.bytes(500_000)
    assert share(data, data) < 0.001
    assert share(data, data[:100_001] + b"new" + data[100_005:]) < 0.001
    assert share(data, data[250_000:] + data[:250_000]) < 0.001
    assert share(b"", bytes(100_000)) < 0.01
    assert share(b"short", b"other" + bytes(9000)) < 0.1
    assert make_patch(data, RNG.bytes(1000)) is None
    assert make_patch(data, b"") is None


def test_patches_are_the_same_every_time() -> None:
    one, two = model(body=BODY), model(body=BODY * np.float32(1.001))
    assert make_patch(one, two) == make_patch(one, two)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happened_to_a_file_its_patch_makes_it(seed: int) -> None:
    """Pieces cut, moved, repeated and overwritten, in models and in plain bytes."""
    rng = Random(seed)
    old = model(body=BODY[:40, :40], head=HEAD[:40]) if seed % 2 else rng.randbytes(5000)
    new = bytearray(old)
    for _ in range(rng.randrange(1, 6)):
        at, to = sorted(rng.randrange(len(new) + 1) for _ in range(2))
        act = rng.randrange(4)
        if act == 0 and to - at < len(new) // 2:
            del new[at:to]
        elif act == 1:
            new[at:at] = rng.randbytes(rng.randrange(60))
        elif act == 2:
            new[to:to] = new[at : at + 900]
        elif new:
            new[at : at + 3] = rng.randbytes(3)
    patch = make_patch(old, bytes(new))
    if patch is not None:
        assert patched(old, patch) == bytes(new)
