"""What a shadow costs the model that serves: its latencies with one beside it, and without.

    python benchmarks/shadow_cost.py [--pairs 20] [--seconds 3] [--rate 100]

A real serve process answers one client at a steady rate. A real shadow with the same model runs
all the time; in every other stretch it is shown a share of the requests (share 1.0, so that its
CPU limit is what holds it back), in the others nothing. Latencies as the client sees them; each
pair of neighbouring stretches gives one ratio.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent.serve_protocol import MirrorTo, serve_environment, shadow_command  # noqa: E402
from benchmarks.outcome import write  # noqa: E402
from benchmarks.serving.process import usage  # noqa: E402
from skerry.canonical import to_json  # noqa: E402
from skerry.io.client import Client  # noqa: E402
from skerry.trials import Shadow  # noqa: E402
from tests.fakes.serving import (  # noqa: E402
    Serve,
    images,
    linear_release,
    listen,
    replace_model,
    wide_model,
)


def stretch(client: Client, seconds: float, rate: float) -> list[float]:
    """Ask at a steady rate; microseconds of each answer."""
    took, image = [], images(1)
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        client.predict("reader", {"image": image})
        took.append((time.perf_counter() - began) * 1e6)
        due += 1 / rate
    return took


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=100.0)
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("expected at least two pairs: one has no spread")
    found: dict[str, list[list[float]]] = {"alone": [], "beside": []}
    shadow_cpu = 0.0
    with tempfile.TemporaryDirectory() as folder, listen() as listener:
        root = Path(folder)
        release = replace_model(linear_release(root / "release"), wide_model())
        plan = Shadow(share=1.0, min_rows=10**9, max_seconds=1e6, max_cpu=0.2)
        command = shadow_command(
            model=Path(release.slot.model_file), manifest=Path(release.slot.manifest_file),
            variant="fp32-cpu", socket=root / "s", plan=to_json(plan).decode(),
            cache_dir=root / "cache", threads=1, memory_mb=0,
        )  # fmt: skip
        environment = serve_environment({"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)})
        shadow = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert shadow.stdout is not None
        assert shadow.stdout.readline().strip() == b'"ready"'
        with Serve(root, listener, release) as serve, Client(serve.url) as client:
            serve.start()
            stretch(client, 1.0, args.rate)
            for number in range(2 * args.pairs):
                # alone, beside, beside, alone: a drift of the machine favours neither
                way = "beside" if number % 4 in (1, 2) else "alone"
                serve.say(MirrorTo("reader-slot", str(root / "s") if way == "beside" else "", 1.0))
                time.sleep(0.2)
                before = usage([shadow.pid])
                found[way].append(stretch(client, args.seconds, args.rate))
                spent = usage([shadow.pid]).since(before)
                shadow_cpu += spent if way == "beside" else 0.0
            serve.drain()
        shadow.kill()
        shadow.wait()

    def ratio(share: float) -> list[float]:
        pairs = zip(found["beside"], found["alone"], strict=True)
        ratios = sorted(float(np.quantile(b, share) / np.quantile(a, share)) for b, a in pairs)
        middle = statistics.median(ratios)
        half = statistics.stdev(ratios) / len(ratios) ** 0.5 * 1.2533 * 2  # of a median, 95 %
        return [round(middle, 3), round(middle - half, 3), round(middle + half, 3)]

    def all_of(way: str, share: float) -> float:
        return round(float(np.quantile(np.concatenate(found[way]), share)), 1)

    write(
        "shadow_cost",
        {
            "unit": "microseconds as the client sees them; ratios are medians over pairs, 95 %",
            "requests": sum(map(len, found["alone"] + found["beside"])),
            "p50": {way: all_of(way, 0.5) for way in found},
            "p99": {way: all_of(way, 0.99) for way in found},
            "p50_ratio": ratio(0.5),
            "p99_ratio": ratio(0.99),
            "shadow_cores": round(shadow_cpu / 1e6 / (args.pairs * args.seconds), 4),
        },
    )


if __name__ == "__main__":
    main()
