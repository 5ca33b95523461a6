"""The readers of data sets: what a publisher hands to the compiler, or an operator to `predict`."""

import atexit
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from compiler.data import read_data
from skerry.errors import FormatError, UsageError
from tests.fuzz.harness import Target
from tests.fuzz.mutate import damage_bytes

__all__ = ["data_targets"]

SHM = Path("/dev/shm")


def data_targets() -> tuple[Target, ...]:
    """Return a target for each kind of file."""
    ends = (FormatError, UsageError)
    table = b'row,label,site\n0.5,1,north\n,0,south\n1e3,1,"a ""b"""\n'
    return (
        Target("data_npz", _read("npz"), ends, (_npz(packed=False), _npz(packed=True))),
        Target("data_npy", _read("npy"), ends, (_npy(),), _spoilt_head),
        Target("data_csv", _read("csv"), ends, (table,)),
    )


def _read(kind: str) -> Callable[[bytes], None]:
    def parse(data: bytes) -> None:
        folder = _folder(os.getpid())
        inside = folder / "set" if kind == "npy" else folder
        inside.mkdir(exist_ok=True)
        (inside / f"x.{kind}").write_bytes(data)
        found = read_data("set" if kind == "npy" else f"x.{kind}", folder)
        for values in found.arrays.values():
            assert isinstance(values, np.ndarray)

    return parse


@cache
def _folder(_: int) -> Path:
    """A folder of this process; what is kept in memory costs no disk."""
    folder = Path(tempfile.mkdtemp(prefix="skerry-fuzz-", dir=SHM if SHM.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _npz(*, packed: bool) -> bytes:
    out = io.BytesIO()
    save = np.savez_compressed if packed else np.savez
    save(out, image=np.arange(24, dtype=np.float32).reshape(2, 3, 4), label=np.array([1, 0]))
    return out.getvalue()


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    return out.getvalue()


def _spoilt_head(rng: Random, data: bytes) -> bytes:
    """Claim another shape, type or order than what follows."""
    said = rng.choice(
        [
            (
                b"(2, 3, 4)",
                rng.choice([b"(2, 3, -4)", b"(99999999999, )", b"(2**70, )", b"()", b"(0, 3, 4)"]),
            ),
            (b"<f4", rng.choice([b"|O", b"<f2", b"|V9", b"<U1", b">c16", b"nonsense"])),
            (b"False", rng.choice([b"True", b"None", b"[]", b"'x'"])),
            (b"{'descr'", rng.choice([b"{'decsr'", b"[" * 300, b"__import__('os')"])),
        ]
    )
    if rng.random() < 0.3:
        return damage_bytes(rng, data, [data], longest=len(data) + 200)
    head = data[10:128].replace(*said)
    return data[:8] + len(head).to_bytes(2, "little") + head + data[128:]
