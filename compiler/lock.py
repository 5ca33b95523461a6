"""Locks: what a build found out and could not be computed again, so that it can be repeated.

Speed is measured, and a measurement never gives the same number twice. The lock keeps
its verdicts, beside digests of all that went in. Built with a lock, the same recipe,
model and data give the same bytes; on another CPU or with other versions of the
tools, sums in another order may differ in the last bit, and the build says so.
"""

from pathlib import Path

import msgspec

from compiler.host import Tools
from compiler.latency import Verdict
from skerry.canonical import from_json, to_json
from skerry.errors import NotFoundError, UsageError

__all__ = ["Choice", "Inputs", "Lock", "check_lock", "lock_bytes", "read_lock"]


class Inputs(msgspec.Struct, frozen=True):
    """Digests of everything that a build read."""

    recipe: str
    model: str
    calibration: str
    evaluation: str
    baseline: str
    # of the files of [preprocess], by input; left out where there are none
    tokenizers: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True):
    """What was found out about one candidate."""

    form: str
    verdict: Verdict
    left: list[str] = []  # regions that stay in float
    shipped: bool = False


class Lock(msgspec.Struct, frozen=True):
    """A build's inputs, its choices, and what came out."""

    model: str
    model_version: str
    inputs: Inputs
    choices: list[Choice]
    bundle: str  # digest of the bundle
    hw_class: str  # where it was built
    tools: Tools
    fp32: Verdict = "undecided"  # of the gate's limits on time and memory
    schema: int = 1


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        NotFoundError: no such file.
        FormatError: not a lock.
    """
    try:
        return from_json(path.read_bytes(), Lock, limit=1 << 20)
    except FileNotFoundError:
        raise NotFoundError(f"expected a lock at {path}, and there is no such file") from None


def check_lock(lock: Lock, inputs: Inputs) -> None:
    """Refuse a lock of other inputs.

    Raises:
        UsageError: the recipe, the model or a data set differs.
    """
    theirs, mine = (msgspec.structs.asdict(value) for value in (lock.inputs, inputs))
    changed = [name for name, digest in mine.items() if theirs[name] != digest]
    if changed:
        raise UsageError(
            f"the lock was made for other inputs: {', '.join(changed)} changed since. "
            "Build without --lock to measure anew and write a new lock"
        )


def lock_bytes(lock: Lock) -> bytes:
    """Return a lock as indented JSON, to be read and compared by people."""
    return msgspec.json.format(to_json(lock), indent=2) + b"\n"
