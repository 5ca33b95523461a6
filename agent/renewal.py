"""Renewal: a new key with a new certificate at two thirds of the old one's life, without a restart.

The rule, which takes time and chance as arguments (`Plan`):

1. Due at two thirds of the life, and up to a thirtieth later, each device at its own time.
2. After a failure again, later each time, at most every few hours; never given up.
3. When it has expired, nothing here can help: an operator must preauthorize the device again. What
   serves goes on serving, and records are kept. It has not while the system's clock says so: the
   fleet's own time may come from who stole its message key.

The act: key and request are made, the fleet answers over TLS with the old certificate, key and
certificate are written as one file, and the new one is used once, upon which the fleet forgets the
old one. A crash before the write leaves the old, which still holds; a crash after it the new.

And back: a fleet that was restored from a backup may have forgotten the latest renewal. The former
certificate is kept, and is taken again if the fleet refuses the new one and still knows that.
"""

import asyncio
import contextlib
import enum
import logging
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agent.ask import ask
from agent.certificates import (
    Validity,
    check_certificate,
    key_pem,
    make_key,
    signing_request,
    validity_of,
)
from agent.identity import Identity, save_certificate, write_private
from agent.threads import beside
from skerry.canonical import from_json, to_json
from skerry.enrolment import RENEW_PATH, RenewAnswer, RenewRequest
from skerry.errors import FormatError, RefusedError, SkerryError
from skerry.io.tls import client_context

__all__ = ["Keeper", "Need", "Plan", "expired_advice", "go_back", "renew"]

log = logging.getLogger(__name__)

DUE_AT: Final = 2 / 3  # of a certificate's life
SPREAD: Final = 1 / 30
LOOK_EVERY_S: Final = 30.0
BASE_S: Final = 60.0
CAP_S: Final = 4 * 3600.0
MAX_ANSWER_BYTES: Final = 64 * 1024
USE_PATH: Final = "/v2/"
FORMER_FILE: Final = "device-former.pem"
APART_S: Final = 300.0  # without a connection, before the certificate is suspected


class Need(enum.Enum):
    """What a certificate needs."""

    NOTHING = "nothing"
    RENEWAL = "renewal"
    PREAUTHORIZATION = "preauthorization"  # it has expired


@dataclass(slots=True)
class Plan:
    """When to renew.

    Attributes:
        spread: 0 to 1, of this device: its place among all that are due on one day.
        failures: since the last renewal.
        again_at: not before this time, in monotonic seconds.
    """

    spread: float
    failures: int = 0
    again_at: float = 0.0

    def need(self, validity: Validity, now: float, mono: float) -> Need:
        """Say what a certificate needs now.

        Args:
            validity: of the certificate.
            now: Unix seconds.
            mono: monotonic seconds.
        """
        life = validity.ends - validity.starts
        if now >= validity.ends:
            return Need.PREAUTHORIZATION
        if now < validity.starts + life * (DUE_AT + SPREAD * self.spread) or mono < self.again_at:
            return Need.NOTHING
        return Need.RENEWAL

    def failed(self, mono: float, chance: float) -> None:
        """Put the next attempt off: by half to all of a doubling time.

        Args:
            mono: monotonic seconds.
            chance: 0 to 1.
        """
        wait_s = min(CAP_S, BASE_S * 2.0 ** min(self.failures, 32))
        self.failures += 1
        self.again_at = mono + wait_s * (0.5 + 0.5 * chance)

    def renewed(self) -> None:
        """Begin anew."""
        self.failures, self.again_at = 0, 0.0


def renew(identity: Identity, url: str) -> None:
    """Get a new certificate for a new key, keep both, and use them once.

    Args:
        identity: whose certificate it is.
        url: of the fleet's device listener.

    Raises:
        SkerryError: there is no new certificate; the old one is as it was.
        OSError: it could not be read or written.
    """
    device_id, url = identity.record.device_id, url.rstrip("/")
    key = make_key()
    request = RenewRequest(signing_request(key, device_id))
    context = _context(identity, identity.device_file)
    data = ask(url + RENEW_PATH, context, body=to_json(request), limit=MAX_ANSWER_BYTES)
    answer = from_json(data, RenewAnswer, limit=MAX_ANSWER_BYTES)
    check_certificate(answer.certificate, answer.ca, key, device_id)
    write_private(identity.folder / FORMER_FILE, identity.device_file.read_bytes())
    save_certificate(identity.folder, key_pem(key), answer.certificate, answer.ca)
    try:
        _is_accepted(identity, url, identity.device_file)
    except (SkerryError, OSError) as error:
        # the next connection does as well
        log.info("the new certificate could not be used yet: %s", error)


def go_back(identity: Identity, url: str) -> bool:
    """Take the former certificate again, if the fleet refuses this one and accepts that.

    Args:
        identity: whose certificates they are.
        url: of the fleet's device listener.

    Raises:
        SkerryError: the fleet was not to be asked.
        OSError: a file could not be read or written.
    """
    former = identity.folder / FORMER_FILE
    url = url.rstrip("/")
    if not former.exists() or _is_accepted(identity, url, identity.device_file):
        return False
    if not _is_accepted(identity, url, former):
        return False
    write_private(identity.device_file, former.read_bytes())
    former.unlink()
    return True


def _is_accepted(identity: Identity, url: str, file: Path) -> bool:
    try:
        ask(url + USE_PATH, _context(identity, file), limit=MAX_ANSWER_BYTES)
    except RefusedError as error:
        if error.code != "certificate_refused":
            raise
        return False
    return True


def _context(identity: Identity, file: Path) -> ssl.SSLContext:
    return client_context(identity.ca_file, file, file)


def expired_advice(device_id: str, ends: float) -> str:
    """Say what to do about a certificate that has expired."""
    return (
        f"the certificate of {device_id} expired on {_day(ends)}; have an operator run "
        f"`skerry devices preauthorize {device_id} --again`, then here: "
        "skerry-agent enroll --again --token TOKEN (what serves goes on serving, records are kept)"
    )


class Keeper:
    """Keeps the certificate of a running agent current.

    Args:
        identity: whose certificate it is.
        url: of the fleet's device listener.
        now: returns the device's time, Unix seconds.
        renewed: called when there is another certificate.
        connected: tells whether the broker takes this one.
        rng: for spread and back-off.
    """

    def __init__(
        self,
        identity: Identity,
        url: str,
        *,
        now: Callable[[], float],
        renewed: Callable[[], None],
        connected: Callable[[], bool],
        rng: random.Random,
    ) -> None:
        self._identity, self._url = identity, url
        self._now, self._renewed, self._connected, self._rng = now, renewed, connected, rng
        self._apart_since: float | None = None
        self._plan = Plan(rng.random())
        self._told: Need | None = None
        self.expires = 0.0  # Unix seconds; 0: not known

    async def run(self) -> None:
        """Renew whenever it is due, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("unexpected error; going on")
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> Need:
        """Renew if it is due; return what was needed."""
        try:
            # read each time: an enrolment beside this process may have replaced it
            validity = validity_of(self._identity.device_file)
        except FormatError as error:
            need, advice, self.expires = Need.PREAUTHORIZATION, str(error), 0.0
        else:
            self.expires = validity.ends
            need = self._plan.need(validity, self._now(), time.monotonic())
            advice = expired_advice(self._identity.record.device_id, validity.ends)
        if need is Need.PREAUTHORIZATION and self._told is not need:
            log.error("%s", advice)
        self._told = need
        if need is Need.RENEWAL or (need is Need.PREAUTHORIZATION and self._is_disputed()):
            await self._renew()
        elif need is Need.NOTHING:
            await self._suspect()
        return need

    def _is_disputed(self) -> bool:
        """Tell whether the certificate is only due by the system's clock, and so worth a try.

        Who stole a message key may tell a time at which every certificate has expired.
        """
        with contextlib.suppress(FormatError):
            validity = validity_of(self._identity.device_file)
            return self._plan.need(validity, time.time(), time.monotonic()) is Need.RENEWAL
        return False

    async def _suspect(self) -> None:
        """Ask the fleet about this certificate when the broker has not taken it for long."""
        mono = time.monotonic()
        if self._connected():
            self._apart_since = None
            return
        if self._apart_since is None:
            self._apart_since = mono
        if mono - self._apart_since < APART_S:
            return
        self._apart_since = mono
        with contextlib.suppress(SkerryError, OSError):
            if await beside(lambda: go_back(self._identity, self._url), "certificate"):
                log.warning("the fleet has forgotten the latest renewal; the one before it is used")
                self._plan.renewed()
                self._renewed()

    async def _renew(self) -> None:
        old = validity_of(self._identity.device_file)
        try:
            await beside(lambda: renew(self._identity, self._url), "renewal")
        except (SkerryError, OSError) as error:
            if self._plan.failures == 0:
                log.warning(
                    "the certificate, good until %s, was not renewed: %s; trying again",
                    _day(old.ends), error,
                )  # fmt: skip
            self._plan.failed(time.monotonic(), self._rng.random())
            return
        self._plan.renewed()
        log.info("new certificate, until %s", _day(validity_of(self._identity.device_file).ends))
        self._renewed()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
