"""Whether this device permits an activation: its people's consent, and its maintenance windows.

    consent     setting `consent = "ask"`: each assignment waits for `skerry-agent approve`;
                `skerry-agent defer` holds back every activation for a while, whatever the setting
    windows     setting `update_windows`: activations wait until one is open

Consent is asked first, so that what is approved in the day is activated in the night. Both are
local: nothing that the fleet sends overrides them. What a slot ran before does not wait for
either, for a return is there to end a harm. A device that does not know what time it is takes
every window for closed until the fleet has answered its nonce, or its clock is set.
"""

import logging
import os
from collections.abc import Callable, Collection
from datetime import tzinfo
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.config import AgentConfig
from agent.device_state import Slot, name_of
from agent.durable import fsync_dir
from agent.maintenance import is_open, next_open, parse_windows, parse_zone, wall
from skerry.canonical import from_json, to_json
from skerry.errors import FormatError

__all__ = ["Consent", "Hold", "Permission", "read_consent", "write_consent"]

log = logging.getLogger(__name__)

MAX_CONSENT_BYTES: Final = 64 << 10
LAST: Final = 250_000_000_000.0  # calendars end with the year 9999
MAX_APPROVED: Final = 64  # names of assignments


class Consent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What people at the device have decided, as a file in its state directory."""

    approved: list[str] = []  # `name_of` assignments that may be activated
    at_once: list[str] = []  # and those that need no window either
    deferred_until: float = 0.0  # Unix seconds; before that, only what was approved since


class Hold(msgspec.Struct, frozen=True):
    """Why an activation is not permitted now."""

    kind: Literal["window", "consent"]
    code: str  # window_closed, clock_unset, consent_needed, deferred
    message: str


def read_consent(file: Path) -> Consent:
    """Return what was decided; nothing, if there is no file, or none that can be read."""
    try:
        return from_json(file.read_bytes(), Consent, limit=MAX_CONSENT_BYTES)
    except FileNotFoundError:
        return Consent()
    except (OSError, FormatError) as error:
        log.warning("cannot read %s: %s; nothing counts as approved", file, error)
        return Consent()


def write_consent(file: Path, consent: Consent) -> None:
    """Keep what was decided: written beside, synced, renamed."""
    consent = msgspec.structs.replace(
        consent,
        approved=consent.approved[-MAX_APPROVED:],
        at_once=consent.at_once[-MAX_APPROVED:],
    )
    beside = file.with_name(f".{file.name}.new")
    with beside.open("wb") as stream:
        stream.write(to_json(consent))
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
    fsync_dir(file.parent)


class Permission:
    """Says whether a slot's candidate may be activated now.

    Args:
        config: with consent, windows and time zone.
        file: of `Consent`.
        clock: returns Unix seconds as the device knows them, None if it does not.
    """

    def __init__(self, config: AgentConfig, file: Path, clock: Callable[[], float | None]) -> None:
        self._asks = config.consent == "ask"
        self._windows = parse_windows(config.update_windows)
        self._zone = parse_zone(config.time_zone)
        self._zone_name = config.time_zone
        self._file = file
        self._clock = clock

    def hold(self, slot: Slot) -> Hold | None:
        """Return why a slot's candidate has to wait, None if it need not."""
        work = slot.work
        if work is None or work.release is None:
            return None
        if slot.previous is not None and slot.previous.ref.bundle == work.release.ref.bundle:
            return None  # a return
        consent, name, now = read_consent(self._file), name_of(work.want), self._clock()
        return self._consent(consent, name, now) or self._window(consent.at_once, name, now)

    def _consent(self, consent: Consent, name: str, now: float | None) -> Hold | None:
        if name in consent.approved or name in consent.at_once:
            return None
        if consent.deferred_until and (now is None or now < consent.deferred_until):
            until = _time(min(consent.deferred_until, LAST), self._zone)
            return Hold("consent", "deferred", f"deferred on the device until {until}")
        if self._asks:
            return Hold(
                "consent", "consent_needed", "waits for `skerry-agent approve` on the device"
            )
        return None

    def _window(self, at_once: Collection[str], name: str, now: float | None) -> Hold | None:
        if not self._windows or name in at_once:
            return None
        if now is None:
            return Hold(
                "window", "clock_unset", "the device does not know what time it is; set its clock"
            )
        if is_open(self._windows, now, self._zone):
            return None
        opens = next_open(self._windows, now, self._zone)
        when = "never" if opens is None else _time(opens, self._zone)
        place = f" ({self._zone_name})" if self._zone_name else ""
        return Hold("window", "window_closed", f"the next maintenance window opens {when}{place}")


def _time(at: float, zone: tzinfo | None) -> str:
    return f"{wall(at, zone):%Y-%m-%d %H:%M}"
