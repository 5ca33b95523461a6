"""SIGKILLs and swaps of real serving processes, while predictions are made and labelled."""

import queue
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Final

from agent.observe import window_start
from agent.segments import DONE, boots, read_header, settled_upto
from agent.serve_protocol import FeedbackSettings
from skerry.errors import SkerryError
from skerry.io.client import Client
from skerry.records import Errors, Prediction
from tests.fakes.serving import Release, Serve, images, items, linear_release, listen

WINDOW_S: Final = 0.5
AGAIN: Final = 0.2  # share of labels that are told a second time at once
Where = tuple[str, float]  # version and window of a prediction


class _Traffic:
    """One client that asks, one that tells; both repeat what was not answered."""

    def __init__(self, url: str, seed: int) -> None:
        self._url, self._rng = url, Random(seed)
        self._stop = threading.Event()
        self._answered: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.became: Counter[str] = Counter()
        self.labelled: list[str] = []
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=run) for run in (self._ask, self._tell)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop asking; tell what is left."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        count = 0
        with Client(self._url, timeout_s=20.0) as client:
            while not self._stop.is_set():
                count += 1
                image = images(1, seed=count)
                self._until_answered(
                    lambda image=image, id=f"p{count}": client.predict(  # type: ignore[misc]
                        "reader", {"image": image}, id=id
                    )
                )
                self._answered.put(f"p{count}")
                time.sleep(0.002)
        self._answered.put(None)

    def _tell(self) -> None:
        with Client(self._url, timeout_s=20.0) as client:
            while (id := self._answered.get()) is not None:
                label = int(id[1:]) % 3
                for again in range(1 + (self._rng.random() < AGAIN)):
                    became = self._until_answered(
                        lambda id=id, label=label: client.feedback("reader", id, label)  # type: ignore[misc]
                    )
                    self.became[became] += 1
                    # a label whose answer was lost is a duplicate the next time
                    if became not in ("joined", "duplicate") or (again and became == "joined"):
                        self.wrong.append(f"the label of {id} became {became}")
                self.labelled.append(id)

    @staticmethod
    def _until_answered(ask: Any) -> Any:
        while True:
            try:
                return ask()
            except SkerryError:
                time.sleep(0.005)


def labels_killed(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill the serving process while labels come, alone or while another one follows it.

    Args:
        folder: for releases and spool.
        kills: how many.
        seed: of instants, ways and models.
    """
    rng = Random(seed)
    made = [
        linear_release(folder / name, version=name, seed=seed + n)
        for n, name in enumerate(("1.0.0", "1.1.0"))
    ]
    listener = listen()
    feedback = FeedbackSettings(str(folder / "held"), ["*"])

    def begin(release: Release) -> Serve:
        serve = Serve(folder, listener, release, feedback=feedback, window_s=WINDOW_S)
        return serve.start()

    serve, swaps, done = begin(made[0]), 0, 0
    traffic = _Traffic(serve.url, seed)
    while done < kills:
        time.sleep(rng.uniform(0.05, 1.5))
        if rng.random() < 0.5:
            following = begin(rng.choice(made))
            swaps += 1
            time.sleep(rng.uniform(0.0, 0.1))
            if rng.random() < 0.5:
                serve.drain()
                serve.kill()
                serve = following
                continue
            first, second = (serve, following) if rng.random() < 0.8 else (following, serve)
            first.kill()
            serve = second
        else:
            serve.kill()
            serve = begin(rng.choice(made))
        done += 1
    traffic.end()
    serve.kill()
    last = begin(made[0])
    with Client(last.url) as client:
        client.ready()
    last.drain()
    last.kill()
    listener.close()
    wrong = traffic.wrong[:20] + _compare(folder / "spool", traffic.labelled)
    return {
        "kills": kills, "swaps": swaps, "answered": len(traffic.labelled),
        "became": dict(traffic.became), "lost": sum(text.startswith("lost") for text in wrong),
        "wrong": wrong,
    }  # fmt: skip


def _compare(spool: Path, labelled: list[str]) -> list[str]:
    """Compare the sketches with the predictions that were labelled, by release and window."""
    where: dict[str, Where] = {}
    counted: Counter[Where] = Counter()
    contexts: dict[tuple[str, int], str] = {}
    for boot in boots(spool):
        for path in sorted((spool / boot).glob("*.seg")):
            for ctx, context in enumerate(_contexts(path)):
                contexts[boot, ctx] = context
    begun: set[str] = set()  # one that was killed before its first record has nothing to settle
    for boot, _, item in items(spool):
        begun.add(boot)
        if isinstance(item, Prediction):
            where.setdefault(item.id, (contexts[boot, item.ctx], window_start(item.at, WINDOW_S)))
        elif isinstance(item, Errors):
            for sketch in item.sketches:
                counted[item.contexts[sketch.ctx].model_version, sketch.start] += sketch.n
    expected = Counter(where[id] for id in labelled)
    wrong = [f"lost: {n} of {key}" for key, n in (expected - counted).items()]
    wrong += [f"counted twice: {n} of {key}" for key, n in (counted - expected).items()]
    wrong += [f"not settled: {b}" for b in sorted(begun) if settled_upto(spool / b) != DONE]
    return wrong


def _contexts(path: Path) -> list[str]:
    return [context.model_version for context in read_header(path).contexts]
