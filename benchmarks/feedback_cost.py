"""What it costs to hold predictions for labels that come later, and to take a label.

python benchmarks/feedback_cost.py [--rounds 15] [--requests 3000]

a request     CPU of the serve process a request, where labels are awaited and where they are not: two
              processes asked in turns, blocks of the same requests, a small classifier, batch 1
memory        PSS of both at the end
held          `Holder.hold` alone, in a loop
a label       found, recorded and marked, without HTTP; and its part of counting 2,000
bytes         of a label's record on the device, and of sketches of 1,000 labels of one window
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent.held import Held, Holder, held_key  # noqa: E402 - after the path is set
from agent.labels import Label, Labels, count_labels  # noqa: E402
from agent.segments import Header  # noqa: E402
from agent.serve_protocol import FeedbackSettings  # noqa: E402
from agent.spool import Spool  # noqa: E402
from benchmarks.outcome import write  # noqa: E402
from skerry.canonical import to_msgpack  # noqa: E402
from skerry.io.client import Client  # noqa: E402
from skerry.records import Context  # noqa: E402
from tests.fakes.serving import Release, Serve, images, linear_release, listen  # noqa: E402

HELD = 65_536
LABELS = 2000
BLOCKS = 5  # of requests; the first is not counted
CONTEXT = Context("reader", "reader", "1.0.0", "sha256:" + "0" * 64, "int8-cpu")


def cpu_us(pid: int) -> float:
    """CPU time of a process so far."""
    return float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


def pss_mib(pid: int) -> float:
    """Memory of a process, what it shares divided by who shares it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def requests(root: Path, pairs: int, count: int) -> dict[str, object]:
    """Ask pairs of serve processes in turns: one that holds beside one that does not, and two equals."""
    release = linear_release(root / "release")
    found: dict[str, object] = {}
    for what, slots in (("holding", ["*"]), ("equal", [])):
        off, more, memory = [], [], []
        for number in range(pairs):
            plain, other, mib = _pair(root / f"{what}-{number}", release, slots, count, number % 2)
            off.append(plain)
            more.append(other - plain)
            memory.append(mib)
        found[f"{what}_more_us"] = statistics.median(more)
        found[f"{what}_more_us_quartiles"] = statistics.quantiles(more)[::2]
        found[f"{what}_more_pss_mib"] = statistics.median(memory)
        found["off_us"] = statistics.median(off)
    return found


def _pair(
    root: Path, release: Release, slots: list[str], count: int, swapped: int
) -> tuple[float, float, float]:
    """Return CPU microseconds a request of both processes, and how much more memory one takes."""
    settings = FeedbackSettings(str(root / "held"), slots)
    image = images(1)
    with (
        listen() as one, listen() as two,
        Serve(root / "a", one, release, feedback=FeedbackSettings() if not swapped else settings) as a,
        Serve(root / "b", two, release, feedback=settings if not swapped else FeedbackSettings()) as b,
    ):  # fmt: skip
        spent = []
        asked = [(serve.start(), Client(serve.url)) for serve in (a, b)]
        for block in range(BLOCKS):
            for serve, client in asked[:: -1 if block % 2 else 1]:
                before = cpu_us(serve.process.pid)
                for i in range(count):
                    client.predict("reader", {"image": image}, id=f"{block}-{i}")
                spent.append((serve, (cpu_us(serve.process.pid) - before) / count))
        us = [statistics.median(x for s, x in spent[2:] if s is serve) for serve in (a, b)]
        mib = [pss_mib(serve.process.pid) for serve in (a, b)]
        (off, on), (off_mib, on_mib) = (us[::-1], mib[::-1]) if swapped else (us, mib)
        return off, on, on_mib - off_mib


def pieces(root: Path) -> dict[str, object]:
    """Measure what is done at a prediction and at a label, in this process."""
    held = Held(root / "held", predictions=HELD, hold_s=1e9)
    holder = Holder(held, "reader", b"c" * 8)
    ids = [f"request-{i:08d}" for i in range(3 * HELD)]
    begin = time.process_time()
    for id in ids:
        holder.hold(id, 1000.0, 60.0, ((1, 0.9),), ())
    hold_us = (time.process_time() - begin) / len(ids) * 1e6
    held.close()
    begin = time.perf_counter()
    held = Held(root / "held", predictions=HELD, hold_s=1e9)
    open_ms = (time.perf_counter() - begin) * 1000
    header = Header("boot", 1, "", 60.0, [CONTEXT], [])
    spool = Spool(root / "spool", header, segment_bytes=1 << 20, max_bytes=1 << 28)
    labels = Labels(spool, 1e9)
    begin = time.process_time()
    for id in ids[-LABELS:]:
        key = held_key("reader", id)
        found = held.find(key, 1000.0)
        assert found is not None
        labels.add(Label(key, CONTEXT, found.start, 60.0, 10, found.prediction, 1), 0.0)
        held.mark(found, 1.0)
    label_us = (time.process_time() - begin) / LABELS * 1e6
    begin = time.process_time()
    labels.close()
    count_us = (time.process_time() - begin) / LABELS * 1e6
    one = Label(bytes(16), CONTEXT, 1.7e9, 60.0, 10, 1, 1)
    classes = [
        (i + 1, Label(bytes(16), CONTEXT, 1.7e9, 60.0, 10, i % 10, i // 7 % 10))
        for i in range(1000)
    ]
    values = [
        (i + 1, Label(bytes(16), CONTEXT, 1.7e9, 60.0, 0, -1, -1, i % 37.0, i % 31.0, 100.0, 1000))
        for i in range(1000)
    ]
    return {
        "hold_us": hold_us,
        "label_us": label_us,
        "count_us_a_label": count_us,
        "open_full_ms": open_ms,
        "file_bytes": (root / "held").stat().st_size,
        "label_record_bytes": len(to_msgpack(one)),
        "sketch_bytes_1000_labels_10_classes": len(to_msgpack(count_labels("b" * 16, classes))),
        "sketch_bytes_1000_labels_values": len(to_msgpack(count_labels("b" * 16, values))),
    }


def main() -> None:
    """Measure, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--requests", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = requests(root, args.pairs, args.requests) | pieces(root)
    write("feedback_cost", found)


if __name__ == "__main__":
    main()
