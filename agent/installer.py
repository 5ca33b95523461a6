"""Carries out the effects of the update machine; every outcome goes back to it as an event.

One task per slot: a new effect takes the place of the one before. What fails for want of a
connection is tried again until the assignment's deadline ends it. All of it may be done
twice: files have their digests as names, and the supervisor is told what shall serve, not
what shall change.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from agent.bundle_files import BundleFiles
from agent.child import StartFailed
from agent.device_state import Doing, Slot, State, doing, serving
from agent.facts import (
    Activate,
    Activated,
    Discard,
    Download,
    Downloaded,
    EffectItem,
    Event,
    Failed,
    Held,
    Noted,
    Observe,
    ProbationObserved,
    Rejected,
    Release,
    Report,
    Restore,
    RollBack,
    RolledBack,
    Shadowed,
    SmokeFailed,
    Stage,
    Staged,
    Unfit,
    Verified,
    Verify,
    Wait,
)
from agent.pace import SlowError
from agent.permission import Hold
from agent.settling import Settler
from agent.shadow_run import shadow_run, why_not
from agent.staging import Staging, trial_of
from agent.supervisor import Supervisor
from agent.verify_protocol import VerifyAnswer
from skerry.errors import (
    FormatError,
    NotFoundError,
    RefusedError,
    SkerryError,
    TrustError,
    UnreachableError,
)
from skerry.trials import ShadowReport, Trial
from skerry.wire import LiveStats

__all__ = ["Installer"]

log = logging.getLogger(__name__)

OBSERVE_S: Final = 0.5
PERMIT_S: Final = 2.0  # consent and windows are looked at so often
RETRY_BASE_S: Final = 0.5
RETRY_CAP_S: Final = 60.0
STARTING: Final = ""  # no slot's name
WATCHING: Final = " "  # nor this one
TELL: Final = 3  # after so many tries the fleet is told that a connection is missing
FIRST_S: Final = 90.0
STARTS: Final = 3  # of serve with a candidate
TRIES: Final = 4  # of what is not a matter of the connection


class Installer:
    """Acts for the update machine.

    Args:
        files: fetches and keeps bundles.
        supervisor: of the serving process.
        verifier: verifies one assignment's metadata.
        state: returns the machine's saved state.
        handle: takes an event in.
        report: tells the fleet the reported state.
        rng: for the jitter of retries.
        staging: tries variants.
        permits: says why a slot's candidate may not be activated now, None if it may.
    """

    def __init__(
        self,
        files: BundleFiles,
        supervisor: Supervisor,
        *,
        verifier: Callable[[Verify], Coroutine[Any, Any, VerifyAnswer]],
        state: Callable[[], State],
        handle: Callable[[Event], None],
        report: Callable[[], None],
        rng: random.Random,
        staging: Staging,
        permits: Callable[[Slot], Hold | None] = lambda _: None,
    ) -> None:
        self._permits = permits
        self._staging = staging
        self._files = files
        self._supervisor = supervisor
        self._verifier = verifier
        self._state = state
        self._handle = handle
        self._report = report
        self._rng = rng
        self._settler = Settler(files, supervisor, state=state, handle=handle, pause=self._pause)
        self._tasks: dict[str, tuple[EffectItem | None, asyncio.Task[None]]] = {}

    def carry_out(self, effect: EffectItem) -> None:
        """Begin to carry out an effect."""
        match effect:
            case Report():
                self._report()
            case Discard():
                self._discard(effect)
            case _:
                self._begin(effect.slot, effect)

    async def stop(self) -> None:
        """Stop everything that is under way; a restart goes on with it."""
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin_serving(self) -> None:
        """Let what is committed, or in probation, serve, however often it takes."""
        watching = asyncio.create_task(self._settler.watch(), name="serve-steady")
        self._tasks[WATCHING] = None, watching
        if serving(self._state()):
            starting = asyncio.create_task(self._settler.start(), name="serve-start")
            self._tasks[STARTING] = None, starting

    async def serve(self) -> None:
        """Let what is committed, or in probation, serve; see `Settler.serve`."""
        await self._settler.serve()

    def _begin(self, slot: str, effect: EffectItem) -> None:
        running = self._tasks.get(slot)
        if running is not None and not running[1].done():
            if running[0] == effect:
                return
            running[1].cancel()
        name = f"{type(effect).__name__.lower()}-{slot}"
        self._tasks[slot] = effect, asyncio.create_task(self._guarded(effect), name=name)

    async def _guarded(self, effect: EffectItem) -> None:
        try:
            await self._act(effect)
        except Exception as error:
            log.exception("unexpected error in %s", type(effect).__name__)
            match effect:
                case Stage(slot, id, _, variant):
                    self._handle(SmokeFailed(slot, id, variant, "internal", repr(error)))
                case Wait(slot, id):
                    self._handle(Rejected(slot, id, "internal", repr(error)))
                case Verify(slot, id) | Download(slot, id) | Activate(slot, id):
                    self._handle(Failed(slot, id, "internal", repr(error)))

    async def _act(self, effect: EffectItem) -> None:
        match effect:
            case Verify():
                self._handle(await self._verified(effect))
            case Download():
                await self._download(effect)
            case Stage():
                await self._stage(effect)
            case Wait():
                await self._wait(effect)
            case Activate():
                await self._activate(effect)
            case Observe():
                await self._observe(effect)
            case RollBack():
                await self._settler.settle()
                self._handle(RolledBack(effect.slot, effect.assignment_id))
            case Restore():
                await self._settler.settle()

    async def _verified(self, effect: Verify) -> Event:
        answer = await self._persist(lambda: self._verifier(effect), effect)
        slot, id = effect.slot, effect.assignment_id
        if isinstance(answer, SkerryError):
            return Failed(slot, id, "verifier_failed", str(answer))
        if answer.assigned is None or answer.released is None:
            return Rejected(slot, id, answer.code, answer.message)
        return Verified(
            slot, id, answer.assigned, answer.released, answer.metadata,
            sorted(answer.message_keys), answer.until,
        )  # fmt: skip

    async def _wait(self, effect: Wait) -> None:
        """Wait for leave, and verify again: metadata may have expired, or been withdrawn."""
        slot, id = effect.slot, effect.assignment_id
        while True:
            state = self._state()
            hold = self._permits(state.slots[slot])
            if hold is not None:
                self._handle(Held(slot, id, hold.kind, hold.code, hold.message))
                await asyncio.sleep(PERMIT_S)
                continue
            found = await self._verified(Verify(slot, id, effect.want, state.director))
            if isinstance(found, Failed):
                log.warning("%s: cannot verify what has waited: %s", slot, found.message)
                await self._pause(TRIES)
            elif self._permits(self._state().slots[slot]) is None or isinstance(found, Rejected):
                self._handle(found)
                return

    async def _download(self, effect: Download) -> None:
        slot, id, release = effect.slot, effect.assignment_id, effect.release
        manifest = await self._persist(lambda: self._files.fetch_manifest(release), effect)
        if isinstance(manifest, SkerryError):
            self._handle(_outcome(slot, id, manifest))
            return
        variants, reasons = self._files.fitting(manifest)
        if not variants:
            self._handle(Unfit(slot, id, "; ".join(reasons)))
            return
        variants = self._staging.order(manifest, variants)
        done = await self._persist(lambda: self._files.fetch_variant(release, variants[0]), effect)
        if isinstance(done, SkerryError):
            self._handle(_outcome(slot, id, done))
        else:
            self._handle(Downloaded(slot, id, variants))

    async def _stage(self, effect: Stage) -> None:
        slot, id, variant = effect.slot, effect.assignment_id, effect.variant
        done = await self._persist(
            lambda: self._files.fetch_variant(effect.release, variant), effect
        )
        if isinstance(done, SkerryError):
            code = done.code if isinstance(done, TrustError) else "not_downloaded"
            self._handle(SmokeFailed(slot, id, variant, code, str(done)))
            return
        best, found = await self._staging.run(effect, lambda other: self._fetch_once(effect, other))
        if not found[best].ok:
            result = found[best]
            log.warning("%s: variant %s: %s (%s)", slot, best, result.message, result.code)
            self._handle(
                SmokeFailed(slot, id, best, result.code, result.message, [trial_of(best, result)])
            )
            return
        trials = [trial_of(name, result) for name, result in found.items()]
        refusal = await self._beside(effect, best)
        if refusal is not None:
            self._handle(msgspec.structs.replace(refusal, trials=trials))
            return
        self._handle(self._staged(slot, id, best, trials))

    def _staged(self, slot: str, id: str, variant: str, trials: list[Trial]) -> Staged:
        hold = self._permits(self._state().slots[slot])
        held = ("", "", "") if hold is None else (hold.kind, hold.code, hold.message)
        return Staged(slot, id, variant, *held, trials)

    async def _beside(self, effect: Stage, variant: str) -> Failed | None:
        """Run a candidate beside what serves, if that is asked for; why it shall not serve."""
        slot, id = effect.slot, effect.assignment_id
        here = self._state().slots[slot]
        plan = here.work.want.shadow if here.work is not None else None
        if plan is None or here.current is None:  # beside nothing there is nothing to see
            return None
        files = self._files
        reason = why_not(
            files.manifest(here.current.ref.bundle), files.manifest(effect.release.ref.bundle)
        )
        if reason:
            report = ShadowReport(0, 0)
        else:
            report = await shadow_run(files, self._supervisor, slot, effect.release, variant, plan)
            reason = f"{report.agree} of {report.rows} rows agree, {report.errors} errors"
        self._handle(Shadowed(slot, id, report))
        if report.verdict == "agrees" or (report.verdict == "undecided" and not plan.required):
            return None
        return Failed(slot, id, f"shadow_{report.verdict}", f"beside what serves: {reason}")

    async def _fetch_once(self, effect: Stage, variant: str) -> SkerryError | None:
        try:
            await self._files.fetch_variant(effect.release, variant)
        except SkerryError as error:
            return error
        except OSError as error:
            return SkerryError(str(error))
        return None

    async def _activate(self, effect: Activate) -> None:
        slot, id = effect.slot, effect.assignment_id
        if STARTING in self._tasks and self._supervisor.pid is None:
            # what is committed comes first, if it comes at all
            await asyncio.wait({self._tasks[STARTING][1]}, timeout=FIRST_S)
        before = self._live(slot, self._state().slots[slot].current)
        await self._settler.heal(but=slot)
        for attempt in range(1, STARTS + 1):
            try:
                await asyncio.to_thread(self._files.check, effect.release)
                await self.serve()
            except (NotFoundError, FormatError) as error:
                self._handle(Failed(slot, id, "files_damaged", str(error)))
            except StartFailed as error:
                log.warning("%s: start %d of %d failed: %s", slot, attempt, STARTS, error)
                if attempt < STARTS:
                    await self._pause(attempt)
                    continue
                self._handle(Failed(slot, id, "serve_failed", str(error)))
            else:
                self._handle(Activated(slot, id, before))
            return

    def _live(self, slot: str, release: Release | None) -> LiveStats | None:
        """Return what a release does on live traffic, None for no release."""
        if release is None:
            return None
        now = asyncio.get_running_loop().time()
        return self._supervisor.live(slot, release.ref.bundle, now)

    async def _observe(self, effect: Observe) -> None:
        slot, id = effect.slot, effect.assignment_id
        while True:
            work = self._state().slots[slot].work
            if work is None or work.release is None:
                return
            live = self._live(slot, work.release)
            assert live is not None
            self._handle(ProbationObserved(slot, id, live))
            await asyncio.sleep(OBSERVE_S)

    async def _persist(
        self, work: Callable[[], Coroutine[Any, Any, Any]], effect: Verify | Download | Stage
    ) -> Any:  # the work's result, or the error that ended it
        """Do work until it is done; without a connection for ever, else a few times."""
        attempt = failures = 0
        while True:
            try:
                return await work()
            except TrustError as error:
                return error
            except UnreachableError as error:
                if attempt == 0:
                    log.warning("%s; trying again", error)
                if isinstance(error, SlowError) or attempt == TELL:
                    code = "slow_retrieval" if isinstance(error, SlowError) else "unreachable"
                    self._handle(Noted(effect.slot, effect.assignment_id, code, str(error)))
            except (NotFoundError, RefusedError, FormatError, SkerryError, OSError) as error:
                failures += 1
                log.warning("%s", error)
                if failures >= TRIES:
                    return error if isinstance(error, SkerryError) else SkerryError(str(error))
            attempt += 1
            await self._pause(attempt)

    async def _pause(self, attempt: int) -> None:
        ceiling = min(RETRY_CAP_S, RETRY_BASE_S * 2.0 ** min(attempt, 16))
        await asyncio.sleep(self._rng.uniform(0.1, ceiling))

    def _discard(self, effect: Discard) -> None:
        state = self._state()
        for name, (carried, task) in list(self._tasks.items()):
            slot = state.slots.get(name)
            idle = slot is not None and doing(slot) is Doing.IDLE
            if idle and not isinstance(carried, Restore):
                task.cancel()
                del self._tasks[name]
        with contextlib.suppress(OSError):
            for bundle in self._files.keep_only(effect.keep):
                log.info("removed bundle %s", bundle)


def _outcome(slot: str, id: str, error: SkerryError) -> Event:
    if isinstance(error, TrustError):
        return Rejected(slot, id, error.code, str(error))
    if isinstance(error, RefusedError):
        return Failed(slot, id, error.code, str(error))
    code = {NotFoundError: "not_found", FormatError: "bad_bundle"}
    return Failed(slot, id, code.get(type(error), "download_failed"), str(error))
