"""The raw inputs of a prediction, taken along into its record where policy and device ask for them.

They are the first to go: a row whose inputs are too large, or for which there is no room, is recorded
without them, and its record says how many bytes were left out. They take at most half of the
spool's quota, so that they never cost another prediction its record.

What is withheld or hashed is not even written here; control looks again before anything leaves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from numpy.typing import NDArray

from agent.names import is_named
from agent.serve_protocol import InputSettings
from agent.spool import Spool, used_bytes
from skerry.manifest import Manifest
from skerry.records import Aside, RawInput, in_sample
from skerry.tensors import datatype_of, to_raw

__all__ = ["Inputs", "Take"]

LOOK_S: Final = 1.0  # the spool's size is looked up so often
BESIDE_BYTES: Final = 4096  # of a record, without its inputs
Take = Callable[[str, int], Aside | None]  # a row's id, and its place in the request


class Inputs:
    """Decides of which rows the raw inputs are recorded, and reads them.

    Args:
        spool: where records go.
        models: slot and manifest of each, in the order of the contexts.
        settings: what is asked for.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        spool: Spool,
        models: Sequence[tuple[str, Manifest]],
        settings: InputSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._models = models
        self._clock = clock
        self._look_at = 0.0
        self._used = 0  # bytes of the spool, with what was taken since the last look
        self.taken = 0  # rows
        self.left_out = 0
        self.set(settings)

    def set(self, settings: InputSettings) -> None:
        """Do as these settings say from the next row on."""
        self._settings = settings
        self._open = [
            _open_inputs(slot, manifest, settings.withheld) if settings.share > 0 else []
            for slot, manifest in self._models
        ]

    def of(self, ctx: int, tensors: Mapping[str, NDArray[Any]], rows: int) -> Take | None:
        """Return what reads the inputs of a request's rows, or None where none are recorded."""
        names = self._open[ctx]
        return partial(self._take, names, tensors, rows) if names else None

    def metrics(self) -> str:
        """Return two counters as Prometheus text."""
        return (
            "# HELP skerry_inputs_total Records with raw inputs.\n"
            "# TYPE skerry_inputs_total counter\n"
            f"skerry_inputs_total {self.taken}\n"
            "# HELP skerry_inputs_left_out_total Records whose raw inputs were too large, "
            "or had no room.\n"
            "# TYPE skerry_inputs_left_out_total counter\n"
            f"skerry_inputs_left_out_total {self.left_out}\n"
        )

    def _take(
        self,
        names: Sequence[str],
        tensors: Mapping[str, NDArray[Any]],
        rows: int,
        id: str,
        place: int,
    ) -> Aside | None:
        if not in_sample(id, self._settings.share):
            return None
        whole = [(name, tensors[name]) for name in names if name in tensors]
        parts = [
            (name, tensor if len(tensor) != rows else tensor[place : place + 1])
            for name, tensor in whole
        ]
        # numbers are not copied only to find that they are too many
        size = sum(part.nbytes for _, part in parts if part.dtype.kind != "O")
        found: list[RawInput] = []
        if size <= self._settings.max_bytes:
            found = [
                RawInput(name, datatype_of(part), list(part.shape), to_raw(part))
                for name, part in parts
            ]
            size = sum(len(tensor.data) for tensor in found)
        if size > self._settings.max_bytes or not self._has_room(size + BESIDE_BYTES):
            self.left_out += 1
            return Aside(left_out_bytes=size)
        self.taken += 1
        return Aside(found)

    def _has_room(self, size: int) -> bool:
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._used = used_bytes(self._spool.root)
        if self._used + size > self._spool.max_bytes // 2 or not self._spool.has_room(size):
            return False
        self._used += size
        return True


def _open_inputs(slot: str, manifest: Manifest, withheld: Sequence[str]) -> list[str]:
    """Return the inputs of which nothing is kept back, neither they nor what is made of them."""
    closed = {
        feature.input
        for feature in manifest.features
        if is_named(withheld, slot, feature.name, feature.input)
    }
    return [
        spec.name
        for spec in manifest.inputs
        if spec.name not in closed and not is_named(withheld, slot, spec.name)
    ]
