"""Hot swaps of real serving processes under load, by the agent's supervisor."""

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent.listen import listen
from agent.segments import boots
from agent.serve_protocol import ServeConfig
from agent.supervisor import Supervisor
from skerry.errors import SkerryError
from skerry.io.client import Client
from tests.fakes.serving import images, linear_release, windows

CLIENTS: Final = 2
SETTLED: Final = 10  # swaps before memory and descriptors are first looked at


class Load:
    """Clients that ask without a pause, and count."""

    def __init__(self, url: str, right: dict[str, Any]) -> None:
        self._url, self._right = url, right
        self._stop = threading.Event()
        self.answers: Counter[str] = Counter()
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        client, image, count = Client(self._url), images(1), 0
        while not self._stop.is_set():
            count += 1
            try:
                answer = client.predict("reader", {"image": image}, id=f"c{number}-{count}")
            except SkerryError as error:
                self.failed.append(str(error))
                time.sleep(0.05)
                continue
            close = [
                name
                for name, scores in self._right.items()
                if np.allclose(answer.outputs["scores"], scores, atol=1e-5)
            ]
            self.answers[close[0] if close else "wrong"] += 1
            time.sleep(0.002)
        client.close()


def hot_swaps(folder: Path, swaps: int, seed: int) -> dict[str, Any]:
    """Swap two releases to and fro.

    Args:
        folder: for releases and spool.
        swaps: how many.
        seed: of the models.
    """
    return asyncio.run(_hot_swaps(folder, swaps, seed))


async def _hot_swaps(folder: Path, swaps: int, seed: int) -> dict[str, Any]:
    made = {
        name: linear_release(folder / name, version=name, seed=seed + n)
        for n, name in enumerate(("1.0.0", "1.1.0"))
    }
    right = {name: release.run(images(1)) for name, release in made.items()}
    listener = listen("127.0.0.1", 0)
    ended: list[str] = []
    supervisor = Supervisor(
        [listener], ServeConfig("cam-1", str(folder / "spool"), []), folder, start_timeout_s=60.0,
        crashed=lambda: ended.append("crashed"), unable=ended.append,
    )  # fmt: skip
    names = list(made)
    wrong: list[str] = []
    early = late = (0, 0)
    await supervisor.ensure([made[names[0]].slot])
    url = "http://{}:{}".format(*listener.getsockname()[:2])
    with Load(url, right) as load:
        for swap in range(1, swaps + 1):
            before = load.answers[names[swap % 2]]
            await supervisor.ensure([made[names[swap % 2]].slot])
            async with asyncio.timeout(10.0):
                while load.answers[names[swap % 2]] == before:  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(0.005)
            late = await asyncio.to_thread(_held, supervisor.pid)
            if swap == min(SETTLED, swaps):
                early = late
    await supervisor.stop(10.0)
    answered = sum(load.answers.values())
    counted = sum(window.n for window in windows(folder / "spool"))
    if load.failed or load.answers["wrong"]:
        wrong.append(f"failed {load.failed[:3]}, {load.answers['wrong']} wrong")
    if counted != answered:
        wrong.append(f"{answered} answered, {counted} counted")
    if ended:
        wrong.append(f"serving processes ended: {ended[:3]}")
    if late[0] > 1.05 * early[0] or late[1] > early[1] + 2:
        wrong.append(f"memory and descriptors grew from {early} to {late}")
    return {
        "swaps": swaps, "answered": answered, "failed": len(load.failed), "counted": counted,
        "boots": len(boots(folder / "spool")), "serve_pss_kb": [early[0], late[0]],
        "descriptors": [early[1], late[1]], "wrong": wrong,
    }  # fmt: skip


def _held(pid: int | None) -> tuple[int, int]:
    """Return the PSS of a serving process in kB, and the descriptors of it and of this one."""
    time.sleep(0.3)  # the one before has left
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return pss, sum(len(list(Path(f"/proc/{who}/fd").iterdir())) for who in (pid, "self"))
