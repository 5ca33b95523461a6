"""A model beside the one that serves: compared on live requests, answers nobody, harms nobody."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from agent.bundle_files import BundleFiles
from agent.config import AgentConfig
from agent.facts import Release as Facts
from agent.rows import Row
from agent.serve_protocol import MirrorTo, Sample
from agent.shadow import Judge
from agent.shadow_run import shadow_run, why_not
from agent.supervisor import Supervisor
from skerry.io.client import Client
from skerry.manifest import FileRef, Manifest, TensorSpec
from skerry.trials import Shadow, ShadowReport
from skerry.wire import ReleaseRef
from tests.fakes.serving import (
    Release,
    Serve,
    linear_model,
    linear_release,
    listen,
    recorded_ids,
    replace_model,
    save,
    slow_model,
    value_release,
)

QUICK = Shadow(share=1.0, min_rows=60, max_seconds=20.0, min_agreement=0.9, max_cpu=1.0)


def swapped_model() -> bytes:
    """The linear model with its classes in another order: right numbers, wrong labels."""
    model = onnx.load_from_string(linear_model())
    weight = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight[:, [1, 2, 0]], "weight"))
    return bytes(model.SerializeToString())


def failing_model() -> bytes:
    """Fails on every image but one of zeros: it looks up a place that is not there."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["image"], ["most"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["most", "far"], ["place_float"]),
            helper.make_node("Cast", ["place_float"], ["place"], to=7),
            helper.make_node("Gather", ["table", "place"], ["scores"]),
        ],
        "failing",
        [helper.make_tensor_value_info("image", 1, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("scores", 1, ["n", 3])],
        [
            numpy_helper.from_array(np.array(1e6, np.float32), "far"),
            numpy_helper.from_array(np.eye(3, dtype=np.float32), "table"),
        ],
    )
    return save(graph)


class Files:
    """What a shadow needs of the bundles on the device."""

    def __init__(self, release: Release, cache: Path) -> None:
        self._release = release
        self.cache_dir = cache
        self.config = AgentConfig()

    def manifest(self, _: str) -> Manifest:
        return self._release.manifest

    def manifest_path(self, _: str) -> Path:
        return Path(self._release.slot.manifest_file)

    def path(self, _: str, __: FileRef) -> Path:
        return Path(self._release.slot.model_file)


class Mirrors:
    """Tells serve what a supervisor would."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.said: list[MirrorTo] = []

    def mirror(self, message: MirrorTo) -> None:
        self.said.append(message)
        with contextlib.suppress(OSError):
            self.serve.say(message)


@contextlib.contextmanager
def traffic(url: str, *, pause_s: float = 0.002) -> Iterator[list[str]]:
    """Ask for predictions, one after another, until told to stop."""
    stop, answered = threading.Event(), list[str]()

    def ask() -> None:
        random = np.random.default_rng(3)
        with Client(url) as client:
            while not stop.is_set():
                image = random.random((1, 1, 4, 4), dtype=np.float32)
                answered.append(client.predict("reader", {"image": image}).model_version)
                time.sleep(pause_s)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answered
    finally:
        stop.set()
        thread.join()


async def run_beside(
    tmp_path: Path, candidate: Release, plan: Shadow
) -> tuple[ShadowReport, list[str], Serve]:
    """Serve `reader` with live traffic, and run a candidate beside it."""
    serving = linear_release(tmp_path / "serving")
    release = Facts(
        ReleaseRef("reader", "1.1.0", candidate.slot.bundle, "fp32-cpu", 0.0), "t", 1, 1
    )
    files = cast("BundleFiles", Files(candidate, tmp_path / "cache"))
    with listen() as listener, Serve(tmp_path, listener, serving) as serve:
        serve.start()
        mirrors = Mirrors(serve)
        with traffic(serve.url) as answered:
            report = await shadow_run(
                files, cast("Supervisor", mirrors), "reader-slot", release, "fp32-cpu", plan
            )
        assert mirrors.said[-1] == MirrorTo("reader-slot")
        assert serve.drain() == 0
        assert len(recorded_ids(serve.spool)) == len(answered)  # nothing of it is counted
    return report, answered, serve


async def test_a_model_that_answers_alike_agrees(tmp_path: Path) -> None:
    candidate = linear_release(tmp_path / "candidate", version="1.1.0")
    report, answered, _ = await run_beside(tmp_path, candidate, QUICK)
    assert report.verdict == "agrees"
    assert report.agree == report.rows >= 60
    assert report.errors == 0
    assert report.latency_us is not None
    assert report.latency_us.n >= 60
    assert set(answered) == {"1.0.0"}


async def test_swapped_labels_are_found_and_nobody_ever_gets_them(tmp_path: Path) -> None:
    candidate = linear_release(tmp_path / "candidate", version="1.1.0")
    candidate = replace_model(candidate, swapped_model())
    report, answered, _ = await run_beside(tmp_path, candidate, QUICK)
    assert report.verdict == "disagrees"
    assert report.agree < report.rows / 2
    assert set(answered) == {"1.0.0"}


async def test_a_model_that_fails_costs_its_own_verdict_alone(tmp_path: Path) -> None:
    candidate = linear_release(tmp_path / "candidate", version="1.1.0")
    candidate = replace_model(candidate, failing_model())
    report, answered, _ = await run_beside(tmp_path, candidate, QUICK)
    assert report.verdict == "failed"
    assert report.errors >= 3
    assert set(answered) == {"1.0.0"}


async def test_a_model_that_does_not_load_has_failed(tmp_path: Path) -> None:
    candidate = linear_release(tmp_path / "candidate", version="1.1.0")
    Path(candidate.slot.model_file).write_bytes(b"nothing")
    report, _, _ = await run_beside(tmp_path, candidate, QUICK)
    assert (report.verdict, report.rows) == ("failed", 0)


async def test_without_enough_rows_it_stays_undecided(tmp_path: Path) -> None:
    candidate = linear_release(tmp_path / "candidate", version="1.1.0")
    plan = msgspec.structs.replace(QUICK, share=0.01, max_seconds=2.0)
    report, _, _ = await run_beside(tmp_path, candidate, plan)
    assert report.verdict == "undecided"
    assert report.rows < 60


async def test_what_there_is_no_time_for_is_skipped_and_counted(tmp_path: Path) -> None:
    serving = value_release(tmp_path / "serving", "slow")
    slower = value_release(tmp_path / "candidate", "slow")
    slower = replace_model(slower, slow_model(times=8))
    release = Facts(ReleaseRef("slow", "2.0.0", slower.slot.bundle, "fp32-cpu", 0.0), "t", 1, 1)
    files = cast("BundleFiles", Files(slower, tmp_path / "cache"))
    plan = msgspec.structs.replace(QUICK, max_seconds=4.0, min_rows=10**7, max_cpu=0.2)
    stop = threading.Event()
    with listen() as listener, Serve(tmp_path, listener, serving) as serve:
        serve.start()

        def ask() -> None:
            with Client(serve.url) as client:
                value = np.linspace(1, 4, 4096, dtype=np.float32)
                while not stop.is_set():
                    client.predict("slow", {"number": value})

        thread = threading.Thread(target=ask)
        thread.start()
        spent = asyncio.get_running_loop().time()
        mirrors = cast("Supervisor", Mirrors(serve))
        try:
            report = await shadow_run(files, mirrors, "slow-slot", release, "fp32-cpu", plan)
        finally:
            stop.set()
            thread.join()
        assert asyncio.get_running_loop().time() - spent < 30
    assert report.skipped > 0
    assert report.verdict == "undecided"


async def test_a_shadow_that_is_killed_has_failed_and_serve_goes_on(tmp_path: Path) -> None:
    serving = linear_release(tmp_path / "serving")
    candidate = linear_release(tmp_path / "candidate", version="1.1.0")
    release = Facts(
        ReleaseRef("reader", "1.1.0", candidate.slot.bundle, "fp32-cpu", 0.0), "t", 1, 1
    )
    files = cast("BundleFiles", Files(candidate, tmp_path / "cache"))
    with listen() as listener, Serve(tmp_path, listener, serving) as serve:
        serve.start()
        mirrors = Mirrors(serve)
        plan = msgspec.structs.replace(QUICK, min_rows=100_000)
        task = asyncio.create_task(
            shadow_run(files, cast("Supervisor", mirrors), "reader-slot", release, "fp32-cpu", plan)
        )
        with traffic(serve.url) as answered:
            async with asyncio.timeout(10):
                while not mirrors.said:  # noqa: ASYNC110 - said by another task
                    await asyncio.sleep(0.05)
            found = subprocess.run(  # noqa: ASYNC221 - a moment
                ["pgrep", "-f", f"agent.shadow.*{candidate.slot.manifest_file}"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            report = await asyncio.wait_for(task, 10)
            before = len(answered)
            await asyncio.sleep(0.3)
            assert len(answered) > before
        assert report.verdict == "failed"
        assert serve.drain() == 0


# --- the judge -----------------------------------------------------------------------------


def seen(judge: Judge, agree: int, other: int) -> None:
    sample = Sample([], [0] * (agree + other), [0.5] * (agree + other))
    rows = [Row(0, 0.5, [])] * agree + [Row(1, 0.5, [])] * other
    judge.compare(sample, rows)


@pytest.mark.parametrize(
    ("agree", "other", "verdict"),
    [(0, 0, ""), (59, 0, ""), (100, 0, "agrees"), (10, 20, "disagrees"), (5, 20, ""),
     (90, 10, ""), (960, 40, "agrees"), (850, 150, "disagrees"), (905, 95, "")],
)  # fmt: skip
def test_a_verdict_needs_its_whole_interval_on_one_side(
    agree: int, other: int, verdict: str
) -> None:
    judge = Judge(QUICK)
    seen(judge, agree, other)
    assert judge.verdict(1.0) == verdict
    assert judge.verdict(100.0) == (verdict or "undecided")


def test_a_true_share_above_the_limit_is_rarely_refused_however_often_one_looks() -> None:
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        judge = Judge(Shadow(min_rows=60, min_agreement=0.9))
        for agrees in random.random(600) < 0.93:
            seen(judge, int(agrees), 1 - int(agrees))
            if judge.verdict(0.0) == "disagrees":
                refused += 1
                break
    assert refused <= 3


def test_numbers_agree_where_they_are_near() -> None:
    judge = Judge(QUICK)
    near = [Row(-1, 10.4, []), Row(-1, 9.6, []), Row(-1, 12.0, [])]
    judge.compare(Sample([], [-1] * 3, [10.0] * 3), near)
    report = judge.report(1.0)
    assert (report.rows, report.agree) == (3, 2)


def test_a_model_with_other_inputs_or_classes_cannot_stand_in(tmp_path: Path) -> None:
    one = linear_release(tmp_path / "one").manifest
    assert why_not(one, one) == ""
    other = value_release(tmp_path / "other", "table").manifest
    assert "it takes" in why_not(one, other)
    outputs = [TensorSpec("scores", "FP32", [-1, 3], class_names=["a", "b", "c"])]
    renamed: Any = msgspec.structs.replace(one, outputs=outputs)
    assert "its classes" in why_not(one, renamed)
