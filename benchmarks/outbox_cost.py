"""What keeping and counting predictions costs: CPU a prediction, bytes a window, syncs a second.

    python benchmarks/outbox_cost.py [--rounds 7]

In one process, with a real spool on disk and 20 features a prediction, as a table of 20 columns has:

    one by one   record and count each prediction by itself, closing windows included
    together     count 1,024 rows, against one numpy sum pass over their features: counts alone, with
                 the reading of the rows, and with a record of each besides
    a window     bytes of 1,000 rows' counts, as the device signs and sends them
    log          append batches of 32 records and make them power-safe, against `write` and `fdatasync`
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent.observe import Observer, RecentIds, WindowRows  # noqa: E402 - after the path is set
from agent.rows import RowReader  # noqa: E402
from agent.segments import CountPlan, Header  # noqa: E402
from agent.spool import Spool  # noqa: E402
from benchmarks.outcome import write  # noqa: E402
from skerry.canonical import to_msgpack  # noqa: E402
from skerry.counting import quantile_spec  # noqa: E402
from skerry.keys import Signer  # noqa: E402
from skerry.manifest import FeatureSpec, Manifest, PredictionSpec  # noqa: E402
from skerry.records import Context, Prediction, SketchWindow  # noqa: E402
from skerry.sketch import CategoricalSpec  # noqa: E402
from skerry.wire import Batch, seal_up  # noqa: E402

FEATURES = 20
ROWS = 1024
WINDOW = 1000
BATCH = 32
REPEATS = 50
RECORDS = 6400
RNG = np.random.default_rng(1)


def plan() -> CountPlan:
    """Twenty numeric features, two classes, confidence and latency."""
    names = [f"c{i}" for i in range(FEATURES)]
    specs = {name: quantile_spec(RNG.normal(size=5000)) for name in names}
    specs |= {
        "prediction": CategoricalSpec(["no", "yes"]),
        "confidence": quantile_spec(RNG.beta(8, 1, 5000)),
        "latency_us": quantile_spec(np.geomspace(1, 1e6, 1000)),
    }
    return CountPlan(names, [0, 1], specs)


def spool(folder: Path, counted: CountPlan, *, segment: int = 1 << 20) -> Spool:
    """A spool of one boot."""
    context = Context("s", "m", "1.0.0", "sha256:" + "0" * 64, "v")
    boot = os.urandom(8).hex()
    header = Header(
        boot=boot, first_seq=1, os_boot="", window_s=60.0, contexts=[context], plans=[counted]
    )
    return Spool(folder, header, segment_bytes=segment, max_bytes=1 << 30)


def rows(many: int) -> np.ndarray:
    """float64 [many, 23]: prediction, confidence, latency, features."""
    fixed = np.stack(
        [RNG.integers(0, 2, many), RNG.beta(8, 1, many), RNG.lognormal(5, 1, many)], axis=1
    )
    return np.concatenate([fixed, RNG.normal(size=(many, FEATURES))], axis=1)


def one_by_one(folder: Path, counted: CountPlan) -> float:
    """Microseconds of CPU for each prediction; the disk is synced as serve's other thread does."""
    kept = spool(folder, counted)
    observer = Observer(kept, [counted], 60.0, RecentIds(16_384))
    table = [row.tolist() for row in rows(20_000)]
    spent = 0
    for first in range(0, len(table), 500):
        part = table[first : first + 500]
        kept.take_sync()()  # elsewhere than in the loop; not counted here
        began = time.thread_time_ns()
        for number, row in enumerate(part, first):
            observer.record(
                0, f"{number:016x}", at=1e6 + number * 1e-3, prediction=int(row[0]),
                confidence=row[1], latency_us=int(row[2]), features=row[3:],
            )  # fmt: skip
        spent += time.thread_time_ns() - began
    began = time.thread_time_ns()
    observer.close_all()
    spent += time.thread_time_ns() - began
    kept.close()
    return spent / 1000 / len(table)


def together(folder: Path, counted: CountPlan) -> tuple[float, float, float]:
    """Times that a batch takes, to one sum pass: its counts, reading and counts, records as well."""
    table = rows(ROWS).astype(np.float32)
    features = np.ascontiguousarray(table[:, 3:], dtype=np.float64)
    kinds = [FeatureSpec(f"c{i}", f"column.{i}", "x") for i in range(FEATURES)]
    told = SimpleNamespace(features=kinds, prediction=PredictionSpec("y", "argmax"))
    reader = RowReader(cast("Manifest", told))
    inputs, outputs = {"x": np.ascontiguousarray(table[:, 3:])}, {"y": RNG.random((ROWS, 2))}
    read = reader.table(inputs, outputs)
    kept = spool(folder, counted, segment=4 << 20)
    observer = Observer(kept, [counted], 3600.0, RecentIds(16_384))
    window = WindowRows(counted, 0.0, 60.0)
    numbers = count()

    def counts() -> None:
        window.add_table(read, 1, ROWS)

    def whole() -> None:
        window.add_table(reader.table(inputs, outputs), 1, ROWS)

    def records() -> None:
        observer.record_table(
            0, str(next(numbers)), at=1e6, latency_us=100, table=reader.table(inputs, outputs)
        )

    base = best(lambda: features.sum(axis=0), 200)
    took = [best(work, REPEATS) / base for work in (counts, whole, records)]
    kept.close()
    return took[0], took[1], took[2]


def best(work: Callable[[], None], times: int) -> float:
    """The fastest of so many runs, nanoseconds of CPU."""
    found = []
    for _ in range(times):
        began = time.thread_time_ns()
        work()
        found.append(time.thread_time_ns() - began)
    return float(min(found))


def window_bytes(counted: CountPlan) -> int:
    """Bytes of the signed message that carries one window of a thousand rows."""
    window = WindowRows(counted, 0.0, 60.0)
    for row in rows(WINDOW).astype(np.float32).tolist():  # as models take them
        window.add(row, 1)
    record = SketchWindow(0, 0.0, 60.0, WINDOW, 0, window.columns(), {"b" * 16: (1, WINDOW)})
    return signed(record)


def signed(record: SketchWindow) -> int:
    """Bytes on the wire of a batch with one record."""
    context = Context("s", "m", "1.0.0", "sha256:" + "0" * 64, "v")
    body = Batch(first=1, contexts=[context], items=[record])
    message = seal_up(
        Signer.generate(), dev="dev", boot="b" * 16, seq=1, ts=1e9, mono=1e3, type="telemetry",
        body=body,
    )  # fmt: skip
    return len(message)


def log(folder: Path, counted: CountPlan) -> tuple[float, float]:
    """Records a second made power-safe in batches: the spool's, and a bare log's."""
    payload = to_msgpack(Prediction("0" * 16, 1e9, 0, 1, 0.5, 100, rows(1)[0, 3:].tolist()))
    kept = spool(folder / "spool", counted, segment=4 << 20)
    began = time.perf_counter()
    for _ in range(RECORDS // BATCH):
        for _ in range(BATCH):
            kept.append(payload)
        kept.take_sync()()
    ours = RECORDS / (time.perf_counter() - began)
    kept.close()
    fd = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = time.perf_counter()
    for _ in range(RECORDS // BATCH):
        for _ in range(BATCH):
            os.write(fd, payload)
        os.fdatasync(fd)
    bare = RECORDS / (time.perf_counter() - began)
    os.close(fd)
    return ours, bare


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    counted = plan()
    singles, counts, wholes, records, logs = [], [], [], [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
            folder = Path(name)
            (folder / "spool").mkdir()
            singles.append(one_by_one(folder / "one", counted))
            alone, whole, recorded = together(folder / "together", counted)
            counts.append(alone)
            wholes.append(whole)
            records.append(recorded)
            ours, bare = log(folder, counted)
            logs.append(ours / bare)

    def middle(values: list[float]) -> list[float]:
        return [round(v, 2) for v in (statistics.median(values), min(values), max(values))]

    write(
        "outbox_cost",
        {
            "unit": "median, smallest and largest of the rounds",
            "features": FEATURES,
            "one_by_one_us": middle(singles),
            "counts_to_sum_pass": middle(counts),
            "reading_and_counts_to_sum_pass": middle(wholes),
            "records_too_to_sum_pass": middle(records),
            "window_bytes": window_bytes(counted),
            "log_to_bare_log": middle(logs),
        },
    )


if __name__ == "__main__":
    (ROOT / "build").mkdir(exist_ok=True)
    main()
