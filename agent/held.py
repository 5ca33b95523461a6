"""Predictions held for labels that come later: one file, a ring of fixed places.

    header   magic 8, number of places u32, to 64 bytes
    place    key 16, release 8, window's length f64, at f64, confidence f64, class i32,
             number u32, label f64

Predictions are numbered; number n stands at place n modulo the number of places, over the one
that was there a round before. So the newest are held, the file never grows beyond its size, and
it is written from front to back, as flash memory likes it. What was written survives the process:
it is in the kernel's hands before the answer leaves. A place lies within one page and is written
at once, so that it is the old one or the new one.

Memory holds an index alone, 8 bytes a place: for each hash of a key the newest place, and for each
place the one before it with the same hash. A place that was written over ends such a chain: its
number is not below the last one.

A key is a hash of model and request id: the ids themselves are not held.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from skerry.errors import UnreachableError

__all__ = ["Held", "HeldPrediction", "Holder", "held_key"]

MAGIC: Final = b"SKHELD\x00\x01"
HEADER: Final = struct.Struct("<8sI52x")
PLACE: Final = struct.Struct("<16s8sdddiId")
LABEL_AT: Final = 56
KEY_BYTES: Final = 16
NUMBERS: Final = 1 << 32
SCAN_PLACES: Final = 8192
LOCK_S: Final = 1.0
MAX_WINDOW_S: Final = 86_400.0
_NO_LABEL: Final = math.nan
_PLACES: Final = np.dtype(
    {
        "names": ["hash", "length_s", "number"],
        "formats": ["<u4", "<f8", "<u4"],
        "offsets": [0, 24, 52],
        "itemsize": PLACE.size,
    }
)


class Ids(Protocol):
    """Request ids, of which one is asked whether it is there."""

    def __contains__(self, id: str, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class HeldPrediction:
    """A prediction that may still get its label."""

    place: int
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
    """The file; while one process follows another, both have it open.

    Args:
        path: of the file; it is made where it is not there, or was made for another number.
        predictions: how many are held at least; the next power of two.
        hold_s: for how long.
        beside: tells whether another process writes too.
    """

    def __init__(
        self,
        path: Path,
        *,
        predictions: int,
        hold_s: float,
        beside: Callable[[], bool] = lambda: False,
    ) -> None:
        self.places: Final = 1 << max(predictions - 1, 1).bit_length()
        self.hold_s: Final = hold_s
        self.failed = 0  # predictions that the disk did not take
        self._mask: Final = self.places - 1
        self._beside = beside
        self._fd = self._open(path)
        self._newest = array("I")  # by hash: place + 1, 0 for none
        self._before = array("I")  # by place: the one before with that hash, place + 1
        self._next = self._scan() + 1  # number of the next prediction
        self._partial = beside()  # what another process adds is not in the index
        if self._partial:
            self._next += self.places // 8  # room for what it has yet to answer

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
        """Hold a prediction, over the oldest one.

        Args:
            key: of `held_key`.
            context: names its release, 8 bytes.
            length_s: of its window.
            at: when it was recorded, Unix seconds; that says which window it is in.
            prediction: its class, -1 for none.
            confidence: of that class, or the value.
        """
        number = self._next
        place = number & self._mask
        data = PLACE.pack(
            key, context, length_s, at, confidence, prediction, number % NUMBERS, _NO_LABEL
        )
        try:
            os.pwrite(self._fd, data, HEADER.size + place * PLACE.size)
        except OSError:
            self.failed += 1  # the prediction is answered and counted all the same
            return
        self._next = number + 1
        hashed = int.from_bytes(key[:4], "little") & self._mask
        self._before[place] = self._newest[hashed]
        self._newest[hashed] = place + 1

    def find(self, key: bytes, now: float) -> HeldPrediction | None:
        """Return a prediction that is still held.

        Args:
            key: of `held_key`.
            now: Unix seconds.
        """
        found = self._find(key)
        return found if found is not None and now - found.at <= self.hold_s else None

    def mark(self, held: HeldPrediction, label: float) -> None:
        """Note the label of a prediction; may be done twice."""
        at = HEADER.size + held.place * PLACE.size + LABEL_AT
        os.pwrite(self._fd, struct.pack("<d", label), at)

    def sync(self) -> None:
        """Make every mark so far durable against a power cut."""
        os.fdatasync(self._fd)

    def stale(self) -> None:
        """Note that another process has written what is not in the index."""
        self._partial = True

    def refresh(self) -> None:
        """Take what another process has added into the index, where there is one, or was."""
        beside = self._beside()
        if self._partial or beside:
            self._partial = beside
            self._scan()

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

    def _find(self, key: bytes) -> HeldPrediction | None:
        follows = self._newest[int.from_bytes(key[:4], "little") & self._mask]
        newer = -1
        while follows:
            place = follows - 1
            data = os.pread(self._fd, PLACE.size, HEADER.size + place * PLACE.size)
            if len(data) < PLACE.size:
                return None
            got, context, length_s, at, confidence, said, number, label = PLACE.unpack(data)
            if newer >= 0 and not 0 < (newer - number) % NUMBERS < NUMBERS // 2:
                return None  # written over: what follows is of another hash
            if got == key:
                if not (math.isfinite(at) and 0.0 < length_s <= MAX_WINDOW_S and said >= -1):
                    return None  # a disk has spoilt it
                start = math.floor(at / length_s) * length_s
                known = None if math.isnan(label) else label
                return HeldPrediction(
                    place, context, start, length_s, said, confidence, at, known
                )  # fmt: skip
            newer, follows = number, self._before[place]
        return None

    def _open(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        header = HEADER.pack(MAGIC, self.places)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.pread(fd, HEADER.size, 0) == header:
            return fd
        os.close(fd)
        part = path.with_suffix(f".{os.getpid()}")
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.pwrite(fd, header, 0)
        part.rename(path)
        return fd

    def _scan(self) -> int:
        """Make the index anew from the file; return the newest number, -1 for none."""
        hashes = np.zeros(self.places, np.uint32)
        numbers = np.zeros(self.places, np.int64)
        full = np.zeros(self.places, np.bool_)
        for first in range(0, self.places, SCAN_PLACES):
            size = min(SCAN_PLACES, self.places - first) * PLACE.size
            data = os.pread(self._fd, size, HEADER.size + first * PLACE.size)
            found = np.frombuffer(data[: len(data) // PLACE.size * PLACE.size], _PLACES)
            here = slice(first, first + len(found))
            hashes[here], numbers[here] = found["hash"] & self._mask, found["number"]
            full[here] = found["length_s"] > 0.0
        last = -1
        places = np.flatnonzero(full)
        newest, before = np.zeros(self.places, np.uint32), np.zeros(self.places, np.uint32)
        if len(places):
            # numbers run over: what counts is how far they are from any one of them
            away = (numbers[places] - numbers[places[0]] + NUMBERS // 2) % NUMBERS
            order = np.argsort(away, kind="stable")
            last = int(numbers[places[order[-1]]])
            places = places[order]
            places = places[np.argsort(hashes[places], kind="stable")]
            same = hashes[places[1:]] == hashes[places[:-1]]
            before[places[1:][same]] = places[:-1][same] + 1
            ends = np.append(~same, True)
            newest[hashes[places[ends]]] = places[ends] + 1
        self._newest, self._before = array("I", newest.tobytes()), array("I", before.tobytes())
        return last


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
        recorded: Ids,
    ) -> None:
        """Hold the predictions of a request that are about to be recorded.

        One that a kill then leaves without its record is made again when it is asked for again,
        and held anew: the newest of an id counts.

        Args:
            id: of the request; that of a batch's row i ends with ``#i``.
            at: when it was answered, Unix seconds.
            window_s: length of the windows in which they are counted.
            said: per row the class, -1 for none, and the confidence or value.
            recorded: ids that were recorded before: of these the first answer stays.
        """
        for i, (prediction, confidence) in enumerate(said):
            row = id if len(said) == 1 else f"{id}#{i}"
            if row not in recorded:
                self.held.add(
                    held_key(self.model, row), self.context, length_s=window_s, at=at,
                    prediction=int(prediction), confidence=confidence,
                )  # fmt: skip
