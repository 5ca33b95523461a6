"""A device as the fleet hears it: signs messages, numbers its records, keeps no model."""

import itertools
from collections.abc import Sequence

from fleet.ingest import Message
from skerry.keys import Signer
from skerry.profile import Inventory
from skerry.records import Context, Item, Prediction, SketchWindow
from skerry.sketch import CategoricalCounts
from skerry.topics import up
from skerry.wire import (
    AssignmentReport,
    Batch,
    Hello,
    ReleaseRef,
    Reported,
    Step,
    UpBody,
    UpType,
    seal_up,
)

FLEET = "demo"
SHARDS = 4
BUNDLE = "sha256:" + "a" * 64
CONTEXT = Context("reader", "reader", "1.0.0", BUNDLE, "int8-cpu")
INVENTORY = Inventory(agent="0.1.0", platform="linux-x86_64", isa=["avx2", "vnni"])


class Reporter:
    """Says what a device would say."""

    def __init__(self, device: str, boot: str = "boot-1", *, fleet: str = FLEET) -> None:
        self.device, self.boot, self.fleet = device, boot, fleet
        self.signer = Signer.generate()
        self._seq = itertools.count(1)

    def say(
        self, kind: UpType, body: UpBody, *, signer: Signer | None = None, boot: str | None = None
    ) -> Message:
        payload = seal_up(
            signer or self.signer, dev=self.device, boot=boot or self.boot, seq=next(self._seq),
            ts=1000.0, mono=1.0, type=kind, body=body,
        )  # fmt: skip
        return Message(up(self.fleet, SHARDS, self.device, kind), payload)

    def records(
        self, first: int, items: Sequence[Item], *, dropped_before: int = 0, boot: str | None = None
    ) -> Message:
        batch = Batch(first, [CONTEXT], list(items), dropped_before)
        return self.say("telemetry", batch, boot=boot)

    def predictions(self, first: int, last: int, *, boot: str | None = None) -> Message:
        name = boot or self.boot
        items = [prediction(f"{self.device}-{name}-{seq}") for seq in range(first, last + 1)]
        return self.records(first, items, boot=boot)

    def hello(self, desired_version: int = 0) -> Message:
        return self.say("hello", Hello("0.1.0", desired_version, 0))

    def reported(
        self,
        version: int,
        *reports: AssignmentReport,
        bundle: str | None = None,
        desired_version: int = 0,
    ) -> Message:
        slots = {} if bundle is None else {
            "reader": ReleaseRef("reader", "1.0.0", bundle, "int8-cpu", 1000.0)
        }  # fmt: skip
        told = Reported(version, slots, list(reports), INVENTORY, desired_version)
        return self.say("reported", told)


def report(assignment: str, *states: str, **fields: object) -> AssignmentReport:
    path = [Step(state, 1000.0 + n) for n, state in enumerate(states)]
    return AssignmentReport(assignment, "reader", states[-1], path, **fields)  # type: ignore[arg-type]


def prediction(request: str, at: float = 1000.0) -> Prediction:
    return Prediction(request, at, 0, 7, 0.93, 1200, [0.5, 0.25, 0.125])


def window(start: float, n: int, *, counts: Sequence[int] = (), length_s: float = 1.0,
           ctx: int = 0, errors: int = 0) -> SketchWindow:  # fmt: skip
    cells = list(counts) or [n, *[0] * 9]
    columns = {"prediction": CategoricalCounts(sum(cells), cells)}
    return SketchWindow(ctx, start, length_s, n, errors, columns)  # type: ignore[arg-type]
