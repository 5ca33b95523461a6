"""Devices of which there are two: shut out at once, told to operators, let in again by them alone.

    ingest hears a fork  ->  state `pending` with its reason  ->  connection cut  ->  alert
    an operator looks    ->  accept: it was harmless  |  preauthorize --again: one machine enrols

The state comes first: from then on nothing is taken from the device, nothing is signed for it, and
it may not connect, even if the fleet dies before the rest is done; `look` makes up for that.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from fleet.registry import Registry
from fleet.store import Store
from fleet.store_alerts import NewAlert
from skerry.states import DeviceState

__all__ = ["DOUBT", "KIND", "Quarantine"]

log = logging.getLogger(__name__)

KIND: Final = "identity"  # of its alerts
DOUBT: Final = "identity_doubt"
DOUBT_FOR_S: Final = 86400.0  # without anything new


def utc_now() -> datetime:
    """Return the present, aware UTC."""
    return datetime.now(UTC)


class Quarantine:
    """Shuts devices out, and keeps the alerts about them."""

    def __init__(
        self, registry: Registry, store: Store, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._registry = registry
        self._store = store
        self._clock = clock

    def heard_fork(self, device: str, why: str) -> None:
        """Shut a device out, from within ingest: what goes wrong here is told, and tried again."""
        try:
            self.begin(device, why, self._clock())
        except Exception:  # what was heard is stored: its next message brings it here again
            log.exception("%s could not be shut out, %s", device, why)

    def heard_stranger(self, device: str, why: str) -> None:
        """Warn of a device, from within ingest: what goes wrong here is told."""
        try:
            self.doubt(device, why, self._clock())
        except Exception:  # it is told when it happens again
            log.exception("no alert could be raised about %s, %s", device, why)

    def begin(self, device: str, why: str, now: datetime) -> None:
        """Shut a device out; a second time changes nothing.

        Args:
            device: whose messages can come only from two machines.
            why: what was seen.
            now: aware UTC.
        """
        reason = f"two machines with one identity: {why}"
        if not self._registry.quarantine(device, reason, now):
            return
        log.error("%s is shut out, %s", device, reason)
        self._store.alerts.note("fleet", "device.quarantine", device, {"why": why}, now.timestamp())
        self._raise(device, reason, now)

    def doubt(self, device: str, why: str, now: datetime) -> None:
        """Warn of a device of which there may be two; it stays accepted.

        Args:
            device: whose messages a broker may have held back, or another machine said.
            why: what was heard.
            now: aware UTC.
        """
        message = (
            f"{device}: {why}, and never answered: the broker delivers late, or somebody else has "
            f"its key; if in doubt give it a new one (skerry devices preauthorize {device} --again)"
        )
        alert = NewAlert(DOUBT, device, "warning", message, {"device": device, "devices": [device]})
        self._store.alerts.raise_alert(alert, now.timestamp())

    def look(self, now: datetime) -> None:
        """Bring the alerts in line with the devices' states."""
        for alert in self._store.alerts.live_alerts(DOUBT):
            if now.timestamp() - alert.updated_at > DOUBT_FOR_S:
                self._store.alerts.close_alert(alert.alert_id, now.timestamp())
        shut_out = {
            view.device: view.state_reason
            for view in self._store.devices.views()
            if view.state == DeviceState.PENDING and view.state_reason
        }
        told = {alert.subject: alert for alert in self._store.alerts.live_alerts(KIND)}
        for device in sorted(shut_out.keys() - told.keys()):
            self._raise(device, shut_out[device], now)
        for device in sorted(told.keys() - shut_out.keys()):
            self._store.alerts.close_alert(told[device].alert_id, now.timestamp())

    def _raise(self, device: str, reason: str, now: datetime) -> None:
        message = (
            f"{device} is shut out: {reason}; look at the machines, then let one enrol "
            f"(skerry devices preauthorize {device} --again) or accept it as it is"
        )
        body = {"device": device, "devices": [device], "reason": reason}
        alert = NewAlert(KIND, device, "critical", message, body)
        self._store.alerts.raise_alert(alert, now.timestamp())
