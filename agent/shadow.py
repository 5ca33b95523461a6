"""A model beside the one that serves: it sees live requests, answers nobody, and is compared.

    python -m agent.shadow --model FILE --manifest FILE --variant ID --socket PATH --plan FILE
                           [--memory-mb N] [--threads N] [--cache DIR]

A process of its own, so that what it does, crash, hang or eat memory, it does to itself. It runs
when nothing else wants the CPU, and no more than its share of it. It says `ready` once it listens,
and then every second, and at its end, a `ShadowReport` as a JSON line.
"""

import argparse
import contextlib
import os
import resource
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from agent.rows import Row
from agent.runtime import Model, read_manifest
from agent.serve_protocol import Sample
from skerry.canonical import from_json
from skerry.counting import count_numeric
from skerry.errors import SkerryError
from skerry.reading import NO_CLASS
from skerry.sketch import Column, NumericCounts, NumericSpec, merge
from skerry.tensors import as_text, from_raw
from skerry.trials import SHADOW_EDGES, Shadow, ShadowReport

__all__ = ["Judge", "main"]

TELL_S: Final = 1.0
READ_BYTES: Final = 1 << 16
MAX_SAMPLE_BYTES: Final = 16 << 20
ERRORS: Final = 3.0  # standard errors, half the width of the interval
EARLY_ROWS: Final = 30  # enough to tell that a model is far off
MOST_ERRORS: Final = 0.02  # share of the requests
FEWEST_ERRORS: Final = 3
NEAR: Final = 0.05  # share of a value by which two numbers may differ
_LENGTH: Final = struct.Struct(">I")
_SPEC: Final = NumericSpec(SHADOW_EDGES, scale=1)


class Judge:
    """Compares rows, and says when enough was seen.

    The share of rows with the same prediction `agrees` or `disagrees` once its whole interval
    (Wilson 1927) lies on one side of the limit. It is looked at after every request, so the
    interval is one of 3 standard errors and not of 2.

    Args:
        plan: what is asked for.
    """

    def __init__(self, plan: Shadow) -> None:
        self._plan = plan
        self._requests = 0
        self._rows = self._agree = self._errors = self._skipped = 0
        self._latency: Column = count_numeric([], _SPEC)
        self._times: list[float] = []

    def took(self, microseconds: float) -> None:
        """Note how long one request ran."""
        self._requests += 1
        self._times.append(microseconds)

    def skipped(self, requests: int) -> None:
        """Note requests that there was no time for."""
        self._skipped += requests

    def failed(self) -> None:
        """Note a request that the model failed to answer."""
        self._requests += 1
        self._errors += 1

    def compare(self, sample: Sample, rows: list[Row]) -> None:
        """Hold the rows of one request against those that were answered."""
        answered = zip(sample.predictions, sample.confidences, strict=True)
        for (prediction, confidence), row in zip(answered, rows, strict=True):
            self._rows += 1
            if prediction != NO_CLASS or row.prediction != NO_CLASS:
                self._agree += prediction == row.prediction
            else:
                near = NEAR * max(abs(confidence), abs(row.confidence))
                self._agree += abs(confidence - row.confidence) <= near

    def verdict(self, seconds: float) -> str:
        """Return `agrees`, `disagrees` or `failed`; `undecided` at the end of its time, else nothing."""
        plan = self._plan
        if self._errors >= max(FEWEST_ERRORS, MOST_ERRORS * self._requests):
            return "failed"
        low, high = _wilson(self._agree, self._rows)
        if self._rows >= min(EARLY_ROWS, plan.min_rows) and high < plan.min_agreement:
            return "disagrees"
        if self._rows >= plan.min_rows and low >= plan.min_agreement:
            return "agrees"
        return "undecided" if seconds >= plan.max_seconds else ""

    def report(self, seconds: float) -> ShadowReport:
        """Return what was seen so far."""
        self._latency = merge(self._latency, count_numeric(self._times, _SPEC))
        self._times = []
        assert isinstance(self._latency, NumericCounts)
        return ShadowReport(
            self._rows, self._agree, self._errors, self._skipped,
            self.verdict(seconds) or "undecided", self._latency, round(seconds, 3),
        )  # fmt: skip


def _wilson(agree: int, rows: int) -> tuple[float, float]:
    if not rows:
        return 0.0, 1.0
    share, z2 = agree / rows, ERRORS * ERRORS
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = ERRORS * (share * (1 - share) / rows + z2 / (4 * rows * rows)) ** 0.5 / (1 + z2 / rows)
    return centre - half, centre + half


def main(argv: list[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="agent.shadow", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--socket", type=Path, required=True, help="where requests are shown")
    parser.add_argument("--plan", required=True, help="a Shadow as JSON")
    parser.add_argument("--memory-mb", type=int, default=0, help="of private memory; 0 is no limit")
    parser.add_argument("--threads", type=int, default=1, help="of one operator")
    parser.add_argument("--cache", type=Path, help="where models lie prepacked")
    args = parser.parse_args(argv)
    if args.memory_mb:
        limit = args.memory_mb << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(19)
    np.seterr(all="ignore")
    try:
        model = Model(
            args.model, read_manifest(args.manifest), args.variant,
            threads=args.threads, cache_dir=args.cache,
        )  # fmt: skip
        plan = from_json(args.plan.encode(), Shadow)
    except SkerryError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(args.socket))
        listener.listen(1)
        with contextlib.suppress(OSError):  # not allowed everywhere; being nice is
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        _say(b'"ready"')
        _watch(listener, model, plan)
    return 0


def _watch(listener: socket.socket, model: Model, plan: Shadow) -> None:
    judge = Judge(plan)
    began = told = time.monotonic()
    while not judge.verdict(time.monotonic() - began):
        listener.settimeout(TELL_S)
        with contextlib.suppress(TimeoutError):
            peer, _ = listener.accept()  # another one where serve was started anew
            with peer:
                peer.settimeout(TELL_S)
                while not judge.verdict(time.monotonic() - began):
                    try:
                        sample = _read(peer)
                    except (ConnectionError, EOFError):
                        break
                    if sample is not None:
                        pause_s = _try(model, sample, judge, plan)
                        time.sleep(
                            min(pause_s, max(0.0, began + plan.max_seconds - time.monotonic()))
                        )
                    if time.monotonic() - told >= TELL_S:
                        told = time.monotonic()
                        _say(msgspec.json.encode(judge.report(told - began)))
                _count_rest(peer, judge)
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            _say(msgspec.json.encode(judge.report(told - began)))
    _say(msgspec.json.encode(judge.report(time.monotonic() - began)))


def _count_rest(peer: socket.socket, judge: Judge) -> None:
    """Count the samples that still lie in the socket as what they are: skipped."""
    peer.settimeout(0.0)
    data = bytearray()
    with contextlib.suppress(OSError):
        while part := peer.recv(READ_BYTES):
            data += part
    while len(data) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data)
        body, data = data[_LENGTH.size : _LENGTH.size + length], data[_LENGTH.size + length :]
        judge.skipped(1)
        if len(body) == length:
            judge.skipped(msgspec.msgpack.decode(body, type=Sample).skipped)


def _try(model: Model, sample: Sample, judge: Judge, plan: Shadow) -> float:
    """Run a sample; return for how long to rest, so as to keep to a share of a core."""
    judge.skipped(sample.skipped)
    spent = time.process_time()
    try:
        tensors = {t.name: as_text(from_raw(t.data, t.datatype, t.shape)) for t in sample.inputs}
        began = time.perf_counter()
        outputs = model.run(tensors)
        judge.took((time.perf_counter() - began) * 1e6)
        judge.compare(sample, model.rows(tensors, outputs))
    except Exception:  # whatever a model may do: it is the model's error
        judge.failed()
    return (time.process_time() - spent) * (1.0 / plan.max_cpu - 1.0)


def _read(peer: socket.socket) -> Sample | None:
    """Return the next sample; None where none came for a second."""
    try:
        head = _exactly(peer, _LENGTH.size)
    except TimeoutError:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_SAMPLE_BYTES:
        raise EOFError("expected a sample")
    peer.settimeout(None)  # it is on its way
    body = _exactly(peer, length)
    peer.settimeout(TELL_S)
    return msgspec.msgpack.decode(body, type=Sample)


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise EOFError("no more samples")
        data += part
    return bytes(data)


def _say(line: bytes) -> None:
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
