"""Lets what shall serve serve, whatever it takes.

What is damaged is fetched again. While that cannot be done and nothing serves, the slots that are
whole serve without it: one broken slot does not silence the others. Where it goes on for too long,
the update machine is told, and lets an earlier release take over (`agent.nets`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from agent.bundle_files import BundleFiles
from agent.device_state import Doing, State, doing, serving
from agent.facts import Event, Release, ServeUnable, Steadied
from agent.supervisor import Supervisor
from skerry.errors import FormatError, NotFoundError, SkerryError

__all__ = ["Settler"]

log = logging.getLogger(__name__)

TRIES: Final = 4  # to let what shall serve serve, before the update machine is told
STEADY_S: Final = 3600.0  # so long without a crash, and what is committed is known to be good


class Settler:
    """Acts for slots at rest.

    Args:
        files: fetches and keeps bundles.
        supervisor: of the serving process.
        state: returns the machine's saved state.
        handle: takes an event in.
        pause: waits before so many-th try.
    """

    def __init__(
        self,
        files: BundleFiles,
        supervisor: Supervisor,
        *,
        state: Callable[[], State],
        handle: Callable[[Event], None],
        pause: Callable[[int], Awaitable[None]],
    ) -> None:
        self._files = files
        self._supervisor = supervisor
        self._state = state
        self._handle = handle
        self._pause = pause

    async def serve(self, without: Collection[str] = ()) -> None:
        """Let what is committed, or in probation, serve; but not these slots.

        Raises:
            StartFailed: the serving process did not become ready.
            NotFoundError: a manifest is missing.
            FormatError: a manifest is damaged.
        """
        slots = {n: release for n, release in serving(self._state()).items() if n not in without}
        await self._supervisor.ensure(
            [self._files.serve_slot(name, release) for name, release in slots.items()]
        )

    async def start(self) -> None:
        """Let something serve after a start, at once.

        A candidate that was being activated may be what ended the last process: what is committed
        serves first, and the activation, which is repeated, comes after it.
        """
        state = self._state()
        first = {
            name: slot.current
            for name, slot in state.slots.items()
            if doing(slot) is Doing.ACTIVATING and slot.current is not None
        }
        if not first:
            await self.settle()
            return
        shall = {**serving(state), **first}
        try:
            for release in shall.values():
                await asyncio.to_thread(self._files.check, release)
            await self._supervisor.ensure(
                [self._files.serve_slot(name, release) for name, release in sorted(shall.items())]
            )
        except SkerryError as error:
            log.warning("what is committed does not serve: %s; going on with the candidate", error)

    async def settle(self) -> None:
        """Let what shall serve serve, however often it takes."""
        attempt = 0
        while True:
            broken: dict[str, SkerryError] = {}
            shall = serving(self._state())
            for name, release in shall.items():
                try:
                    await self._whole(release)
                except SkerryError as error:
                    log.warning("slot %s is not whole: %s", name, error)
                    broken[name] = error
            fault = None
            # what still serves goes on until all is well; nothing is better than a part of it
            if not broken or (self._supervisor.pid is None and len(broken) < len(shall)):
                try:
                    await self.serve(without=broken)
                except SkerryError as error:
                    log.warning("what shall serve does not: %s", error)
                    fault = error
            if not broken and fault is None:
                return
            attempt += 1
            if attempt % TRIES == 0:
                for name, why in broken.items():
                    self._handle(ServeUnable(str(why), name))
                if fault is not None and not broken:
                    self._handle(ServeUnable(str(fault)))
            await self._pause(attempt)

    async def heal(self, but: str) -> None:
        """Fetch again what is damaged of the other slots, which a new process loads anew."""
        for name, release in serving(self._state()).items():
            try:
                if name != but:
                    await self._whole(release)
            except SkerryError as error:
                log.warning("slot %s is not whole: %s", name, error)

    async def watch(self) -> None:
        """Say from time to time that what serves has done so for long without a crash."""
        while True:
            before = self._supervisor.restarts
            await asyncio.sleep(STEADY_S)
            if self._supervisor.pid is not None and self._supervisor.restarts == before:
                self._handle(Steadied())

    async def _whole(self, release: Release) -> None:
        try:
            await asyncio.to_thread(self._files.check, release)
        except (NotFoundError, FormatError) as error:
            log.warning("%s; fetching it again", error)
            await self._files.fetch_manifest(release)
            await self._files.fetch_variant(release, release.ref.variant)
