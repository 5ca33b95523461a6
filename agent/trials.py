"""Which variant is the best here: measured on this device, not promised elsewhere.

Every variant that fits runs once against the golden set, in a watched child (`agent.smoke_run`).
Of those that agree, the fastest is taken; where others are nearly as fast, that one which agrees
best, and then the manifest's order decides. What was measured is remembered by the files' digests,
the version of onnxruntime, the processor's flags and the number of threads, so that a variant which
lost here is not fetched again for that. What shall serve always runs again before it does.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.serve_protocol import SmokeResult
from skerry.canonical import from_json, to_json
from skerry.errors import FormatError
from skerry.profile import Inventory

__all__ = ["Trials", "best_of"]

log = logging.getLogger(__name__)

NEAR: Final = 1.10  # so many times as slow as the fastest is as good
MAX_REMEMBERED: Final = 256
MAX_FILE_BYTES: Final = 1 << 20


class _Memory(msgspec.Struct, frozen=True):
    """What the file holds: key -> result, the oldest first."""

    found: dict[str, SmokeResult] = {}


def best_of(order: Sequence[str], found: Mapping[str, SmokeResult]) -> str:
    """Return the variant to take, of those that agreed.

    Args:
        order: all that were tried, the manifest's first choice first.
        found: what came of them; at least one agreed.
    """
    good = [variant for variant in order if variant in found and found[variant].ok]
    fastest = min(found[variant].run_us for variant in good)
    near = [variant for variant in good if found[variant].run_us <= fastest * NEAR]
    return min(near, key=lambda variant: found[variant].disagree)


class Trials:
    """Remembers what was measured.

    Args:
        file: losing it costs measuring again.
        inventory: of this device.
        threads: of one operator of onnxruntime.
    """

    def __init__(self, file: Path, inventory: Inventory, threads: int) -> None:
        self._file = file
        isa = "+".join(sorted(inventory.isa))
        self._host = f"{inventory.onnxruntime} {isa} {threads}"
        self._found = self._read()

    def recall(self, model: str, golden: str) -> SmokeResult | None:
        """Return what was measured of a variant that agreed, None if nothing was.

        Args:
            model: digest of the variant's file.
            golden: digest of the golden set.
        """
        return self._found.get(self._key(model, golden))

    def note(self, model: str, golden: str, result: SmokeResult) -> None:
        """Remember what agreed; forget what no longer does: another time it may be different."""
        key = self._key(model, golden)
        self._found.pop(key, None)
        if result.ok:
            self._found[key] = result
        while len(self._found) > MAX_REMEMBERED:
            del self._found[next(iter(self._found))]
        beside = self._file.with_name(f".{self._file.name}.new")
        try:
            beside.write_bytes(to_json(_Memory(self._found)))
            beside.replace(self._file)
        except OSError as error:  # a full disk; nothing rests on this file
            log.info("cannot keep what was measured: %s", error)

    def _key(self, model: str, golden: str) -> str:
        return f"{model} {golden} {self._host}"

    def _read(self) -> dict[str, SmokeResult]:
        try:
            return dict(from_json(self._file.read_bytes(), _Memory, limit=MAX_FILE_BYTES).found)
        except (OSError, FormatError):
            return {}
