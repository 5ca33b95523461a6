"""The serve process, started as control starts it and asked as customers ask it."""

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from agent.listen import listen_unix
from agent.segments import DONE, boots, settled_upto
from agent.serve_protocol import Accept, Drain, Failed, InputSettings, Ready, Settings, Stats
from skerry.errors import SkerryError, UnreachableError
from skerry.io.client import Client
from skerry.records import Aside
from skerry.tensors import DTYPES, from_raw
from tests.fakes.serving import (
    ROOT,
    Release,
    Serve,
    eventually,
    images,
    linear_release,
    listen,
    predictions,
    recorded_ids,
    replace_model,
    slow_model,
    value_release,
    windows,
)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    root = tmp_path_factory.mktemp("releases")
    return {
        "reader": linear_release(root / "reader"),
        "better": linear_release(root / "better", version="1.1.0", seed=1),
        "table": value_release(root / "table", "table"),
        "echo": value_release(root / "echo", "echo"),
    }


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, releases: dict[str, Release]
) -> Iterator[Serve]:
    """One process for the tests that only ask; three models."""
    with listen() as listener:
        served = (releases["reader"], releases["table"], releases["echo"])
        with Serve(tmp_path_factory.mktemp("serve"), listener, *served, window_s=1.0) as serve:
            yield serve.start()


@pytest.fixture(scope="module")
def asker(shared: Serve) -> Iterator[Any]:
    client = triton.InferenceServerClient(shared.url.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, datatype: str, array: Any, *, binary: bool = True) -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


# --- the Open Inference Protocol, by a foreign client ---------------------------------


def test_the_server_says_what_it_is(asker: Any) -> None:
    assert asker.is_server_live()
    assert asker.is_server_ready()
    metadata = asker.get_server_metadata()
    assert metadata["name"] == "skerry-agent"
    assert "binary_tensor_data" in metadata["extensions"]


def test_models_say_what_they_take(asker: Any, releases: dict[str, Release]) -> None:
    metadata = asker.get_model_metadata("reader")
    assert metadata["versions"] == ["1.0.0"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    assert metadata["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]
    assert metadata["parameters"]["bundle"] == releases["reader"].slot.bundle
    assert asker.get_model_metadata("reader", "1.0.0") == metadata
    config = asker.get_model_config("reader")
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert asker.is_model_ready("reader")
    assert asker.is_model_ready("reader", "1.0.0")
    assert not asker.is_model_ready("reader", "9.9.9")
    assert not asker.is_model_ready("unknown")
    names = {entry["name"] for entry in asker.get_model_repository_index()}
    assert names == {"reader", "table", "echo"}


def test_statistics_count_answers(asker: Any) -> None:
    def count() -> int:
        stats = asker.get_inference_statistics("reader")["model_stats"]
        return int(stats[0]["inference_count"])

    before = count()
    asker.infer("reader", [tensor("image", "FP32", images(2))])
    assert count() == before + 2
    assert len(asker.get_inference_statistics()["model_stats"]) == 3


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tensors_travel_as_json_or_as_bytes(
    asker: Any,
    releases: dict[str, Release],
    binary_in: bool,
    binary_out: bool | None,
    compression: str | None,
) -> None:
    image = images(3, seed=5)
    wanted = binary_out is not None and [
        triton.InferRequestedOutput("scores", binary_data=binary_out)
    ]
    answer = asker.infer(
        "reader",
        [tensor("image", "FP32", image, binary=binary_in)],
        outputs=wanted or None,
        request_id="request-7",
        request_compression_algorithm=compression,
    )
    np.testing.assert_allclose(answer.as_numpy("scores"), releases["reader"].run(image), rtol=1e-6)
    response = answer.get_response()
    slot = releases["reader"].slot
    assert (response["id"], response["model_version"]) == ("request-7", "1.0.0")
    assert response["parameters"] == {"bundle": slot.bundle, "variant": slot.variant}


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_comes_back_as_it_went(asker: Any, binary: bool) -> None:
    values: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        if name == "BYTES":
            values[name] = np.array([["", "höher"]], dtype=object)
        elif dtype.kind == "b":
            values[name] = np.array([[True, False]])
        elif dtype.kind == "f":
            values[name] = np.array([[-1.5, 0.25]], dtype=dtype)
        else:
            info = np.iinfo(dtype)
            values[name] = np.array([[info.min, info.max]], dtype=dtype)
    # the client itself knows no JSON form of FP16
    inputs = [
        tensor(f"in_{name}", name, array, binary=binary or name == "FP16")
        for name, array in values.items()
    ]
    names = list(reversed(values))
    wanted = [
        triton.InferRequestedOutput(f"out_{name}", binary_data=binary or name == "FP16")
        for name in names
    ]
    answer = asker.infer("echo", inputs, outputs=wanted)
    assert [o["name"] for o in answer.get_response()["outputs"]] == [f"out_{n}" for n in names]
    for name, array in values.items():
        got = answer.as_numpy(f"out_{name}")
        if name == "BYTES":
            got = np.array([x.decode() if isinstance(x, bytes) else x for x in got.ravel()])
            array = array.ravel()
        assert got.tolist() == array.tolist(), name


def test_refusals_are_json_that_the_client_understands(asker: Any) -> None:
    image = images(1)
    cases: list[tuple[str, list[Any], dict[str, Any], str]] = [
        ("unknown", [tensor("image", "FP32", image)], {}, "expected a model of: reader"),
        ("reader", [tensor("picture", "FP32", image)], {}, "expected the inputs image"),
        ("reader", [tensor("image", "FP64", image.astype(float))], {}, "expected FP32"),
        ("reader", [tensor("image", "FP32", images(1)[:, :, :3])], {}, r"expected shape \[-1, 1"),
        ("reader", [], {}, "image is missing"),
        ("reader", [tensor("image", "FP32", image)] * 2, {}, "each once"),
        (
            "reader",
            [tensor("image", "FP32", image)],
            {"outputs": [triton.InferRequestedOutput("logits")]},
            "expected outputs of scores",
        ),
        (
            "reader",
            [tensor("image", "FP32", image)],
            {"outputs": [triton.InferRequestedOutput("scores", class_count=2)]},
            "classification",
        ),
        ("reader", [tensor("image", "FP32", image)], {"request_id": "a#1"}, "without '#'"),
        ("reader", [tensor("image", "FP32", image)], {"model_version": "3"}, "1.0.0"),
    ]
    for model, inputs, options, message in cases:
        with pytest.raises(InferenceServerException, match=message):
            asker.infer(model, inputs, **options)
    for ask in (
        lambda: asker.load_model("reader"),
        lambda: asker.unload_model("reader"),
        asker.get_system_shared_memory_status,
        asker.get_trace_settings,
        asker.get_log_settings,
    ):
        with pytest.raises(InferenceServerException, match="not offered"):
            ask()


def test_an_error_inside_the_model_is_counted_in_the_window(shared: Serve, asker: Any) -> None:
    good, bad = np.array([3], dtype=np.int64), np.array([99], dtype=np.int64)
    assert asker.infer("table", [tensor("position", "INT64", good)]).as_numpy("entry") == [3.0]
    with pytest.raises(InferenceServerException, match="the model failed"):
        asker.infer("table", [tensor("position", "INT64", bad)])
    eventually(lambda: sum(w.errors for w in windows(shared.spool)) == 1)
    eventually(lambda: shared.hear(Stats).slots["table-slot"].errors == 1)


def test_a_batch_is_as_many_records_as_rows(shared: Serve, asker: Any) -> None:
    asker.infer("reader", [tensor("image", "FP32", images(3))], request_id="batch")
    ids = recorded_ids(shared.spool)
    assert [ids[f"batch#{i}"] for i in range(3)] == [1, 1, 1]
    assert "batch" not in ids


def test_a_repeated_id_is_answered_and_not_counted(shared: Serve) -> None:
    with Client(shared.url) as client:
        first = client.predict("reader", {"image": images(1)}, id="twice")
        second = client.predict("reader", {"image": images(1)}, id="twice")
    assert first.id == second.id == "twice"
    np.testing.assert_array_equal(first.outputs["scores"], second.outputs["scores"])
    assert recorded_ids(shared.spool)["twice"] == 1


def test_a_unix_socket_answers_the_same(tmp_path: Path, releases: dict[str, Release]) -> None:
    reader = releases["reader"]
    with (
        listen() as listener,
        listen_unix(tmp_path / "agent.sock") as unix,
        Serve(tmp_path, listener, reader, also=[unix]) as serve,
    ):
        unix.listen(8)
        serve.start()
        image = images(2)
        with Client(f"unix:{tmp_path / 'agent.sock'}") as near, Client(serve.url) as far:
            ours, theirs = (c.predict("reader", {"image": image}) for c in (near, far))
        np.testing.assert_array_equal(ours.outputs["scores"], theirs.outputs["scores"])
        assert serve.drain() == 0


def test_metrics_are_prometheus_text(shared: Serve, asker: Any) -> None:
    asker.infer("reader", [tensor("image", "FP32", images(1))])
    with urllib.request.urlopen(f"{shared.url}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = response.read().decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(
        len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0
        for line in samples
        if "NaN" not in line
    )
    assert any(line.startswith('skerry_predictions_total{slot="reader-slot"') for line in samples)
    with urllib.request.urlopen(f"{shared.url}/healthz") as response:
        assert response.status == 200


def test_a_bomb_in_gzip_is_refused(shared: Serve) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    request = urllib.request.Request(
        f"{shared.url}/v2/models/reader/infer", bomb, {"Content-Encoding": "gzip"}
    )
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(request)


# --- slow models, full lines, time that has passed --------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, releases: dict[str, Release]) -> Iterator[Serve]:
    """A slow model and a fast one."""
    directory = tmp_path_factory.mktemp("slow")
    release = value_release(directory / "release", "slow")
    with (
        listen() as listener,
        Serve(directory, listener, release, releases["reader"]) as serve,
    ):
        yield serve.start()


def number(value: float) -> list[Any]:
    return [tensor("number", "FP32", np.array([value], dtype=np.float32))]


def test_a_slow_model_does_not_hold_up_a_fast_one(slow: Serve) -> None:
    host = slow.url.removeprefix("http://")
    took: list[float] = []
    with Client(slow.url) as client, triton.InferenceServerClient(host) as other:
        began = time.perf_counter()
        answer = other.infer("slow", number(3.0)).as_numpy("square")
        slow_s = time.perf_counter() - began
        assert answer == pytest.approx([9.0], rel=1e-3)
        pending = other.async_infer("slow", number(2.0))
        time.sleep(slow_s / 8)
        began = time.perf_counter()
        client.predict("reader", {"image": images(1)})
        took.append(time.perf_counter() - began)
        assert pending.get_result().as_numpy("square") == pytest.approx([4.0], rel=1e-3)
    assert min(took) < slow_s


def test_a_request_that_waited_too_long_is_not_run(slow: Serve) -> None:
    with triton.InferenceServerClient(slow.url.removeprefix("http://"), concurrency=4) as client:
        first = [client.async_infer("slow", number(1.0)) for _ in range(2)]
        with pytest.raises(InferenceServerException, match="has passed"):
            client.infer("slow", number(1.0), timeout=1)
        for answer in first:
            answer.get_result()
        with pytest.raises(InferenceServerException, match="whole microseconds"):
            client.infer("slow", number(1.0), timeout=-5)
    with urllib.request.urlopen(f"{slow.url}/metrics") as response:
        assert b'skerry_expired_total{slot="slow-slot"' in response.read()


def test_a_full_line_is_told_when_to_come_back(tmp_path: Path) -> None:
    release = value_release(tmp_path / "release", "slow")
    replace_model(release, slow_model(times=12))
    outcomes: list[str] = []

    def ask(url: str) -> None:
        with Client(url) as client:
            try:
                client.predict("slow", {"number": np.ones(1, np.float32)})
                outcomes.append("answered")
            except UnreachableError as error:
                outcomes.append(str(error))

    with listen() as listener, Serve(tmp_path, listener, release, max_queue=3) as serve:
        serve.start()
        threads = [threading.Thread(target=ask, args=(serve.url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [outcome for outcome in outcomes if outcome != "answered"]
    assert 1 <= len(refused) <= 5
    assert all("429: too many requests are waiting" in outcome for outcome in refused)


def test_a_run_that_hangs_in_a_thread_ends_the_process(
    tmp_path: Path, slow: Serve, releases: dict[str, Release]
) -> None:
    release = value_release(tmp_path / "release", "slow")
    replace_model(release, slow_model(side=1536, times=60))  # seconds, and nobody waits so long
    with listen() as listener, Serve(tmp_path, listener, release, hang_s=0.6) as serve:
        serve.start()
        with (
            Client(serve.url) as client,
            pytest.raises(UnreachableError),
        ):
            client.predict("slow", {"number": np.ones(1, np.float32)})
        assert serve.process.wait(10) == -signal.SIGALRM


# --- its life ---------------------------------------------------------------------------


def test_serve_imports_no_broker_no_trust_and_no_keys() -> None:
    code = (
        "import sys, agent.serve, agent.smoke\n"
        "bad = {'paho', 'tuf', 'securesystemslib', 'cryptography', 'onnx', 'aiohttp'}\n"
        "print(sorted(bad & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_control_may_import_the_protocol_and_the_segments_without_numpy() -> None:
    code = (
        "import sys, agent.serve_protocol, agent.segments, skerry.records\n"
        "print(sorted({'numpy', 'onnxruntime', 'cryptography'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_it_says_why_it_cannot_start(tmp_path: Path, releases: dict[str, Release]) -> None:
    release = linear_release(tmp_path / "broken")
    Path(release.slot.model_file).write_bytes(b"no model at all")
    with listen() as listener, Serve(tmp_path, listener, release) as serve:
        assert "it has others" in serve.hear(Failed).message
        assert serve.process.wait(10) == 1


def test_a_model_that_is_not_what_its_manifest_says_is_refused(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    release = linear_release(tmp_path / "other")
    replace_model(release, Path(releases["table"].slot.model_file).read_bytes())
    with listen() as listener, Serve(tmp_path, listener, release) as serve:
        assert "the model has" in serve.hear(Failed).message


def test_without_a_model_it_is_live_and_not_ready(tmp_path: Path) -> None:
    with listen() as listener, Serve(tmp_path, listener) as serve:
        serve.start()
        client = triton.InferenceServerClient(serve.url.removeprefix("http://"))
        assert client.is_server_live()
        assert not client.is_server_ready()
        client.close()
        with Client(serve.url) as ours:
            assert not ours.ready()
        assert serve.drain() == 0
        assert boots(serve.spool) == []


@pytest.mark.parametrize("end", ["drain", "sigterm", "control gone"])
def test_it_ends_with_every_window_written(
    tmp_path: Path, releases: dict[str, Release], end: str
) -> None:
    with listen() as listener, Serve(tmp_path, listener, releases["reader"]) as serve:
        serve.start()
        with Client(serve.url) as client:
            for i in range(20):
                client.predict("reader", {"image": images(1)}, id=f"id-{i}")
        if end == "drain":
            assert serve.drain() == 0
        elif end == "sigterm":
            serve.process.send_signal(signal.SIGTERM)
        else:
            serve.control.close()
        assert serve.process.wait(10) == 0
        assert sum(w.n for w in windows(serve.spool)) == 20
        assert [settled_upto(serve.spool / boot) for boot in boots(serve.spool)] == [DONE]


def test_a_loop_that_stands_still_is_ended_by_the_kernel(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener, Serve(tmp_path, listener, releases["reader"], hang_s=1.0) as serve:
        serve.start()
        serve.hear(Stats)
        os.kill(serve.process.pid, signal.SIGSTOP)  # what a model that never returns looks like
        time.sleep(1.3)
        os.kill(serve.process.pid, signal.SIGCONT)
        assert serve.process.wait(10) == -signal.SIGALRM


def test_windows_take_the_length_that_control_sets(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener, Serve(tmp_path, listener, releases["reader"]) as serve:
        serve.start()
        with Client(serve.url) as client:
            client.predict("reader", {"image": images(1)})
            serve.say(Settings(window_s=1.0))
            eventually(lambda: len(windows(serve.spool)) == 1)  # the long one was closed
            client.predict("reader", {"image": images(1)})
        eventually(lambda: [w.length_s for w in windows(serve.spool)] == [60.0, 1.0])


# --- raw inputs ---------------------------------------------------------------------------


def test_raw_inputs_are_recorded_from_the_moment_they_are_asked_for(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    size = images(1).nbytes
    with listen() as listener, Serve(tmp_path, listener, releases["reader"]) as serve:
        serve.start()
        with Client(serve.url) as client:
            client.predict("reader", {"image": images(1)}, id="before")
            serve.say(Settings(60.0, InputSettings(1.0, size)))
            eventually(lambda: "skerry_inputs_total 1\n" in metrics_after(client, serve.url))
            client.predict("reader", {"image": images(3, seed=5)}, id="three")
            serve.say(Settings(60.0, InputSettings(1.0, size - 1)))
            eventually(
                lambda: "skerry_inputs_left_out_total 1\n" in metrics_after(client, serve.url)
            )
    found = {p.id: p.aside for p in predictions(serve.spool)}
    assert found["before"] is None
    for row in range(3):
        aside = found[f"three#{row}"]
        assert aside is not None
        (tensor,) = aside.inputs
        assert (tensor.name, tensor.datatype, tensor.shape) == ("image", "FP32", [1, 1, 4, 4])
        taken = from_raw(tensor.data, tensor.datatype, tensor.shape)
        assert np.array_equal(taken, images(3, seed=5)[row : row + 1])
    assert any(aside == Aside(left_out_bytes=size) for aside in found.values())


def metrics_after(client: Client, url: str) -> str:
    """Ask for one prediction more, and return the process's figures."""
    client.predict("reader", {"image": images(1)})
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


# --- under traffic ----------------------------------------------------------------------


# --- power-safe answers ------------------------------------------------------------------

SLOW_DISK = """
import os, pathlib, time
folder, real = pathlib.Path({folder!r}), os.fsync
def fsync(fd):
    if (folder / "refuses").exists():
        raise OSError(5, "Input/output error")
    time.sleep(0.3)
    real(fd)
    (folder / "synced").write_bytes(b"")
os.fsync = fsync
"""


@pytest.fixture
def slow_disk(
    tmp_path: Path, releases: dict[str, Release], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Serve]]:
    """A process that syncs only when it is asked to, on a disk that takes its time or refuses."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK.format(folder=str(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with (
        listen() as listener,
        Serve(tmp_path / "serve", listener, releases["reader"], sync_s=0.0) as serve,
    ):
        serve.start()
        eventually((tmp_path / "synced").exists)  # what it made at its start
        (tmp_path / "synced").unlink()
        yield tmp_path, serve


def test_a_power_safe_answer_waits_for_the_disk(slow_disk: tuple[Path, Serve]) -> None:
    folder, serve = slow_disk
    with Client(serve.url) as client:
        (folder / "synced").unlink(missing_ok=True)
        answer = client.predict("reader", {"image": images(1)}, id="safe", power_safe=True)
        assert (folder / "synced").exists()
        assert answer.power_safe
    assert recorded_ids(serve.spool)["safe"] == 1


def test_many_power_safe_answers_share_a_sync(slow_disk: tuple[Path, Serve]) -> None:
    _, serve = slow_disk

    def ask(number: int) -> bool:
        with Client(serve.url) as client:
            return client.predict(
                "reader", {"image": images(1)}, id=f"p{number}", power_safe=True
            ).power_safe

    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(32)))
    # one by one they would take 32 syncs of 0.3 s
    assert time.monotonic() - began < 6.0


def test_a_disk_that_refuses_is_told_and_asking_again_counts_once(
    slow_disk: tuple[Path, Serve],
) -> None:
    folder, serve = slow_disk
    (folder / "refuses").write_bytes(b"")
    with Client(serve.url) as client:
        with pytest.raises(UnreachableError, match="disk refused"):
            client.predict("reader", {"image": images(1)}, id="again", power_safe=True)
        assert not client.predict("reader", {"image": images(1)}, id="other").power_safe
        (folder / "refuses").unlink()
        assert client.predict(
            "reader", {"image": images(1)}, id="again", power_safe=True
        ).power_safe
    assert recorded_ids(serve.spool) == {"again": 1, "other": 1}


@pytest.mark.parametrize("wish", [1, "yes", None, [True]])
def test_power_safe_is_true_or_false(shared: Serve, wish: Any) -> None:
    body = {"inputs": [{"name": "position", "shape": [1], "datatype": "INT64", "data": [1]}],
            "parameters": {"power_safe": wish}}  # fmt: skip
    request = urllib.request.Request(
        shared.url + "/v2/models/table/infer", data=msgspec.json.encode(body)
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400
    assert b"expected power_safe true or false" in refused.value.read()


class Traffic:
    """Threads that ask until told to stop, and repeat what broke with the same id."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self._url = url
        self._stop = threading.Event()
        self.answered: list[str] = []
        self.versions: set[str] = set()
        self.broken = 0
        self.errors: list[SkerryError] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(threads)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        image = images(1, seed=number)
        with Client(self._url, timeout_s=5.0) as client:
            for i in range(1_000_000):
                if self._stop.is_set():
                    return
                id = f"t{number}-{i}"
                while not self._stop.is_set():
                    try:
                        answer = client.predict("reader", {"image": image}, id=id)
                        self.answered.append(answer.id)
                        self.versions.add(answer.model_version)
                        break
                    except UnreachableError:
                        self.broken += 1
                    except SkerryError as error:
                        self.errors.append(error)
                        return


def test_a_kill_in_the_middle_of_traffic_loses_and_doubles_nothing(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    reader = releases["reader"]
    settings: dict[str, Any] = {"window_s": 0.5, "segment_bytes": 1 << 14}
    with listen() as listener:
        url = "http://{}:{}".format(*listener.getsockname()[:2])
        with Traffic(url) as traffic:
            for _ in range(4):
                with Serve(tmp_path, listener, reader, **settings) as serve:
                    serve.start()
                    seen = len(traffic.answered)
                    eventually(lambda seen=seen: len(traffic.answered) > seen + 200)  # type: ignore[misc]
                    serve.kill()
            last = Serve(tmp_path, listener, reader, **settings).start()
            seen = len(traffic.answered)
            eventually(lambda: len(traffic.answered) > seen + 200)
        assert last.drain() == 0
        last.kill()
    assert traffic.errors == []
    recorded = recorded_ids(last.spool)
    assert set(recorded) == set(traffic.answered)
    assert set(recorded.values()) == {1}
    assert len(traffic.answered) == len(recorded)
    assert sum(w.n for w in windows(last.spool)) == len(recorded)
    covered: Counter[str] = Counter()
    for window in windows(last.spool):
        assert all(column.n == window.n for column in window.columns.values())
        covered.update(window.covers.keys())
    assert set(covered) == set(boots(last.spool))


def test_a_swap_under_traffic_refuses_nothing(tmp_path: Path, releases: dict[str, Release]) -> None:
    with listen() as listener:
        old = Serve(tmp_path, listener, releases["reader"], window_s=0.5).start()
        with Traffic(old.url) as traffic:
            eventually(lambda: len(traffic.answered) > 300)
            for release in (releases["better"], releases["reader"], releases["better"]):
                new = Serve(tmp_path, listener, release, window_s=0.5)
                new.hear(Ready)
                new.say(Accept())
                old.say(Drain())
                assert old.process.wait(15) == 0
                old.kill()
                old = new
                seen = len(traffic.answered)
                eventually(lambda seen=seen: len(traffic.answered) > seen + 200)  # type: ignore[misc]
        assert old.drain() == 0
        old.kill()
    assert (traffic.errors, traffic.broken) == ([], 0)
    assert traffic.versions == {"1.0.0", "1.1.0"}
    recorded = recorded_ids(old.spool)
    assert recorded == Counter(traffic.answered)
    assert sum(w.n for w in windows(old.spool)) == len(recorded)


def test_a_foreign_client_lives_through_a_swap(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener, Serve(tmp_path, listener, releases["reader"]) as old:
        old.start()
        client = triton.InferenceServerClient(old.url.removeprefix("http://"))
        image = tensor("image", "FP32", images(1))
        versions = [client.infer("reader", [image]).get_response()["model_version"]]
        with Serve(tmp_path, listener, releases["better"]) as new:
            new.start()
            old.say(Drain())
            for _ in range(5):
                versions.append(client.infer("reader", [image]).get_response()["model_version"])
                time.sleep(0.05)
            assert old.process.wait(10) == 0
            versions.append(client.infer("reader", [image]).get_response()["model_version"])
        client.close()
    assert versions[0] == "1.0.0"
    assert versions[-1] == "1.1.0"


def test_draining_waits_for_a_request_that_has_begun(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener, Serve(tmp_path, listener, releases["reader"]) as serve:
        serve.start()
        with socket.create_connection(listener.getsockname()) as slow:
            slow.sendall(b"GET /v2/health/live HT")
            eventually(lambda: "skerry_connections 2" in _metrics(serve))
            serve.say(Drain())
            time.sleep(1.5)  # longer than an idle connection is kept
            slow.sendall(b"TP/1.1\r\nHost: device\r\n\r\n")
            answer = slow.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close\r\n" in answer
        assert serve.process.wait(10) == 0


def test_too_many_waiting_requests_are_refused_and_the_rest_answered(
    tmp_path: Path, releases: dict[str, Release]
) -> None:
    with listen() as listener, Serve(tmp_path, listener, releases["reader"], max_queue=4) as serve:
        serve.start()
        with Client(serve.url) as client:
            client.predict("reader", {"image": images(1)})
        os.kill(serve.process.pid, signal.SIGSTOP)  # so that all of them wait at once
        sockets = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        for each in sockets:
            each.sendall(b"GET /v2/models/reader HTTP/1.1\r\nHost: device\r\n\r\n")
        os.kill(serve.process.pid, signal.SIGCONT)
        first = Counter(each.recv(1 << 16)[:12] for each in sockets)
        assert set(first) <= {b"HTTP/1.1 200", b"HTTP/1.1 429"}
        assert first[b"HTTP/1.1 200"] >= 4
        for each in sockets:  # a refusal leaves the connection usable
            each.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: device\r\n\r\n")
            assert each.recv(1 << 16).startswith(b"HTTP/1.1 200")
            each.close()


def _metrics(serve: Serve) -> str:
    with urllib.request.urlopen(f"{serve.url}/metrics") as response:
        return str(response.read().decode())
