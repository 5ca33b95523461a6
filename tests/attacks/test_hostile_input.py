"""Models that attack who reads them. Rows 37 to 40 of the attack table."""

import io
import os
import random
import time
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
from onnx import helper

from agent.config import AgentConfig
from agent.installer import Installer
from agent.runtime import Model
from agent.smoke import smoke
from compiler import passes
from compiler.trial import try_model
from skerry.bundle import write_bundle
from skerry.errors import FormatError, RefusedError
from skerry.io.extensions import extensions_library
from skerry.onnx_outline import DEVICE, DEVICE_TEXTS, EXTENSIONS, check_outline
from tests.attacks.harness import OLD, Outcome, Site, committed
from tests.fakes.hostile import (
    EXTERNAL_PLACES,
    endless,
    external,
    good,
    huge_result,
    wrapped,
    write_weights,
)
from tests.fakes.serving import Release, linear_release, replace_model

ROOT = Path(__file__).resolve().parents[2]


def imported(folder: Path, data: bytes) -> passes.Graph:
    """Import a model as the compiler does."""
    file = folder / "m.onnx"
    file.write_bytes(data)
    return passes.load_graph(file)


def smoked(folder: Path, data: bytes) -> str:
    """Run a model on a device, as part of a signed release; the code of what came of it."""
    release = linear_release(folder / "release")
    replace_model(release, data)
    slot = release.slot
    files = (Path(slot.model_file), Path(slot.manifest_file), release.golden_file)
    return smoke(*files, slot.variant).code


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises((RefusedError, FormatError)) as refused:
        act()
    assert len(str(refused.value)) > 20
    return refused.value.code


# --- row 37: external data ---------------------------------------------------------------


def test_row_37_a_model_in_one_file_is_accepted(tmp_path: Path) -> None:
    data = good().SerializeToString()
    assert imported(tmp_path, data).data == data
    assert smoked(tmp_path, data) == "ok"


@pytest.mark.parametrize("kind", ["beside", "dots", "absolute", "symlink", "hardlink", "address"])
def test_row_37_external_data_by_any_path_or_link(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.bin"
    write_weights(secret)
    folder = tmp_path / "in"
    (folder / "release").mkdir(parents=True)
    for place in (folder, folder / "release"):
        if kind == "symlink":
            (place / "weights.bin").symlink_to(secret)
        elif kind == "hardlink":
            os.link(secret, place / "weights.bin")
        elif kind == "beside":
            write_weights(place / "weights.bin")
    location = {
        "dots": "../secret.bin", "absolute": str(secret), "address": "*/_ORT_MEM_ADDR_/*",
    }.get(kind, "weights.bin")  # fmt: skip
    data = external(location).SerializeToString()
    assert refusal(lambda: imported(folder, data)) == "external_data"
    assert smoked(folder, data) == "external_data"


@pytest.mark.parametrize("place", EXTERNAL_PLACES)
def test_row_37_external_data_in_any_place(tmp_path: Path, place: str) -> None:
    data = wrapped(place).SerializeToString()
    assert refusal(lambda: imported(tmp_path, data)) == "external_data"


@pytest.mark.parametrize(
    "location", [b"\x70\x01", b"\x70\x02", b"\x70\x81\x80\x80\x80\x10", b"\x75aaaa"]
)
def test_row_37_a_data_location_said_in_another_way(location: bytes) -> None:
    model = good()
    tensor = model.graph.initializer[0].SerializeToString()
    data = model.SerializeToString()
    grown = tensor + location
    graph = model.graph.SerializeToString().replace(
        b"\x2a" + _varint(len(tensor)) + tensor, b"\x2a" + _varint(len(grown)) + grown
    )
    outer = data.replace(model.graph.SerializeToString(), b"")
    head = outer[: outer.rindex(b"\x3a")]
    tail = outer[len(head) + 1 + len(_varint(len(model.graph.SerializeToString()))) :]
    spoilt = head + b"\x3a" + _varint(len(graph)) + graph + tail
    check_outline(data)
    assert refusal(lambda: check_outline(spoilt)) == "external_data"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


# --- row 38: operators from elsewhere ------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "operator"),
    [("evil.example", "Shell"), ("com.microsoft", "ExecuteAnything"), ("ai.onnx.training", "Adam"),
     ("com.microsoft.nchwc", "Conv"), ("ai.onnx\x00", "Relu"), ("AI.ONNX", "Relu")],
)  # fmt: skip
def test_row_38_an_operator_of_a_foreign_domain(tmp_path: Path, domain: str, operator: str) -> None:
    model = good()
    model.graph.node.append(helper.make_node(operator, ["flat"], ["unused"], domain=domain))
    data = model.SerializeToString()
    assert refusal(lambda: imported(tmp_path, data)) == "foreign_domain"
    assert smoked(tmp_path, data) == "foreign_domain"


def test_row_38_a_domain_that_is_only_declared(tmp_path: Path) -> None:
    model = good()
    model.opset_import.append(helper.make_opsetid("evil.example", 1))
    assert refusal(lambda: imported(tmp_path, model.SerializeToString())) == "foreign_domain"


def test_row_38_standard_operators_and_those_of_the_quantizer_are_accepted(tmp_path: Path) -> None:
    model = good()
    model.graph.node.append(helper.make_node("Relu", ["flat"], ["unused"]))
    assert imported(tmp_path, model.SerializeToString()).opset == 17
    model.graph.node.append(helper.make_node("QLinearAdd", ["a"], ["b"], domain="com.microsoft"))
    check_outline(model.SerializeToString(), DEVICE)


def test_row_38_no_program_loads_libraries_of_operators_but_the_installed_one() -> None:
    sources = [
        p for name in ("agent", "compiler", "fleet", "skerry") for p in (ROOT / name).rglob("*.py")
    ]
    assert len(sources) > 100
    loading = [p for p in sources if "register_custom_ops" in p.read_text()]
    assert loading == [ROOT / "skerry" / "io" / "extensions.py"]
    # its path is that of the installed package, and nothing that a bundle says
    assert not signature(extensions_library).parameters
    assert Path(extensions_library() or "").parent.name == "onnxruntime_extensions"


def test_row_38_operators_for_texts_are_listed_and_only_where_the_manifest_says_so() -> None:
    model = good()
    model.graph.node.append(helper.make_node("StringLower", ["a"], ["b"], domain=EXTENSIONS))
    check_outline(model.SerializeToString(), DEVICE_TEXTS)
    assert refusal(lambda: check_outline(model.SerializeToString(), DEVICE)) == "foreign_domain"
    model.graph.node[-1].op_type = "BlingFireSentenceBreaker"
    data = model.SerializeToString()
    assert refusal(lambda: check_outline(data, DEVICE_TEXTS)) == "foreign_domain"


# --- row 39: a loop without end --------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "try_model", partial(try_model, wall_s=3.0))


def test_row_39_the_importer_ends_a_loop_of_2_to_the_62(tmp_path: Path, impatient: None) -> None:
    began = time.monotonic()
    data = endless().SerializeToString()
    assert refusal(lambda: imported(tmp_path, data)) == "trial_timeout"
    assert time.monotonic() - began < 15
    assert imported(tmp_path, good().SerializeToString()).opset == 17


def test_row_39_the_kernel_ends_it_when_nobody_watches(tmp_path: Path) -> None:
    data = endless().SerializeToString()
    assert refusal(lambda: try_model(data, cpu_s=2)) == "trial_timeout"


@pytest.mark.parametrize("hostile", [True, False])
async def test_row_39_a_device_ends_it_and_the_old_model_serves(
    site: Site, tmp_path: Path, hostile: bool
) -> None:
    """The release is signed by its publisher: nothing but the watchdog stands in its way."""
    installer = site.device.control._installer
    installer._stage = partial(Installer._stage, installer)  # type: ignore[method-assign]
    installer._files.config = AgentConfig(  # type: ignore[misc]
        smoke_timeout_s=4.0, disk_reserve_bytes=0
    )
    release = linear_release(tmp_path / "made", version="1.1.0")
    if hostile:
        replace_model(release, endless().SerializeToString())
    target = site.trusted.publish(bundled(release), now=site.now).target
    order = site.order(target)
    site.device.hear(site.desired(site.signed(order), order))
    outcome = await patient(site, order.nonce)
    if hostile:
        assert outcome == Outcome("failed", "smoke_timeout", OLD)
        assert "expected the smoke run to end" in outcome.message
    else:
        assert outcome == committed()


async def patient(site: Site, assignment: str) -> Outcome:
    for attempt in range(6):  # the harness is patient for 5 seconds at a time
        try:
            return await site.device.outcome(assignment)
        except TimeoutError:
            assert attempt < 5
    raise AssertionError


def bundled(release: Release) -> bytes:
    """Pack what `linear_release` wrote."""
    folder = Path(release.slot.model_file).parent
    names = ("model", "baseline", "golden", "empty")
    out = io.BytesIO()
    manifest = (folder / "manifest").read_bytes()
    write_bundle(out, manifest, {name: (folder / name).read_bytes() for name in names})
    return out.getvalue()


# --- row 40: size, depth, damage ---------------------------------------------------------------


def test_row_40_a_result_of_2_to_the_40_elements(tmp_path: Path) -> None:
    data = huge_result().SerializeToString()
    assert refusal(lambda: imported(tmp_path, data)) == "trial_memory"
    assert imported(tmp_path, good().SerializeToString()).opset == 17


def test_row_40_a_tensor_that_claims_2_to_the_40_elements(tmp_path: Path) -> None:
    for dims in ([1 << 40], [1 << 20, 1 << 20], [-1], [2] * 41):
        model = good()
        model.graph.initializer[0].dims[:] = dims
        code = refusal(partial(imported, tmp_path, model.SerializeToString()))
        assert code == "tensor_too_large"


def test_row_40_graphs_and_messages_nested_without_end(tmp_path: Path) -> None:
    inside = b""
    for _ in range(20_000):  # graph -> node -> attribute -> graph
        inside = _tagged(1, _tagged(5, _tagged(6, inside)))
        if len(inside) > 1 << 20:
            break
    for data in (_tagged(7, inside), _tagged(7, _nested_types())):
        assert refusal(partial(imported, tmp_path, data)) == "too_deep"


def _tagged(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _nested_types() -> bytes:
    inside = b""
    for _ in range(3_000):  # a sequence of sequences
        inside = _tagged(4, _tagged(1, inside))
    return _tagged(11, _tagged(2, inside))


def test_row_40_local_functions_that_call_each_other(tmp_path: Path) -> None:
    model = good()
    opsets = [helper.make_opsetid("", 17)]
    for number in range(2_000):
        node = helper.make_node(f"F{number + 1}", ["a"], ["b"], domain="local")
        model.functions.append(
            helper.make_function("local", f"F{number}", ["a"], ["b"], [node], opsets)
        )
    assert refusal(lambda: imported(tmp_path, model.SerializeToString())) == "local_functions"
    assert smoked(tmp_path, model.SerializeToString()) == "local_functions"


def test_row_40_more_nodes_than_a_model_has(tmp_path: Path) -> None:
    many = _tagged(7, _tagged(1, b"") * 100_001)
    assert refusal(lambda: imported(tmp_path, many)) == "too_many_nodes"


def test_row_40_two_thousand_flipped_bits(tmp_path: Path) -> None:
    """Many a damaged model still loads: what stops it on a device is its digest."""
    release = linear_release(tmp_path)
    slot, rng = release.slot, random.Random(40)
    whole = Path(slot.model_file).read_bytes()
    Model(Path(slot.model_file), release.manifest, slot.variant)
    survivors = []
    for _ in range(2_000):
        bit = rng.randrange(len(whole) * 8)
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        Path(slot.model_file).write_bytes(data)
        code = refusal(lambda: Model(Path(slot.model_file), release.manifest, slot.variant))
        assert code == "digest_mismatch"
        try:
            check_outline(bytes(data))
            survivors.append(bytes(data))
        except (RefusedError, FormatError):
            pass
    assert 500 < len(survivors) < 2_000
    for data in survivors[:3]:  # in a child: accepted or refused, never the end of us
        try:
            try_model(data)
        except RefusedError as error:
            assert error.code.startswith("trial_")  # noqa: PT017
