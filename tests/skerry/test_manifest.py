"""A manifest has one byte string, and says nothing that is not of its form."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.canonical import from_json, from_msgpack, to_json, to_msgpack
from skerry.errors import FormatError
from skerry.manifest import (
    Baseline,
    BaselineColumn,
    CandidateReport,
    Evaluation,
    Golden,
    GoldenTensor,
    Manifest,
    TensorSpec,
)
from skerry.profile import MAX_OPSETS, Inventory, incompatibility
from skerry.sketch import CategoricalCounts, CategoricalSpec, NumericCounts, NumericSpec
from tests.fakes.manifests import tiny_manifest

LAYERS = {n: n.encode() for n in (
    "model.onnx", "golden.msgpack", "baseline.msgpack", "evaluation.json", "card.md",
)}  # fmt: skip
MANIFEST = tiny_manifest(LAYERS)

words = st.text(min_size=1, max_size=12)
shapes = st.lists(st.integers(-1, 4096), max_size=5)
specs = st.builds(
    TensorSpec, name=words, datatype=st.sampled_from(["FP32", "INT64", "BYTES"]), shape=shapes,
    range=st.none() | st.tuples(st.floats(0, 1), st.floats(1, 2)),
    class_names=st.lists(words, max_size=4),
)  # fmt: skip
tensors = st.builds(GoldenTensor, words, st.just("FP32"), shapes, st.binary(max_size=64))


@given(st.lists(specs, max_size=3), st.lists(specs, max_size=3))
def test_a_manifest_comes_back_from_its_bytes(
    inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    manifest = msgspec.structs.replace(MANIFEST, inputs=inputs, outputs=outputs)
    data = to_json(manifest)
    assert from_json(data, Manifest) == manifest
    assert to_json(from_json(data, Manifest)) == data


def test_its_keys_are_sorted_and_nothing_is_spaced() -> None:
    data = to_json(MANIFEST)
    assert (
        data
        == json.dumps(
            json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
    )


@given(st.lists(tensors, max_size=3), st.floats(0, 1), st.floats(0, 10))
def test_a_golden_set_comes_back_from_its_bytes(
    found: list[GoldenTensor], share: float, atol: float
) -> None:
    golden = Golden(found, found, share, atol)
    assert from_msgpack(to_msgpack(golden), Golden) == golden


def test_a_baseline_and_a_report_come_back_from_their_bytes() -> None:
    baseline = Baseline(
        {
            "level": BaselineColumn(NumericSpec([0.0, 1.0]), NumericCounts(2, [2])),
            "prediction": BaselineColumn(CategoricalSpec(["a"]), CategoricalCounts(2, [2])),
        },
        n=2,
    )
    assert from_msgpack(to_msgpack(baseline), Baseline) == baseline
    report = Evaluation("accuracy", 9, 0.9, [CandidateReport("int8", 5, None, False, "why")])
    assert from_json(to_json(report), Evaluation) == report


def test_a_newer_manifest_is_read_by_an_older_program() -> None:
    newer = json.loads(to_json(MANIFEST)) | {"from_the_future": {"a": 1}}
    assert from_json(json.dumps(newer).encode(), Manifest) == MANIFEST


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model_version", 1),
        ("variants", {}),
        ("variants", [{}]),
        ("golden", {"digest": "sha256:0", "size_bytes": 1, "path": "/etc/passwd"}),
        ("golden", "sha256:0"),
        ("inputs", [{"name": "x", "datatype": "FP32", "shape": ["n"]}]),
        ("prediction", {"output": "y", "kind": "guess"}),
    ],
)
def test_a_field_of_another_form_is_refused(key: str, value: object) -> None:
    wrong = json.loads(to_json(MANIFEST)) | {key: value}
    with pytest.raises(FormatError):
        from_json(json.dumps(wrong).encode(), Manifest)


@pytest.mark.parametrize("key", ["model", "variants", "golden", "baseline", "lineage"])
def test_a_missing_field_is_refused(key: str) -> None:
    wrong = json.loads(to_json(MANIFEST))
    del wrong[key]
    with pytest.raises(FormatError, match=key):
        from_json(json.dumps(wrong).encode(), Manifest)


def test_a_precision_that_nobody_knows_is_refused() -> None:
    data = to_json(MANIFEST).replace(b'"fp32"', b'"fp12"')
    with pytest.raises(FormatError, match="fp12"):
        from_json(data, Manifest)


@pytest.mark.parametrize(
    ("inventory", "agent", "reason"),
    [
        (Inventory(providers=["CPUExecutionProvider"]), (0, 1, 0), None),
        (Inventory(providers=["CPUExecutionProvider"]), (0, 0, 9), "needs agent 0.1.0 or newer"),
        (Inventory(), (0, 1, 0), "needs CPUExecutionProvider; this device has none"),
    ],
)
def test_whether_a_variant_runs_is_told_with_the_reason(
    inventory: Inventory, agent: tuple[int, ...], reason: str | None
) -> None:
    assert incompatibility(MANIFEST.variants[0], inventory, agent) == reason


@pytest.mark.parametrize(
    ("onnxruntime", "opset", "fits"),
    [("1.32.0", 28, True), ("1.32.0", 29, False), ("1.30.1", 29, False), ("2.0.0", 99, True),
     ("", 99, True), ("nightly", 99, True)],
)  # fmt: skip
def test_a_variant_of_a_higher_opset_is_passed_over(
    onnxruntime: str, opset: int, fits: bool
) -> None:
    variant = msgspec.structs.replace(MANIFEST.variants[0], opset=opset, hw_classes=["any"])
    inventory = Inventory(providers=[variant.provider], onnxruntime=onnxruntime)
    reason = incompatibility(variant, inventory, (9, 9, 9))
    assert (reason is None) is fits
    assert fits or f"needs opset {opset}" in str(reason)


def test_the_highest_opset_is_what_onnxruntime_says() -> None:
    helper = pytest.importorskip("onnx").helper
    runtime = pytest.importorskip("onnxruntime")
    release = tuple(int(part) for part in runtime.__version__.split(".")[:2])
    if release not in MAX_OPSETS:
        pytest.skip(f"onnxruntime {runtime.__version__} is newer than the table")
    for opset, good in ((MAX_OPSETS[release], True), (MAX_OPSETS[release] + 1, False)):
        x, y = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 9
        if good:
            runtime.InferenceSession(model.SerializeToString())
        else:
            with pytest.raises(Exception, match=f"till opset {MAX_OPSETS[release]}"):
                runtime.InferenceSession(model.SerializeToString())
