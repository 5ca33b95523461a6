"""Whom this device believes at the moment: message keys, the time, and how fresh metadata is.

Verification itself is done in a child (`agent.verify`). It is started for an assignment, and to
refresh: when the catalog has news, when a `desired` was signed anew and changes nothing, or when
the fleet speaks with a key that only a later root can name. Whether there is news is asked in one
small request, whatever the size of the catalog, and no process is started for the answer "no".

A repository whose timestamp has expired here is stale: for a week nobody has shown this device
that nothing is held back. Updates wait then; what serves goes on serving.
"""

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.clock import DeviceClock, elapsed
from agent.config import AgentConfig, Layout
from agent.device_state import State
from agent.download import Fetcher
from agent.facts import Event, FleetTimeHeard, Refreshed, Verify
from agent.identity import Identity, root_version
from agent.state import Database
from agent.threads import beside
from agent.verify import verify
from agent.verify_protocol import VerifyAnswer, VerifyRequest
from skerry.errors import NotFoundError, SkerryError, TrustError, UnreachableError
from skerry.keys import PublicKey
from skerry.trust import check_floor
from skerry.wire import Ack, signed_by

__all__ = ["Trust"]

log = logging.getLogger(__name__)

CATALOG_PATH: Final = "/tuf/catalog/metadata"
DIRECTOR_PATH: Final = "/tuf/director/metadata"
TIMESTAMP: Final = "timestamp.json"
MAX_TIMESTAMP_BYTES: Final = 4 << 10
MAX_ROOT_BYTES: Final = 16 << 10
JUMP_S: Final = 10.0
SETTLE_S: Final = 1.0  # an assignment's own verification goes first
MAX_CLOCK_OFF_S: Final = 60
UNSET: Final = 1_735_689_600.0  # 2025 began; a clock that shows less was never set
DOUBT_S: Final = 60.0  # a later root is looked for so often at most
MAX_WAITS: Final = 16  # times as long between looks, while what is there is refused


class Trust:
    """What a control process believes.

    Args:
        layout: of the state directory.
        config: settings.
        identity: with the roots of enrolment.
        database: keeps message keys.
        fleet_url: of the fleet's device listener.
        state: returns the update machine's saved state.
        handle: takes an event in.
        keys_changed: called when other message keys speak for the fleet from now on.
    """

    def __init__(
        self,
        layout: Layout,
        config: AgentConfig,
        identity: Identity,
        database: Database,
        *,
        fleet_url: str,
        state: Callable[[], State],
        handle: Callable[[Event], None],
        keys_changed: Callable[[], None],
    ) -> None:
        self._layout, self._config, self._database = layout, config, database
        self.identity = identity
        self._fleet_url = fleet_url
        self._state, self._handle, self._keys_changed = state, handle, keys_changed
        raw = database.get("message_keys", dict[str, bytes])
        self.keys = {id: PublicKey(key) for id, key in raw.items()} if raw else (
            identity.message_keys())  # fmt: skip
        self.clock: Final = DeviceClock()
        self.code = ""  # why the last refresh was refused
        self._one_at_a_time = asyncio.Lock()  # python-tuf wants its directory for itself
        self._woken = asyncio.Event()
        self._looked: tuple[float, float] | None = None  # at time and uptime
        self._doubts = False
        self._doubted_at = float("-inf")
        self._news = _News(self._fetcher(CATALOG_PATH), layout.tuf / "catalog" / TIMESTAMP)

    # --- the time ------------------------------------------------------------------------

    def now(self) -> float:
        """Return Unix seconds by the device's time."""
        return self.clock.now(self._state().floor)

    def wall_clock(self) -> float | None:
        """Return Unix seconds for what goes by the time of day, None where nobody knows them.

        What the fleet has proved counts before the system's clock, which may be ahead. A clock
        that is behind what was once proved, or in a year before this program, is not set.
        """
        proven = self.clock.proven()
        if proven is not None:
            return proven.at
        own = self.clock.own()
        return own if own >= max(self._state().floor.time, UNSET) else None

    def heard(self, ack: Ack, payload: bytes) -> None:
        """Take in the time of a verified ack, if it answers our nonce."""
        if ack.nonce and self.clock.answered(ack.nonce, ack.now, signed_by(payload)):
            self.raise_time()

    def jump_s(self) -> float:
        """Return by how much the device's time has jumped since the last call, 0 within seconds."""
        now, up = self.now(), elapsed()
        before, self._looked = self._looked or (now, up), (now, up)
        by = (now - before[0]) - (up - before[1])
        return by if abs(by) > JUMP_S else 0.0

    def stale(self) -> list[str]:
        """Return the repositories of which no fresh timestamp was seen for too long."""
        now = self.now()
        return sorted(name for name, until in self._state().until.items() if until <= now)

    def summary(self) -> str:
        """Return what is wrong with metadata here, empty if nothing is."""
        return ", ".join(word for word in ("stale" if self.stale() else "", self.code) if word)

    def clock_off_s(self) -> int:
        """Return how far the system's clock is ahead of the proven time, 0 within a minute."""
        proven = self.clock.proven()
        ahead = 0 if proven is None else round(self.clock.own() - proven.at)
        return ahead if abs(ahead) > MAX_CLOCK_OFF_S else 0

    def raise_time(self) -> None:
        """Let the floor of time follow what is proven; seldom anything has to be written."""
        proven = self.clock.proven()
        if proven is not None:
            self._handle(FleetTimeHeard(proven.at, proven.key_id))

    # --- verification -----------------------------------------------------------------------

    async def verify(self, effect: Verify) -> VerifyAnswer:
        """Verify director and catalog for an assignment.

        Raises:
            UnreachableError: they could not be had, or not kept; try again later.
            SkerryError: the verifier failed.
        """
        answer = await self._ask(effect.want.target, effect.director)
        if answer.code:
            self._learn_root(answer)
        if answer.transient:
            raise UnreachableError(answer.message)
        return answer

    async def _ask(self, target: str, director: dict[str, bytes]) -> VerifyAnswer:
        async with self._one_at_a_time:
            floor, identity = self._state().floor, self.identity
            request = VerifyRequest(
                target=target,
                director=director,
                catalog_url=self._fleet_url + CATALOG_PATH,
                catalog_root=identity.catalog_root,
                director_root=identity.director_root,
                directory=str(self._layout.tuf.absolute()),
                now=self.clock.own(),
                timeout_s=self._config.download_timeout_s,
                ca_file=str(identity.ca_file.absolute()),
                cert_file=str(identity.device_file.absolute()),
                key_file=str(identity.device_file.absolute()),
                director_url=self._fleet_url + DIRECTOR_PATH,
                signed=self.clock.signed(floor),
                root_floor=floor.metadata.get("director/root", 0),
            )
            answer = await verify(request, self._config.verify_timeout_s)
            self._take_keys(answer)
            return answer

    def _take_keys(self, answer: VerifyAnswer) -> None:
        """Take over the message keys of a director root that is not older than the last."""
        floor = self._state().floor.metadata.get("director/root", 0)
        keys = {id: PublicKey(raw) for id, raw in answer.message_keys.items()}
        if keys and keys != self.keys and answer.metadata.get("director/root", 0) >= floor:
            try:
                self._database.put("message_keys", answer.message_keys)
            except (sqlite3.Error, OSError) as error:
                text = f"cannot save the fleet's new message keys: {error}; trying again"
                raise UnreachableError(text) from None
            log.info("the fleet's message keys are now %s", ", ".join(sorted(keys)))
            self.keys = keys
            self.clock.keep(keys)
            self._keys_changed()

    def _learn_root(self, answer: VerifyAnswer) -> None:
        """A later root holds, even if what was signed under it was refused."""
        version = answer.metadata.get("director/root", 0)
        if version > self._state().floor.metadata.get("director/root", 0):
            self._handle(Refreshed({"director/root": version}, sorted(answer.message_keys)))

    # --- news -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Metadata came with a `desired`: see soon whether it is verified."""
        self._woken.set()

    def doubt(self) -> None:
        """The fleet's name was used with a key that is not known here: look for a later root."""
        if elapsed() >= self._doubted_at + DOUBT_S:
            self._doubted_at = elapsed()
            self._doubts = True
            self._woken.set()

    async def run(self, rng: random.Random) -> None:
        """Keep metadata fresh until cancelled."""
        waits = 1
        while True:
            woken = await self._sleep(rng.uniform(0.75, 1.25) * waits * self._config.news_s)
            try:
                if await self.look(ask=not woken):
                    waits = 1 if not self.code else min(2 * waits, MAX_WAITS)
            except SkerryError as error:
                log.info("no news of the catalog: %s", error)
            except Exception:
                log.exception("unexpected error; going on")

    async def look(self, *, ask: bool) -> bool:
        """Refresh if there is something to refresh; tell whether there was.

        Args:
            ask: whether to ask the fleet for news.

        Raises:
            SkerryError: the fleet cannot be asked, or the verifier failed.
        """
        doubts, self._doubts = self._doubts, False
        due = doubts and await beside(self._later_root, "trust-root")
        due = due or (ask and await beside(self._news.any, "trust-news"))
        async with self._one_at_a_time:
            pass  # what an assignment verifies now need not be verified again
        if not (due or self._director_is_new()):
            return False
        await self.refresh()
        return True

    async def refresh(self) -> None:
        """Verify both repositories as they are now, for no assignment.

        Raises:
            SkerryError: the verifier failed.
        """
        # who stole a message key may have left roots that are none: later ones come over HTTP
        director = {n: d for n, d in self._state().director.items() if not n.endswith("root.json")}
        answer = await self._ask("", director)
        state, code, why = self._state(), answer.code, answer.message
        seen: dict[str, int] = {}
        until: dict[str, float] = {}
        self._learn_root(answer)
        for name, expires in answer.until.items():
            mine = {n: v for n, v in answer.metadata.items() if n.startswith(f"{name}/")}
            try:
                check_floor(state.floor.metadata, mine)
            except TrustError as error:
                code, why = (code, why) if code else (error.code, str(error))
            else:
                seen |= mine
                until[name] = expires
        if seen:
            self._handle(Refreshed(seen, sorted(answer.message_keys), until))
            self.raise_time()
        if code not in {self.code, "unreachable"}:
            self.code = code
            text = f"refused: {why} ({code})" if code else "fresh"
            log.log(logging.WARNING if code else logging.INFO, "metadata is %s", text)

    def _director_is_new(self) -> bool:
        latest = self._state().director.get(TIMESTAMP)
        return latest is not None and latest != _bytes(self._layout.tuf / "director" / TIMESTAMP)

    def _later_root(self) -> bool:
        version = self._state().floor.metadata.get("director/root", 0) or root_version(
            self.identity.director_root
        )
        try:
            fetcher = self._fetcher(DIRECTOR_PATH)
            return bool(fetcher.small(f"/{version + 1}.root.json", MAX_ROOT_BYTES))
        except NotFoundError:
            return False

    async def _sleep(self, seconds: float) -> bool:
        """Wait; tell whether somebody ended the wait."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        await asyncio.sleep(SETTLE_S)
        return True

    def _fetcher(self, path: str) -> Fetcher:
        identity = self.identity
        return Fetcher(
            self._fleet_url + path,
            timeout_s=self._config.download_timeout_s,
            ca_file=identity.ca_file,
            cert_file=identity.device_file,
            key_file=identity.device_file,
        )


class _News:
    """Asks whether the catalog has another timestamp than the one that was verified."""

    def __init__(self, fetcher: Fetcher, verified: Path) -> None:
        self._fetcher = fetcher
        self._verified = verified
        self._etag = ""  # of what was verified, once the fleet has named it

    def any(self) -> bool:
        held = _bytes(self._verified)
        if not held:
            self._etag = ""
        answer = self._fetcher.unless(f"/{TIMESTAMP}", self._etag, MAX_TIMESTAMP_BYTES)
        if answer is None:
            return False
        data, etag = answer
        self._etag = etag if data == held else ""
        return data != held


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
