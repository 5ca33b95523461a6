"""Predictions held for labels that come later: one file of fixed places, bounded for ever.

    header   magic 8, number of buckets u32, to 64 bytes
    bucket   32 places of 64 bytes; a prediction belongs to the bucket that its key says

A new prediction takes the next place of its bucket, over the oldest one there. So the file
never grows beyond its size, nothing is kept in memory but a byte per bucket, and nothing has to
be read at the start but where each bucket stands. What was written survives the process: it
is in the kernel's hands before the answer leaves. A place is written at once and within one
page, so that it is the old one or the new one, whoever else writes.

A key is a hash of model and request id: the ids themselves are not held.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from skerry.errors import UnreachableError

__all__ = ["Held", "HeldPrediction", "Holder", "held_key"]

MAGIC: Final = b"SKHELD\x00\x01"
HEADER: Final = struct.Struct("<8sI52x")
PLACE: Final = struct.Struct("<16s8sdddi4xd")
PLACES: Final = 32  # of a bucket; half of them are for those that are to be held
LABEL_AT: Final = 56
KEY_BYTES: Final = 16
# A process that drains may still write: the next one begins so many places further on
AHEAD: Final = 8
SCAN_BUCKETS: Final = 512
LOCK_S: Final = 1.0
MAX_WINDOW_S: Final = 86_400.0
_AT: Final = np.dtype({"names": ["at"], "formats": ["<f8"], "offsets": [32], "itemsize": 64})
_NO_LABEL: Final = math.nan


@dataclass(frozen=True, slots=True)
class HeldPrediction:
    """A prediction that may still get its label."""

    place: int  # in the file, bytes
    context: bytes
    start: float  # of its window, Unix seconds
    length_s: float
    prediction: int
    confidence: float
    at: float
    label: float | None  # the one that it got


def held_key(model: str, id: str) -> bytes:
    """Return the key of a prediction."""
    return hashlib.blake2b(f"{model}\0{id}".encode(), digest_size=KEY_BYTES).digest()


class Held:
    """The file; several processes may have it open.

    Args:
        path: of the file; it is made where it is not there, or was made for another number.
        predictions: how many are held: of so many, 1 in 10,000 or fewer goes too early.
        hold_s: for how long.
    """

    def __init__(self, path: Path, *, predictions: int, hold_s: float) -> None:
        self.predictions: Final = predictions
        self.hold_s: Final = hold_s
        self.failed = 0  # predictions that the disk did not take
        self._buckets = max(1, math.ceil(predictions / (PLACES // 2)))
        self._fd = self._open(path)
        self._next = self._scan()

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)

    def add(
        self,
        key: bytes,
        context: bytes,
        *,
        length_s: float,
        at: float,
        prediction: int,
        confidence: float,
    ) -> None:
        """Hold a prediction, over the oldest one of its bucket.

        Args:
            key: of `held_key`.
            context: names its release, 8 bytes.
            length_s: of its window.
            at: when it was recorded, Unix seconds; that says which window it is in.
            prediction: its class, -1 for none.
            confidence: of that class, or the value.
        """
        bucket = int.from_bytes(key[:8], "little") % self._buckets
        place = self._next[bucket]
        self._next[bucket] = (place + 1) % PLACES
        data = PLACE.pack(key, context, length_s, at, confidence, prediction, _NO_LABEL)
        try:
            os.pwrite(self._fd, data, HEADER.size + (bucket * PLACES + place) * PLACE.size)
        except OSError:
            self.failed += 1  # the prediction is answered and counted all the same

    def find(self, key: bytes, now: float) -> HeldPrediction | None:
        """Return a prediction that is still held.

        Args:
            key: of `held_key`.
            now: Unix seconds.
        """
        bucket = int.from_bytes(key[:8], "little") % self._buckets
        begin = HEADER.size + bucket * PLACES * PLACE.size
        data = os.pread(self._fd, PLACES * PLACE.size, begin)
        found: HeldPrediction | None = None
        for at in range(0, len(data) - PLACE.size + 1, PLACE.size):
            if data.startswith(key, at):
                one = _read(data, at, begin + at)
                if one is not None and (found is None or one.at > found.at):
                    found = one
        return found if found is not None and now - found.at <= self.hold_s else None

    def mark(self, held: HeldPrediction, label: float) -> None:
        """Note the label of a prediction; may be done twice."""
        os.pwrite(self._fd, struct.pack("<d", label), held.place + LABEL_AT)

    def sync(self) -> None:
        """Make every mark so far durable against a power cut."""
        os.fdatasync(self._fd)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process join labels meanwhile.

        Raises:
            UnreachableError: another one does, for too long.
        """
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnreachableError("another process takes labels; ask again") from None
                time.sleep(0.001)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _open(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        header = HEADER.pack(MAGIC, self._buckets)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.pread(fd, HEADER.size, 0) == header:
            return fd
        os.close(fd)
        part = path.with_suffix(f".{os.getpid()}")
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.pwrite(fd, header, 0)
        part.rename(path)
        return fd

    def _scan(self) -> bytearray:
        """Return the next place of each bucket."""
        following = bytearray(self._buckets)
        size = PLACES * PLACE.size
        for first in range(0, self._buckets, SCAN_BUCKETS):
            data = os.pread(self._fd, SCAN_BUCKETS * size, HEADER.size + first * size)
            whole = len(data) // size
            if not whole:
                continue  # nothing was written so far back: the file has holes
            at = np.frombuffer(data[: whole * size], dtype=_AT)["at"].reshape(whole, PLACES)
            last = np.where(np.isfinite(at), at, 0.0).argmax(axis=1)
            begun = at.max(axis=1) != 0.0
            places = np.where(begun, (last + 1 + AHEAD) % PLACES, 0)
            end = min(first + whole, self._buckets)
            following[first:end] = places[: end - first].astype(np.uint8).tobytes()
        return following


def _read(data: bytes, at: int, place: int) -> HeldPrediction | None:
    """Return what stands at a place, None where a disk has spoilt it."""
    _, context, length_s, when, confidence, said, label = PLACE.unpack_from(data, at)
    if not (math.isfinite(when) and 0.0 < length_s <= MAX_WINDOW_S and said >= -1):
        return None
    start = math.floor(when / length_s) * length_s
    known = None if math.isnan(label) else label
    return HeldPrediction(place, context, start, length_s, said, confidence, when, known)


@dataclass(frozen=True, slots=True)
class Holder:
    """Holds the predictions of one release."""

    held: Held
    model: str
    context: bytes

    def hold(
        self,
        id: str,
        at: float,
        window_s: float,
        said: Sequence[Sequence[float]],
        *,
        known: bool,
    ) -> None:
        """Hold the predictions of a request.

        Args:
            id: of the request; that of a batch's row i ends with ``#i``.
            at: when it was answered, Unix seconds.
            window_s: length of the windows in which they are counted.
            said: per row the class, -1 for none, and the confidence or value.
            known: whether some were answered before: of these the first answer stays.
        """
        for i, (prediction, confidence) in enumerate(said):
            key = held_key(self.model, id if len(said) == 1 else f"{id}#{i}")
            if known and self.held.find(key, at) is not None:
                continue
            self.held.add(
                key, self.context, length_s=window_s, at=at, prediction=int(prediction),
                confidence=confidence,
            )  # fmt: skip
