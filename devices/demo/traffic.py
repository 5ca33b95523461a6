"""The traffic client: asks every device for predictions and remembers each answer.

One thread a device, at a steady rate, each with its own seeded generator, so that the
same seed asks for the same digits. A request whose connection broke is asked again
with the same id until it is answered: the client's book holds each id once.
"""

import importlib.util
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skerry.errors import SkerryError, UnreachableError
from skerry.io.client import Client

__all__ = ["MODEL", "Book", "Traffic"]

MODEL: Final = "reader"
RETRY_S: Final = 0.05  # between two tries of one request


@dataclass(slots=True)
class Book:
    """What the client knows of one device's requests."""

    sent: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    retried: int = 0
    in_flight: int = 0
    right: Counter[str] = field(default_factory=Counter)  # model version -> right answers
    served: Counter[str] = field(default_factory=Counter)  # model version -> answers
    lock: threading.Lock = field(default_factory=threading.Lock)


class Traffic:
    """Live digits for every device, as its camera sees them."""

    def __init__(self, urls: dict[str, str], examples: Path, *, seed: int, rate_hz: float) -> None:
        self._urls = urls
        self._camera = _load_camera(examples / "camera.py")
        with np.load(examples / "live.npz") as live:
            self._originals, self._labels = live["original"], live["label"]
        self._seed = seed
        self._interval_s = 1.0 / rate_hz
        self._stop = threading.Event()
        self._smudged: frozenset[str] = frozenset()
        self._threads: list[threading.Thread] = []
        self._round = 0  # of starts; part of every id, since an id is used once
        self.books: Final = {device: Book() for device in urls}

    def start(self) -> None:
        """Begin asking, or go on after `stop`; a device without a model is waited for."""
        self._round += 1
        self._stop = threading.Event()
        for device in self._urls:
            self._spawn(device, 0, self._stop)

    def stop(self) -> None:
        """Let every request under way be answered, then end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        self._threads.clear()

    def smudge(self, devices: tuple[str, ...]) -> None:
        """Smudge the lens of these devices from now on."""
        self._smudged = frozenset(devices)

    def burst(self, device: str, threads: int) -> threading.Event:
        """Ask one device from several threads more, until the event returned is set."""
        over = threading.Event()
        for number in range(1, threads + 1):
            self._spawn(device, number, over)
        return over

    def in_flight(self, device: str | None = None) -> int:
        """Return how many requests are under way at this moment."""
        books = self.books.values() if device is None else (self.books[device],)
        return sum(book.in_flight for book in books)

    def accuracy(self, version: str, devices: tuple[str, ...]) -> float | None:
        """Return the share of right answers of a version, which only this client can know."""
        served = sum(self.books[device].served[version] for device in devices)
        right = sum(self.books[device].right[version] for device in devices)
        return right / served if served else None

    def served_on(self, version: str) -> tuple[str, ...]:
        """Return the devices from which an answer of this version came."""
        return tuple(sorted(d for d, book in self.books.items() if book.served[version]))

    def _spawn(self, device: str, number: int, over: threading.Event) -> None:
        thread = threading.Thread(
            target=self._drive, args=(device, number, over), name=f"{device}/{number}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _drive(self, device: str, number: int, over: threading.Event) -> None:
        book = self.books[device]
        rng = np.random.default_rng([self._seed, *device.encode(), self._round, number])
        client = Client(self._urls[device])
        self._await_model(client, over)
        count = 0
        due = time.monotonic() + rng.uniform(0, self._interval_s)
        while not over.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            # a pause is not made up for: a camera does not hurry after a stall
            due = max(due + self._interval_s, time.monotonic() - self._interval_s)
            image, label = self._shoot(device, rng)
            count += 1
            request = f"{device}-{self._round}-{number}-{count:06d}"
            self._ask(client, book, request, image, label)
        client.close()

    def _await_model(self, client: Client, over: threading.Event) -> None:
        while not over.is_set():
            try:
                if client.ready(MODEL):
                    return
            except SkerryError:
                pass
            over.wait(0.1)

    def _shoot(self, device: str, rng: np.random.Generator) -> tuple[NDArray[np.float32], int]:
        index = int(rng.integers(len(self._labels)))
        shot = self._camera.photograph(self._originals[index : index + 1], rng)
        if device in self._smudged:
            shot = self._camera.smudge(shot)
        return shot, int(self._labels[index])

    def _ask(
        self, client: Client, book: Book, request: str, image: NDArray[np.float32], label: int
    ) -> None:
        with book.lock:
            book.sent.add(request)
            book.in_flight += 1
        try:
            while True:
                try:
                    answer = client.predict(MODEL, {"image": image}, id=request)
                    break
                except UnreachableError:
                    book.retried += 1
                except SkerryError:
                    if self._stop.is_set():  # a device that has no model any more
                        return
                time.sleep(RETRY_S)
        finally:
            with book.lock:
                book.in_flight -= 1
        right = int(answer.outputs["probabilities"].argmax()) == label
        with book.lock:
            book.answered.add(request)
            book.served[answer.model_version] += 1
            book.right[answer.model_version] += right


def _load_camera(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("camera", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SkerryError(
            f"expected the digits' camera at {path}; run from the repository's root, "
            "or name the folder with --examples"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
