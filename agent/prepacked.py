"""Models as onnxruntime laid them out for this very CPU, kept so that the next start is cheap.

    <cache>/<model digest, 32 digits>-<fitting, 16 digits>/
        model.onnx     the optimised graph
        weights.bin    its weights, packed for the kernels of this CPU; mapped, not read
        seal           sizes and CRC-32 of both

A folder is made when a release is installed, by the smoke run that then runs the golden set on
it. It fits one version of onnxruntime, one CPU and one number of threads; where it does not fit
or is damaged, the model's own file is loaded as ever. The seal is against rot and torn writes:
who may write here may write the rest of the agent's state too
(`docs/decisions/0032-models-prepacked-at-install.md`).
"""

import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from skerry.errors import FormatError

__all__ = ["GRAPH", "LEAST_BYTES", "WEIGHTS", "drop", "find", "make", "place", "prune"]

GRAPH: Final = "model.onnx"
WEIGHTS: Final = "weights.bin"
SEAL: Final = "seal"
LEAST_BYTES: Final = 256 << 10  # of a model's file; below, nothing is gained
READ_BYTES: Final = 1 << 20
DIGITS: Final = 32
PART: Final = ".part-"
CPU_LINES: Final = ("flags", "Features", "model name", "CPU part", "CPU implementer")


class Seal(msgspec.Struct, frozen=True):
    """What the files of a folder must be: name to size in bytes and CRC-32."""

    files: dict[str, tuple[int, int]]


def place(cache_dir: Path, digest: str, *, runtime: str, threads: int) -> Path:
    """Return the folder of a model for one onnxruntime, this CPU and so many threads.

    Args:
        cache_dir: of all models.
        digest: of the model's file.
        runtime: version of onnxruntime.
        threads: of one operator.
    """
    fitting = hashlib.sha256(f"{runtime}\n{threads}\n{_cpu()}".encode()).hexdigest()[:16]
    return cache_dir / f"{digest.removeprefix('sha256:')[:DIGITS]}-{fitting}"


def make(folder: Path, write: Callable[[Path], None]) -> bool:
    """Make a folder whole or not at all; False where there is no room, or nothing came of it.

    Args:
        folder: as `place` names it.
        write: writes `GRAPH` and `WEIGHTS` into a directory.
    """
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = Path(tempfile.mkdtemp(prefix=PART, dir=folder.parent))
    try:
        write(part)
        seal = Seal({name: _measure(part / name) for name in (GRAPH, WEIGHTS)})
        (part / SEAL).write_bytes(msgspec.json.encode(seal))
        for name in (GRAPH, WEIGHTS, SEAL):
            _sync(part / name)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        _sync(folder.parent)
    except OSError:
        return False
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def find(folder: Path) -> Path | None:
    """Return the graph of a folder that is there and whole; one that is damaged is removed."""
    try:
        seal = msgspec.json.decode((folder / SEAL).read_bytes(), type=Seal)
        if set(seal.files) != {GRAPH, WEIGHTS}:
            raise FormatError("expected the sizes of two files")
        for name, expected in seal.files.items():
            if _measure(folder / name) != expected:
                raise FormatError(f"{name} is damaged")
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, FormatError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder / GRAPH


def drop(cache_dir: Path, digest: str) -> None:
    """Remove every folder of a model."""
    name = digest.removeprefix("sha256:")[:DIGITS]
    for folder in cache_dir.glob(f"{name}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def prune(cache_dir: Path, digests: Iterable[str]) -> None:
    """Remove the folders of all models but these, and what a crash left half made."""
    kept = {digest.removeprefix("sha256:")[:DIGITS] for digest in digests}
    for folder in cache_dir.iterdir() if cache_dir.is_dir() else ():
        if folder.name.split("-")[0] not in kept:
            shutil.rmtree(folder, ignore_errors=True)


@cache
def _cpu() -> str:
    lines: set[str] = set()
    with Path("/proc/cpuinfo").open() as file:
        for line in file:
            if not line.strip():
                break  # the first processor speaks for all
            if line.split("\t")[0].split(":")[0].strip() in CPU_LINES:
                lines.add(line)
    return "".join(sorted(lines))


def _measure(file: Path) -> tuple[int, int]:
    size = crc = 0
    with file.open("rb") as stream:
        while data := stream.read(READ_BYTES):
            size += len(data)
            crc = zlib.crc32(data, crc)
    return size, crc


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
