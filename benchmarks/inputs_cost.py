"""What raw inputs in records cost: CPU a prediction, by the width of a row and the share recorded.

    python benchmarks/inputs_cost.py [--rounds 5]

In one process, with a real spool on disk: `Observer.record` of one row of float32 after the other, with
none of the inputs recorded, with those of every hundredth request, and with all of them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent.inputs import Inputs  # noqa: E402 - after the path is set
from agent.observe import Observer, RecentIds  # noqa: E402
from agent.segments import CountPlan, Header  # noqa: E402
from agent.serve_protocol import InputSettings  # noqa: E402
from agent.spool import Spool  # noqa: E402
from benchmarks.outcome import write  # noqa: E402
from skerry.manifest import FeatureSpec, Manifest, TensorSpec  # noqa: E402
from skerry.records import Context  # noqa: E402

PREDICTIONS = 5000
WIDTHS = (20, 784)
SHARES = (0.0, 0.01, 1.0)
PLAN = CountPlan(["first"], [], {}, ["row"])
MANIFEST = cast(
    "Manifest",
    SimpleNamespace(
        inputs=[TensorSpec("row", "FP32", [-1, -1])],
        features=[FeatureSpec("first", "column.0", "row")],
    ),
)


def cost_us(width: int, share: float, round: int) -> float:
    """Return the CPU time of one prediction, in microseconds."""
    tensors = {"row": np.zeros((1, width), np.float32)}
    ids = [f"{round}-{i:013x}" for i in range(PREDICTIONS)]
    settings = InputSettings(share, 1 << 16) if share else InputSettings()
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        header = Header("boot", 1, "os", 60.0, [Context("s", "m", "1", "b", "v")], [PLAN])
        spool = Spool(Path(folder), header, segment_bytes=1 << 20, max_bytes=1 << 28)
        inputs = Inputs(spool, [("s", MANIFEST)], settings)
        observer = Observer(spool, [PLAN], 60.0, RecentIds(16_384))
        began = time.process_time()
        for id in ids:
            observer.record(
                0, id, at=1.0, prediction=1, confidence=0.5, latency_us=9, features=[0.1],
                take=inputs.of(0, tensors, 1),
            )  # fmt: skip
        spent = time.process_time() - began
        observer.close_all()
        spool.close()
    return spent / PREDICTIONS * 1e6


def main() -> None:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cases = [(width, share) for width in WIDTHS for share in SHARES]
    times: dict[tuple[int, float], list[float]] = {case: [] for case in cases}
    for round in range(rounds):  # in turn, so that a busy machine is busy for all
        for width, share in cases:
            times[width, share].append(cost_us(width, share, round))
    write(
        "inputs_cost",
        {
            "unit": "microseconds of CPU a prediction: median, smallest and largest of the rounds",
            "predictions": PREDICTIONS,
            "cases": [
                {
                    "floats": width,
                    "share": share,
                    "us": [round_to(f(found)) for f in (statistics.median, min, max)],
                }
                for (width, share), found in times.items()
            ],
        },
    )


def round_to(value: float) -> float:
    """Return a time to the hundredth of a microsecond."""
    return round(value, 2)


if __name__ == "__main__":
    (ROOT / "build").mkdir(exist_ok=True)
    main()
