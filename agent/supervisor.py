"""Keeps a serving process alive, and swaps it for another without refusing a request.

    swap     start the new beside the old -> it is warm -> it accepts -> the old one drains
    crash    start again with the same slots, at growing intervals; three failures in a row
             are reported, so that an earlier release may take over

The listening sockets belong to this process and are shared with the children, so that they
outlive them. One `ensure` runs at a time; asking twice for the same is one act.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.child import CONFIG_PREFIX, Child, StartFailed
from agent.config import AgentConfig, Layout
from agent.serve_protocol import (
    Accept,
    Drain,
    FeedbackSettings,
    InputSettings,
    MirrorTo,
    ServeConfig,
    ServeSlot,
    Settings,
    SlotStats,
)
from skerry.wire import LiveStats

__all__ = ["Supervisor", "feedback_settings"]

log = logging.getLogger(__name__)

STEADY_S: Final = 10.0  # a child that lived so long has started well
FAILED_STARTS: Final = 3
RESTART_CAP_S: Final = 30.0
BACKLOG: Final = 256
_NOTHING: Final = SlotStats(answered=0, errors=0)


class Supervisor:
    """The serving process, and the one that follows it.

    Args:
        listeners: the listening sockets.
        config: of the serving process; its slots are replaced.
        folder: where configuration files are written.
        start_timeout_s: until the models must be warm.
        crashed: called when the serving process ended by itself.
        unable: called with a message after three failed starts in a row.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        config: ServeConfig,
        folder: Path,
        *,
        start_timeout_s: float,
        crashed: Callable[[], None],
        unable: Callable[[str], None],
    ) -> None:
        for left in folder.glob(f"{CONFIG_PREFIX}*"):
            left.unlink(missing_ok=True)
        self._listeners = listeners
        self._config = config
        self._folder = folder
        self._start_timeout_s = start_timeout_s
        self._crashed = crashed
        self._unable = unable
        self._lock = asyncio.Lock()
        self._child: Child | None = None
        self._wanted: list[ServeSlot] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._window_s, self._inputs = config.window_s, config.inputs
        self._before: dict[tuple[str, str], SlotStats] = {}  # of children that crashed
        self._since: dict[tuple[str, str], float] = {}
        self._mirrors: dict[str, MirrorTo] = {}
        self.restarts = 0
        self._unrecorded = 0

    @property
    def pid(self) -> int | None:
        """The process id of the serving process, None while there is none."""
        return self._child.pid if self._child is not None and self._child.alive else None

    @property
    def unrecorded(self) -> int:
        """Predictions that were answered and counted, and for whose record there was no room."""
        return self._unrecorded + (self._child.unrecorded if self._child is not None else 0)

    async def ensure(self, slots: Sequence[ServeSlot]) -> None:
        """Let exactly these slots be served.

        Raises:
            StartFailed: the new process did not become ready; what served before still does.
        """
        async with self._lock:
            wanted = sorted(slots, key=lambda slot: slot.slot)
            if wanted == self._wanted and (not wanted or self.pid is not None):
                return
            await self._swap(wanted)

    def set_recording(self, window_s: float, inputs: InputSettings) -> None:
        """Change the length of sketch windows, and which raw inputs are recorded."""
        self._window_s, self._inputs = window_s, inputs
        if self._child is not None:
            self._child.send(Settings(window_s, inputs))

    def mirror(self, message: MirrorTo) -> None:
        """Let serve show a slot's requests to a shadow, or no more; also one started later."""
        self._mirrors[message.slot] = message
        if not message.path:
            del self._mirrors[message.slot]
        if self._child is not None:
            self._child.send(message)

    def live(self, slot: str, bundle: str, now: float) -> LiveStats:
        """Return what a release did on live traffic since it began to serve in this process.

        Args:
            slot: its slot.
            bundle: its digest.
            now: of the running loop, seconds.
        """
        key = slot, bundle
        since = self._since.get(key)
        if since is None:
            return LiveStats()
        old, new = self._before.get(key, _NOTHING), _NOTHING
        if self._child is not None:
            new = self._child.stats.get(slot, _NOTHING)
        return LiveStats(
            answered=old.answered + new.answered,
            errors=old.errors + new.errors,
            p50_us=new.p50_us,
            p99_us=new.p99_us,
            seconds=now - since,
        )

    async def stop(self, timeout_s: float) -> None:
        """Drain, and end every child within `timeout_s` seconds."""
        if self._watch is not None:
            self._watch.cancel()
        children = [] if self._child is None else [self._child]
        self._child = None
        for child in children:
            self._leave(child, timeout_s)
        while self._leaving:
            await asyncio.wait(self._leaving)
        for listener in self._listeners:
            listener.close()

    async def _swap(self, wanted: list[ServeSlot]) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        old = self._child
        try:
            new = await self._start(wanted)
        except StartFailed:
            if old is not None:
                self._watch = asyncio.create_task(self._keep(old), name="serve-watch")
            raise
        if old is not None:
            self._remember(old)
        self._child, self._wanted = new, wanted
        self._take_over(new)
        self._watch = asyncio.create_task(self._keep(new), name="serve-watch")
        if old is not None:
            self._leave(old, self._config.drain_s + 5.0)

    async def _start(self, slots: list[ServeSlot]) -> Child:
        try:
            for listener in self._listeners:
                # connections that outlive this process must not keep the next one from its port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.listen(BACKLOG)  # until now, clients were refused at once
        except OSError as error:
            raise StartFailed(f"cannot listen: {error.strerror}") from None
        config = msgspec.structs.replace(
            self._config, slots=slots, window_s=self._window_s, inputs=self._inputs
        )
        return await Child.start(
            config, self._folder, self._listeners, timeout_s=self._start_timeout_s
        )

    def _take_over(self, child: Child) -> None:
        now = asyncio.get_running_loop().time()
        served = {(slot.slot, slot.bundle) for slot in self._wanted}
        self._since = {key: self._since.get(key, now) for key in served}
        self._before = {key: stats for key, stats in self._before.items() if key in served}
        child.send(Accept())
        child.send(Settings(self._window_s, self._inputs))
        for mirror in self._mirrors.values():
            child.send(mirror)

    async def _keep(self, child: Child) -> None:
        """Watch a child; start another when it ends."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            reason = await child.ended()
            self._remember(child)
            self.restarts += 1
            log.warning("the serving process ended by itself (%s); starting it again", reason)
            self._crashed()
            steady = asyncio.get_running_loop().time() - began >= STEADY_S
            failures = 0 if steady else failures + 1
            while True:
                if failures and failures % FAILED_STARTS == 0:
                    self._unable(f"it did not start {failures} times in a row: {reason}")
                if failures > 1:
                    await asyncio.sleep(min(0.25 * 2.0**failures, RESTART_CAP_S))
                try:
                    new = await self._start(self._wanted)
                    break
                except StartFailed as error:
                    reason, failures = str(error), failures + 1
            self._child = child = new
            self._take_over(new)

    def _remember(self, child: Child) -> None:
        """Keep what a child has answered, for the releases that go on in the next one."""
        for slot in self._wanted:
            last = child.stats.get(slot.slot)
            if last is not None:
                key = slot.slot, slot.bundle
                old = self._before.get(key, _NOTHING)
                self._before[key] = SlotStats(
                    answered=old.answered + last.answered, errors=old.errors + last.errors
                )
        self._unrecorded += child.unrecorded
        if self._child is child:
            self._child = None

    def _leave(self, child: Child, timeout_s: float) -> None:
        child.send(Drain())
        task = asyncio.create_task(child.finish(timeout_s), name=f"serve-{child.pid}-drain")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def feedback_settings(config: AgentConfig, layout: Layout) -> FeedbackSettings:
    """Return how serve holds predictions for labels that come later."""
    return FeedbackSettings(
        folder=str(layout.feedback.absolute()),
        slots=list(config.feedback_slots),
        predictions=config.feedback_predictions,
        hold_s=config.feedback_hold_s,
    )
