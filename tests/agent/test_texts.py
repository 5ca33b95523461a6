"""Texts in, predictions out: a bundle with a tokenizer in it, built and really served."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper

from agent.measure import example
from agent.runtime import Model, prepack
from agent.serve_protocol import Failed, Ready, ServeSlot, SmokeResult, smoke_command
from agent.smoke import smoke
from compiler.build import build
from compiler.recipe import read_recipe
from skerry.bundle import read_bundle
from skerry.canonical import to_json
from skerry.errors import FormatError, RefusedError, UsageError
from skerry.io.client import Client
from skerry.io.extensions import extensions_library, extensions_version
from skerry.manifest import TensorSpec, parse_baseline, parse_manifest
from skerry.profile import Inventory, incompatibility
from tests.compiler.conftest import NOW
from tests.fakes.manifests import tiny_manifest
from tests.fakes.serving import ROOT, Release, Serve, linear_release, listen, replace_model, windows
from tests.fakes.texts import write_text_recipe

INSTALLED = Inventory(
    agent="0.1.0", platform="linux-x86_64", providers=["CPUExecutionProvider"],
    onnxruntime="1.32.0", extensions="0.15.2",
)  # fmt: skip
TEXTS = ["the world was SUNNY!", "it is awful.", "Hello, na\u00efve \u6f22\u5b57 \U0001f600"]


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A bundle that the compiler built, its files laid out as on a device."""
    folder = tmp_path_factory.mktemp("mood")
    made = build(read_recipe(write_text_recipe(folder)), now=NOW)
    (folder / "bundle.tar").write_bytes(made.bundle)
    with (folder / "bundle.tar").open("rb") as file:
        blobs = read_bundle(file).blobs
    manifest, first = made.manifest, made.manifest.variants[0]
    files = {
        "manifest": to_json(manifest),
        "model": blobs[first.file.digest],
        "baseline": blobs[manifest.baseline.digest],
        "golden": blobs[manifest.golden.digest],
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    slot = ServeSlot(
        slot="mood", model="mood", model_version="1.0.0", bundle=made.digest, variant=first.id,
        model_file=str(folder / "model"), manifest_file=str(folder / "manifest"),
        baseline_file=str(folder / "baseline"),
    )  # fmt: skip
    return Release(slot, manifest, folder / "golden")


@pytest.fixture(scope="module")
def serve(mood: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    with listen() as listener:
        folder = tmp_path_factory.mktemp("serve")
        with Serve(folder, listener, mood, window_s=1.0) as process:
            yield process.start()


def probabilities(answer: Any) -> np.ndarray:
    return np.asarray(answer.outputs["probabilities"])


def test_texts_are_answered_as_raw_bytes(serve: Serve) -> None:
    with Client(serve.url) as client:
        answer = client.predict("mood", {"text": np.array(TEXTS)})
    assert probabilities(answer).argmax(axis=1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("binary", [False, True])
def test_a_foreign_client_gets_the_same_in_json_and_in_bytes(serve: Serve, binary: bool) -> None:
    client = triton.InferenceServerClient(serve.url.removeprefix("http://"))
    given = triton.InferInput("text", [len(TEXTS)], "BYTES")
    given.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
    found = client.infer("mood", [given]).as_numpy("probabilities")
    client.close()
    with Client(serve.url) as mine:
        alone = [
            probabilities(mine.predict("mood", {"text": np.array([text])}))[0] for text in TEXTS
        ]
    assert np.abs(found - alone).max() < 1e-5


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "a" * 130_000, "fine " * 5000, "\u200b\u0301", "\U0010ffff", "\x01\x02"]
)
def test_odd_texts_are_answered_too(serve: Serve, text: str) -> None:
    with Client(serve.url) as client:
        answer = client.predict("mood", {"text": np.array([text, "fine"], dtype=object)})
    assert np.isfinite(probabilities(answer)).all()
    assert probabilities(answer)[1].argmax() == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"datatype": "BYTES", "shape": [1], "data": ["a\0b"]}, "text without NUL"),
        ({"datatype": "BYTES", "shape": [1], "data": ["a" * 131_073]}, "at most 131072 characters"),
        ({"datatype": "BYTES", "shape": [1], "data": [5]}, "expected BYTES values"),
        ({"datatype": "BYTES", "shape": [2], "data": ["a"]}, "expected data of shape"),
        ({"datatype": "FP32", "shape": [1], "data": [5.0]}, "expected BYTES for input"),
        ({"datatype": "BYTES", "shape": [1, 1], "data": ["a"]}, "expected shape"),
    ],
)
def test_what_is_no_text_is_refused(serve: Serve, body: dict[str, Any], message: str) -> None:
    data = json.dumps({"inputs": [{"name": "text", **body}]}).encode()
    request = urllib.request.Request(f"{serve.url}/v2/models/mood/infer", data)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 400
    assert message in caught.value.read().decode()


def test_bytes_that_are_no_utf8_are_refused(serve: Serve) -> None:
    with Client(serve.url) as client, pytest.raises(UsageError, match="UTF-8"):
        client.predict("mood", {"text": np.array([b"\xff\xfe"], dtype=object)})


def test_what_was_seen_of_texts_is_counted(mood: Release, tmp_path: Path) -> None:
    baseline = parse_baseline(Path(mood.slot.baseline_file).read_bytes())
    assert {"length", "rate"} < set(baseline.columns)
    with listen() as listener, Serve(tmp_path, listener, mood, window_s=0.2) as serve:
        serve.start()
        with Client(serve.url) as client:
            client.predict("mood", {"text": np.array(TEXTS)})
        assert serve.drain() == 0
        counted = [w for w in windows(serve.spool) if w.n]
    assert sum(window.n for window in counted) == len(TEXTS)


def test_made_up_texts_differ_so_that_rows_which_change_each_other_show() -> None:
    specs = {"text": TensorSpec("text", "BYTES", [-1])}
    assert example(specs, 2)["text"].tolist() == ["", ""]
    texts = example(specs, 8, seed=0)["text"].tolist()
    assert len(set(texts)) == 8
    assert len({len(text) for text in texts}) > 4
    assert example(specs, 8, seed=0)["text"].tolist() == texts


# --- smoke run, prepacking ------------------------------------------------------------------


def test_a_smoke_run_compares_golden_texts(mood: Release, tmp_path: Path) -> None:
    slot = mood.slot
    command = smoke_command(
        model=Path(slot.model_file), manifest=Path(slot.manifest_file), golden=mood.golden_file,
        variant=slot.variant, cache_dir=tmp_path, memory_mb=1024,
    )  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    result = msgspec.json.decode(done.stdout, type=SmokeResult)
    assert (result.ok, result.code) == (True, "ok"), done.stdout
    assert result.rows > 2


def test_a_prepacked_model_of_texts_answers_the_same(
    mood: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.prepacked.LEAST_BYTES", 1)
    file, slot = Path(mood.slot.model_file), mood.slot
    assert prepack(file, mood.manifest, slot.variant, tmp_path, 1)
    model = Model(file, mood.manifest, slot.variant, cache_dir=tmp_path)
    assert model.prepacked
    plain = Model(file, mood.manifest, slot.variant)
    given = {"text": np.array(TEXTS, dtype=object)}
    assert np.allclose(model.run(given)["probabilities"], plain.run(given)["probabilities"])


# --- what a device needs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.15.2", None),
        ("0.14", None),
        ("1.0.0", None),
        ("", "needs onnxruntime-extensions>=0.14; this device has none: pip install 'skerry[ext"),
        ("0.13.9", "needs onnxruntime-extensions>=0.14; this device has 0.13.9"),
    ],
)
def test_a_device_without_extensions_is_incompatible(
    mood: Release, version: str, reason: str | None
) -> None:
    inventory = msgspec.structs.replace(INSTALLED, extensions=version)
    variant, needs = mood.manifest.variants[0], mood.manifest.needs
    found = incompatibility(variant, inventory, (0, 1, 0), needs)
    assert found == reason if reason is None else str(found).startswith(reason)
    assert incompatibility(variant, inventory, (0, 1, 0)) is None


def test_a_need_that_the_agent_does_not_know_is_told() -> None:
    names = ("model.onnx", "golden.msgpack", "baseline.msgpack", "evaluation.json", "card.md")
    variant = tiny_manifest(dict.fromkeys(names, b"x")).variants[0]
    found = incompatibility(variant, INSTALLED, (0, 1, 0), ["tensor-magic>=2.0"])
    assert found == "needs tensor-magic>=2.0, which agent 0.1.0 does not know"


def test_the_library_is_found_without_an_import() -> None:
    code = (
        "import sys; from skerry.io.extensions import *; "
        "print(extensions_library(), extensions_version(), 'onnxruntime_extensions' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == [extensions_library(), extensions_version(), "False"]


def test_no_other_model_pays_for_the_library(mood: Release, tmp_path: Path) -> None:
    plain = linear_release(tmp_path / "plain")
    for release, wanted in ((plain, False), (mood, True)):
        folder = tmp_path / str(wanted)
        with listen() as listener, Serve(folder, listener, release) as serve:
            serve.start()
            maps = Path(f"/proc/{serve.process.pid}/maps").read_text()
            assert ("_extensions_pydll" in maps) is wanted


def test_a_device_that_lost_the_library_says_so(
    mood: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.io.extensions.extensions_library", lambda: None)
    with pytest.raises(RefusedError, match=r"needs onnxruntime-extensions>=0\.14") as caught:
        Model(Path(mood.slot.model_file), mood.manifest, mood.slot.variant)
    assert caught.value.code == "no_extensions"


# --- operators that nobody listed -----------------------------------------------------------


def foreign(domain: str, operator: str = "Twist") -> bytes:
    graph = helper.make_graph(
        [helper.make_node(operator, ["image"], ["scores"], domain=domain)],
        "foreign",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString())


@pytest.mark.parametrize(
    ("domain", "operator", "needs"),
    [
        ("acme.magic", "Twist", []),
        ("acme.magic", "Twist", ["onnxruntime-extensions>=0.14"]),
        ("ai.onnx.contrib", "StringLower", []),  # listed, and not declared
        ("ai.onnx.contrib", "BlingFireSentenceBreaker", ["onnxruntime-extensions>=0.14"]),
        ("com.microsoft.extensions", "DecodeImage", ["onnxruntime-extensions>=0.14"]),
    ],
)
def test_an_unknown_operator_is_one_clear_refusal(
    tmp_path: Path, domain: str, operator: str, needs: list[str]
) -> None:
    release = replace_model(linear_release(tmp_path), foreign(domain, operator))
    manifest = msgspec.structs.replace(release.manifest, requires=needs or msgspec.UNSET)
    Path(release.slot.manifest_file).write_bytes(to_json(manifest))
    slot = release.slot
    result = smoke(
        Path(slot.model_file), Path(slot.manifest_file), release.golden_file, slot.variant
    )
    assert result.code == "foreign_domain"
    assert f"got {operator} of domain '{domain}'" in result.message
    with listen() as listener, Serve(tmp_path / "serve", listener, release) as serve:
        failed = serve.hear(Failed, Ready)
        assert isinstance(failed, Failed)
        assert domain in failed.message


def test_a_damaged_need_is_no_manifest(mood: Release) -> None:
    for wrong in (["onnxruntime-extensions"], ["a>=1"] * 9, ["A B>=1.0"], ["a>=1.0\n"]):
        manifest = msgspec.structs.replace(mood.manifest, requires=wrong)
        with pytest.raises(FormatError, match="requires"):
            parse_manifest(to_json(manifest))
