"""The trust of a running fleet, kept up: changes of keys, renewals, and warnings in time."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from fleet.catalog import Catalog, Expiring
from fleet.director import Director
from fleet.keystore import OnlineKeys, load_online_keys
from fleet.rotation import settle
from fleet.store_alerts import Alert, NewAlert

__all__ = ["KIND", "Upkeep"]

KIND: Final = "expiring"
SOON: Final = timedelta(days=7)
WARN_BEFORE: Final = timedelta(days=30)


class Alerts(Protocol):
    """What is asked of `fleet.store_alerts.AlertStore`."""

    def raise_alert(self, new: NewAlert, now: float) -> str: ...
    def live_alerts(self, kind: str) -> list[Alert]: ...
    def close_alert(self, alert_id: str, now: float) -> None: ...


class Upkeep:
    """Looks after what offline keys have signed, and after the fleet's own metadata.

    Args:
        data: the fleet's data directory.
        keys: the online keys; new ones take their place in it.
        catalog: signs its snapshot and timestamp anew where they are due.
        director: takes up later roots.
        alerts: where people are told.
        changed: called once other roots or keys hold.
    """

    def __init__(
        self,
        data: Path,
        keys: OnlineKeys,
        catalog: Catalog,
        director: Director,
        *,
        alerts: Alerts,
        changed: Callable[[OnlineKeys, datetime], None],
    ) -> None:
        self._data = data
        self._keys = keys
        self._catalog = catalog
        self._director = director
        self._alerts = alerts
        self._changed = changed
        self._behind = False  # something was installed that is not in use yet

    def look(self, now: datetime) -> None:
        """Do what is due; call it every minute or so.

        Raises:
            SkerryError: a change that was installed cannot be taken up.
        """
        try:
            self._take_up(now)
        finally:
            self._catalog.renew(now)
            self._warn(now)

    def expiring(self, now: datetime) -> list[Expiring]:
        """Return what people must sign again within 30 days."""
        due = self._catalog.expiring(now)
        if self._director.expires - now < WARN_BEFORE:
            due.append(Expiring("director root", self._director.expires))
        return due

    def _take_up(self, now: datetime) -> None:
        self._behind |= settle(self._data, now)
        if not self._behind:
            return
        self._keys.take_over(load_online_keys(self._data / "keys", os.environ))
        self._catalog.reload(now)
        self._director.reload()
        self._changed(self._keys, now)
        self._behind = False

    def _warn(self, now: datetime) -> None:
        due = {expiring.role: expiring for expiring in self.expiring(now)}
        told = {alert.subject: alert for alert in self._alerts.live_alerts(KIND)}
        for role, expiring in due.items():
            left = expiring.expires - now
            publishers = self._catalog.publishers
            cure = (
                f"let {role} sign its latest release again: skerry sign"
                if role in publishers
                else "let two root keys sign again: skerry keys rotate begin"
            )
            when = "has expired" if left <= timedelta() else f"expires in {left.days} days"
            message = (
                f"the metadata of {role} {when}, on {expiring.expires:%Y-%m-%d}; devices then take "
                f"nothing new and go on serving; {cure}"
            )
            severity = "critical" if left < SOON else "warning"
            body = {"role": role, "expires": expiring.expires.timestamp(), "devices": []}
            known = told.get(role)
            if known is None or (known.severity, known.message) != (severity, message):
                new = NewAlert(KIND, role, severity, message, body)
                self._alerts.raise_alert(new, now.timestamp())
        for role in told.keys() - due.keys():
            self._alerts.close_alert(told[role].alert_id, now.timestamp())
