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
from tests.fakes.serving import Serve, images, linear_release, listen  # noqa: E402

HELD = 65_536
LABELS = 2000
CONTEXT = Context("reader", "reader", "1.0.0", "sha256:" + "0" * 64, "int8-cpu")


def cpu_us(pid: int) -> float:
    """CPU time of a process so far."""
    return float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


def pss_mib(pid: int) -> float:
    """Memory of a process, what it shares divided by who shares it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def requests(root: Path, rounds: int, count: int) -> dict[str, object]:
    """Ask two serve processes in turns."""
    release = linear_release(root / "release")
    on = FeedbackSettings(str(root / "on" / "feedback"), ["*"])
    image = images(1)
    spent: dict[str, list[float]] = {"off": [], "on": []}
    with (
        listen() as one, listen() as other,
        Serve(root / "off", one, release) as off, Serve(root / "on", other, release, feedback=on) as held,
    ):  # fmt: skip
        served = {"off": off.start(), "on": held.start()}
        clients = {name: Client(serve.url) for name, serve in served.items()}
        for number in range(rounds + 1):
            for name, client in clients.items():
                before = cpu_us(served[name].process.pid)
                for i in range(count):
                    client.predict("reader", {"image": image}, id=f"{number}-{i}")
                if number:  # the first is not counted
                    spent[name].append((cpu_us(served[name].process.pid) - before) / count)
        more = [b - a for a, b in zip(spent["off"], spent["on"], strict=True)]
        return {
            "off_us": statistics.median(spent["off"]),
            "on_us": statistics.median(spent["on"]),
            "more_us": statistics.median(more),
            "more_us_quartiles": statistics.quantiles(more)[::2],
            "off_pss_mib": pss_mib(off.process.pid),
            "on_pss_mib": pss_mib(held.process.pid),
        }


def pieces(root: Path) -> dict[str, object]:
    """Measure what is done at a prediction and at a label, in this process."""
    held = Held(root / "held", predictions=HELD, hold_s=1e9)
    holder = Holder(held, "reader", b"c" * 8)
    ids = [f"request-{i:08d}" for i in range(3 * HELD)]
    begin = time.process_time()
    for id in ids:
        holder.hold(id, 1000.0, 60.0, ((1, 0.9),), known=False)
    hold_us = (time.process_time() - begin) / len(ids) * 1e6
    held.close()
    begin = time.perf_counter()
    held = Held(root / "held", predictions=HELD, hold_s=1e9)
    open_ms = (time.perf_counter() - begin) * 1000
    gone = sum(held.find(held_key("reader", id), 1000.0) is None for id in ids[-HELD:])
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
        "newest_gone_too_early": [gone, HELD],
        "label_record_bytes": len(to_msgpack(one)),
        "sketch_bytes_1000_labels_10_classes": len(to_msgpack(count_labels("b" * 16, classes))),
        "sketch_bytes_1000_labels_values": len(to_msgpack(count_labels("b" * 16, values))),
    }


def main() -> None:
    """Measure, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=3000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = requests(root, args.rounds, args.requests) | pieces(root)
    write("feedback_cost", found)


if __name__ == "__main__":
    main()
