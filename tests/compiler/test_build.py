"""A build gives a bundle that says what it is, the same one every time, or a clear refusal."""

import io
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from compiler.build import Built, build
from compiler.lock import Choice, Lock, lock_bytes, read_lock
from compiler.ports import Ports
from compiler.recipe import read_recipe
from compiler.runtime import open_session, run_samples
from skerry.bundle import Bundle, read_bundle
from skerry.canonical import from_json, from_msgpack, sha256
from skerry.errors import GateError, RefusedError, SkerryError, UsageError
from skerry.manifest import Baseline, Evaluation, Golden
from skerry.onnx_outline import DEVICE, check_outline
from skerry.profile import DeviceProfile
from tests.compiler.conftest import NOW
from tests.fakes.models import Task, graph, linear, write_recipe

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"


def make(path: Path, *, profile: DeviceProfile | None = None, lock: Lock | None = None) -> Built:
    return build(read_recipe(path), now=NOW, profile=profile, lock=lock)


def opened(built: Built) -> Bundle:
    return read_bundle(io.BytesIO(built.bundle))


# --- what is in a bundle ---------------------------------------------------------------


def test_the_chosen_variant_comes_first_and_fp32_last(built: Built) -> None:
    assert [v.id for v in built.manifest.variants] == ["int8-cpu", "fp32-cpu"]
    assert all(v.hw_classes == ["any"] for v in built.manifest.variants)
    int8, fp32 = built.manifest.variants
    assert int8.file.size_bytes < 0.4 * fp32.file.size_bytes
    assert int8.accuracy.value > 0.95


def test_the_bundle_is_named_by_its_digest_and_holds_every_file(built: Built) -> None:
    bundle, manifest = opened(built), built.manifest
    assert bundle.digest == built.digest
    assert bundle.manifest == manifest
    files = [manifest.golden, manifest.baseline, manifest.evaluation, manifest.card]
    for file in (*files, *(v.file for v in manifest.variants)):
        assert len(bundle.blobs[file.digest]) == file.size_bytes


def test_fp32_is_the_model_as_it_was_given(built: Built, recipe_path: Path) -> None:
    given = (recipe_path.parent / "model.onnx").read_bytes()
    assert built.manifest.variants[-1].file.digest == sha256(given)
    assert built.manifest.lineage.model_file == sha256(given)


def test_every_variant_answers_the_golden_set_as_promised(built: Built) -> None:
    bundle = opened(built)
    golden = from_msgpack(bundle.blobs[built.manifest.golden.digest], Golden, limit=1 << 20)
    x, wanted = golden.inputs[0], golden.outputs[0]
    rows = np.frombuffer(x.data, "<f4").reshape(x.shape)
    expected = np.frombuffer(wanted.data, "<f4").reshape(wanted.shape)
    ports = Ports.of(built.manifest.inputs)
    for variant in built.manifest.variants:
        got = run_samples(open_session(bundle.blobs[variant.file.digest]), ports, {"image": rows})[
            "y"
        ]
        assert np.abs(got - expected).max() <= golden.atol
        differ = (got.argmax(axis=1) != expected.argmax(axis=1)).mean()
        assert differ <= golden.max_disagree
    assert built.manifest.golden.size_bytes <= 256 * 1024


def test_the_baseline_counts_every_row(built: Built) -> None:
    data = opened(built).blobs[built.manifest.baseline.digest]
    baseline = from_msgpack(data, Baseline)
    assert baseline.n == 160
    assert set(baseline.columns) == {"level", "prediction", "confidence", "latency_us"}


def test_the_report_tells_of_every_candidate(built: Built) -> None:
    data = opened(built).blobs[built.manifest.evaluation.digest]
    report = from_json(data, Evaluation)
    assert [(c.precision, c.chosen) for c in report.candidates] == [
        ("int8", True), ("fp32", False),
    ]  # fmt: skip
    assert report.n == 240
    assert all(c.reason for c in report.candidates)


def test_the_card_has_front_matter_and_the_recipes_words(built: Built) -> None:
    card = opened(built).blobs[built.manifest.card.digest].decode()
    assert card.startswith("---\nlibrary_name: ")
    assert "# shapes 1.0.0" in card
    assert "For tests." in card
    assert "| int8 |" in card


def test_no_timing_and_no_path_is_in_a_bundle(built: Built, recipe_path: Path) -> None:
    latency = built.record.variants[0].latency_us
    assert latency is not None
    assert str(latency).encode() not in built.bundle
    assert str(recipe_path.parent).encode() not in built.bundle
    assert b"2026-11-23" not in built.bundle


def test_the_record_tells_timings_host_and_tools(built: Built) -> None:
    record = built.record
    int8, fp32 = record.variants
    assert int8.latency_interval is not None
    assert int8.latency_ratio is not None
    assert int8.latency_interval[0] <= int8.latency_ratio <= int8.latency_interval[1]
    assert (int8.verdict, fp32.latency_ratio, fp32.shipped) == ("faster", 1.0, True)
    assert record.bundle == built.digest
    assert record.host.hw_class.startswith(record.host.platform)
    assert record.tools.onnxruntime


# --- refusals --------------------------------------------------------------------------


def test_int8_that_loses_too_much_is_refused_and_fp32_ships(
    scales_task: Task, tmp_path: Path
) -> None:
    made = make(write_recipe(tmp_path, scales_task, min_value=0.0))
    assert [v.precision for v in made.manifest.variants] == ["fp32"]
    int8, fp32 = made.record.variants
    assert "more than max_drop 0.0200" in int8.reason
    assert not int8.shipped
    assert fp32.chosen


def test_int8_below_the_least_value_is_refused(scales_task: Task, tmp_path: Path) -> None:
    made = make(write_recipe(tmp_path, scales_task, min_value=0.9, max_drop=1.0))
    assert "expected accuracy of at least 0.9000" in made.record.variants[0].reason
    assert made.record.variants[1].chosen


def test_int8_that_is_slower_is_refused_and_fp32_ships(shapes_task: Task, tmp_path: Path) -> None:
    made = make(write_recipe(tmp_path, shapes_task, max_latency_ratio=0.001))
    int8, fp32 = made.record.variants
    assert int8.verdict == "slower"
    assert "takes more than 0.001 of fp32's CPU time" in int8.reason
    assert fp32.chosen


def test_undecided_ships_fp32_and_is_no_failure(
    built: Built, recipe_path: Path, shapes_task: Task, tmp_path: Path
) -> None:
    undecided = msgspec.structs.replace(
        built.lock, choices=[Choice("int8", "undecided", shipped=True)]
    )
    made = make(recipe_path, lock=undecided)
    int8, fp32 = made.record.variants
    assert "is not proven" in int8.reason
    assert fp32.chosen
    assert [v.precision for v in made.manifest.variants] == ["fp32"]


def test_speed_is_undecided_where_the_profile_is_of_another_platform(recipe_path: Path) -> None:
    profile = DeviceProfile("mips", "linux-mips64", ["CPUExecutionProvider"], [], 256)
    made = make(recipe_path, profile=profile)
    assert made.record.variants[0].verdict == "undecided"
    assert made.record.profile == "mips"
    assert any("another platform" in note for note in made.record.notes)


def test_a_profile_without_the_cpu_is_refused(recipe_path: Path) -> None:
    profile = DeviceProfile("npu", "linux-aarch64", ["QNNExecutionProvider"], [], 256)
    with pytest.raises(UsageError, match="profile npu"):
        make(recipe_path, profile=profile)


def test_fp32_below_the_gate_fails_the_build(shapes_task: Task, tmp_path: Path) -> None:
    shuffled = dict(shapes_task.sets)
    rows, labels = shuffled["evaluation"]
    shuffled["evaluation"] = (rows, (labels + 1) % 4)
    task = Task(shapes_task.model, shapes_task.input, shapes_task.output, shuffled)
    with pytest.raises(GateError, match=r"at least 0\.9000 .* got 0\.0") as failed:
        make(write_recipe(tmp_path, task, min_value=0.9))
    assert failed.value.exit_code == 6


def test_a_model_that_cannot_be_quantized_ships_as_it_is(scales_task: Task, tmp_path: Path) -> None:
    model = graph([onnx.helper.make_node("Softmax", ["x"], ["y"], axis=1)], {})
    rows = {name: (x / 10_000, y * 0 + 1) for name, (x, y) in scales_task.sets.items()}
    made = make(write_recipe(tmp_path, Task(model, "x", "y", rows), min_value=0.0))
    int8, fp32 = made.record.variants
    assert "nothing in the model" in int8.reason
    assert (int8.bytes, int8.accuracy, fp32.chosen) == (0, None, True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('input = "image"', 'input = "picture"', "expected an array 'picture'"),
        ('output = "y"', 'output = "z"', "expected an output 'z'"),
        ('label = "label"', 'label = "truth"', "expected labels for accuracy"),
        ('"evaluation.npz"', '"calibration.npz"', "evaluation data of its own"),
        ("[features]", '[classes]\nnames = ["a", "b"]\n[features]', "expected 4 different names"),
        ('"mean"', '"image.sharpness"', ""),
    ],
)
def test_recipe_data_and_model_must_fit_together(
    recipe_path: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    for file in recipe_path.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = recipe_path.read_text()
    assert old in text
    (tmp_path / "recipe.toml").write_text(text.replace(old, new))
    if not message:
        assert make(tmp_path / "recipe.toml").manifest.features[0].kind == "image.sharpness"
        return
    with pytest.raises(UsageError, match=message):
        make(tmp_path / "recipe.toml")


def test_rows_of_another_shape_are_named(shapes_task: Task, tmp_path: Path) -> None:
    sets = {name: (x[:, :, :8], y) for name, (x, y) in shapes_task.sets.items()}
    task = Task(shapes_task.model, shapes_task.input, shapes_task.output, sets)
    with pytest.raises(UsageError, match=r"expected samples of float32 \[1, 16, 16\]"):
        make(write_recipe(tmp_path, task))


def test_a_fixed_batch_is_filled_up(scales_task: Task, tmp_path: Path) -> None:
    model = linear(np.array([[-4.0, 4.0], [0.0, 0.0]]))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 7
    made = make(write_recipe(tmp_path, Task(model, "x", "y", scales_task.sets)))
    assert made.manifest.inputs[0].shape == [7, 2]
    assert made.record.variants[-1].accuracy == 1.0


def test_an_old_model_is_raised_and_its_bundle_says_so(scales_task: Task, tmp_path: Path) -> None:
    model = linear(np.array([[-4.0, 4.0], [0.0, 0.0]]), opset=12)
    made = make(write_recipe(tmp_path, Task(model, "x", "y", scales_task.sets)))
    assert made.manifest.variants[-1].opset == 17
    assert "opset 12 raised to 17" in made.record.notes


def test_a_model_with_a_hole_is_refused(scales_task: Task, tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph([node], {"w": np.full((2, 2), np.nan, np.float32)})
    with pytest.raises(RefusedError, match="NaN or infinity"):
        make(write_recipe(tmp_path, Task(model, "x", "y", scales_task.sets)))


# --- the same bytes again --------------------------------------------------------------


def test_two_builds_with_one_lock_are_equal_wherever_they_run(
    built: Built, shapes_task: Task, tmp_path: Path
) -> None:
    one, other = (write_recipe(tmp_path / name, shapes_task) for name in ("one", "other/deep"))
    first, second = (make(path, lock=built.lock) for path in (one, other))
    assert first.digest == second.digest == built.digest
    assert first.bundle == second.bundle
    assert first.lock == built.lock


def test_the_locks_verdict_holds_whatever_is_measured(built: Built, recipe_path: Path) -> None:
    slower = msgspec.structs.replace(built.lock, choices=[Choice("int8", "slower", shipped=True)])
    assert [v.precision for v in make(recipe_path, lock=slower).manifest.variants] == ["fp32"]


def test_a_lock_from_another_cpu_keeps_its_bytes_where_the_numbers_agree(
    built: Built, recipe_path: Path
) -> None:
    moved = msgspec.structs.replace(built.lock, hw_class="linux-riscv64", bundle="?")
    first = make(recipe_path, lock=moved)
    assert any(note.startswith("differs from the lock's bundle ?") for note in first.record.notes)
    assert first.digest == built.digest  # it says where it was measured: here


def test_a_lock_of_other_inputs_is_refused(built: Built, shapes_task: Task, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, shapes_task, max_drop=0.5)
    with pytest.raises(UsageError, match="made for other inputs: recipe changed"):
        make(path, lock=built.lock)


def test_a_lock_comes_back_from_its_file(built: Built, tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_bytes(lock_bytes(built.lock))
    assert read_lock(tmp_path / "a.lock") == built.lock


@pytest.mark.parametrize("data", [b"", b"{}", b"[lock]"])
def test_other_bytes_are_no_lock(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.lock").write_bytes(data)
    with pytest.raises(SkerryError):
        read_lock(tmp_path / "a.lock")


# --- the demo's digits -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "first"), [("1.0.0", "fp32"), ("1.1.0", "int8"), ("1.2.0", "int8")]
)
def test_the_digits_build(version: str, first: str) -> None:
    made = make(DIGITS / f"reader-{version}.toml")
    assert made.manifest.variants[0].precision == first
    assert made.record.variants[-1].precision == "fp32"
    assert made.manifest.variants[0].accuracy.value > 0.8


def test_a_device_takes_every_variant_that_a_build_gives(built: Built) -> None:
    bundle = read_bundle(io.BytesIO(built.bundle))
    for variant in built.manifest.variants:
        check_outline(bundle.blobs[variant.file.digest], DEVICE)
