"""The watch on drift: every few windows the whole fleet is looked at, model by model.

A device that drifts raises an alert of its own, one a model and device; the alert closes
when the device has been quiet a few times in a row. From the first sign on, its windows
are no longer part of its past, so that a lasting change does not become the new normal
by itself. A site or the fleet that moves together has an alert as a whole.
"""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from fleet.drift import DeviceDrift, DriftReport, DriftSettings, GroupDrift, assess
from fleet.store import Store
from fleet.store_alerts import Alert, NewAlert
from fleet.windows import DeviceWindow

__all__ = ["DriftWatch"]

KIND: Final = "drift"
SITE_TAG: Final = "site"
QUIET_TO_CLOSE: Final = 3  # assessments in a row
RECENT_S: Final = 86400.0  # models without windows for so long are not looked at


class DriftWatch:
    """Assesses, keeps the latest report of each model, raises and closes alerts."""

    def __init__(
        self, store: Store, *, windows: int, settings: DriftSettings | None = None
    ) -> None:
        """Watch a fleet.

        Args:
            store: what devices said.
            windows: how many of a device's latest windows are looked at.
            settings: what drift needs before it is named.
        """
        self._store = store
        self._windows = windows
        self._settings = settings or DriftSettings()
        self._quiet: Counter[str] = Counter()

    def look(self, now: datetime) -> list[DriftReport]:
        """Assess every model that had windows lately."""
        at = now.timestamp()
        return [
            self._look_at(model, at) for model in self._store.windows.models_since(at - RECENT_S)
        ]

    def _look_at(self, model: str, now: float) -> DriftReport:
        length_s = self._store.windows.longest_window_s(model, now - RECENT_S)
        alerts = {
            alert.body.get("device", ""): alert
            for alert in self._store.alerts.live_alerts(KIND)
            if alert.body.get("model") == model
        }
        onset = {
            device: float(alert.body["since"])
            for device, alert in alerts.items()
            if device and "since" in alert.body
        }
        found = self._gather(model, onset, now, length_s)
        serving = {window.device for window in found}
        site_of = {
            view.device: view.tags.get(SITE_TAG, "")
            for view in self._store.devices.views()
            if view.device in serving
        }
        baselines = {
            bundle: baseline
            for bundle in {window.bundle for window in found}
            if (baseline := self._store.releases.baseline(bundle)) is not None
        }
        report = assess(baselines, found, site_of, now, settings=self._settings, onset=onset)
        self._store.windows.put_drift_report(model, report)
        since = now - (self._settings.current_windows + 1) * length_s
        for device in report.devices:
            self._follow_device(model, device, alerts.get(device.device), since, now)
        self._follow_groups(model, report.groups, now)
        return report

    def _gather(
        self, model: str, onset: Mapping[str, float], now: float, length_s: float
    ) -> list[DeviceWindow]:
        reach = self._windows * length_s
        tail = (self._settings.current_windows + QUIET_TO_CLOSE) * length_s
        recent = self._store.windows.windows(model, now - reach)
        for device, since in onset.items():
            # what it was like before it began to drift, however long ago that is
            if since < now - reach / 2:
                recent += self._store.windows.windows(
                    model, since - reach, until=min(since, now - reach), device=device
                )
        # nor is what it was like while it drifted its past, once it is itself again
        over = [
            (alert.body["device"], float(alert.body["since"]), (alert.closed_at or now) - tail)
            for alert in self._store.alerts.closed_alerts(KIND, now - reach)
            if alert.body.get("model") == model and "since" in alert.body
        ]
        return [
            window
            for window in recent
            if not any(
                window.device == device and first <= window.start < last
                for device, first, last in over
            )
        ]

    def _follow_device(
        self, model: str, found: DeviceDrift, alert: Alert | None, since: float, now: float
    ) -> None:
        subject = f"{model}/{found.device}"
        if found.verdict == "drift":
            self._quiet.pop(subject, None)
            where = f" ({found.site})" if found.site else ""
            body = {
                "model": model,
                "device": found.device,
                "devices": [found.device],
                "site": found.site,
                "since": since if alert is None else alert.body.get("since", since),
                "features": [
                    {"name": feature.name, "effect_sd": feature.effect_sd}
                    for feature in found.features
                ],
                "stuck": found.stuck,
            }
            message = f"{found.device}{where}: {found.words}"
            self._store.alerts.raise_alert(NewAlert(KIND, subject, "warning", message, body), now)
        elif alert is not None and found.verdict == "quiet":
            self._close_when_quiet(subject, alert, now)

    def _follow_groups(self, model: str, groups: list[GroupDrift], now: float) -> None:
        moved = {f"{model}@{group.level}:{group.name}"[:128]: group for group in groups}
        live = {
            alert.subject: alert
            for alert in self._store.alerts.live_alerts(KIND)
            if alert.body.get("model") == model and "level" in alert.body
        }
        for subject, group in moved.items():
            self._quiet.pop(subject, None)
            features = [
                {"name": name, "effect_sd": effect} for name, effect in group.features.items()
            ]
            words = ", ".join(f"{f['name']} by {f['effect_sd']:+.1f} sd" for f in features)
            name = group.name or "the whole fleet"
            self._store.alerts.raise_alert(
                NewAlert(
                    KIND,
                    subject,
                    "warning",
                    f"{group.level} {name} moved together: {words}",
                    {
                        "model": model,
                        "level": group.level,
                        "name": group.name,
                        "devices": [],
                        "features": features,
                    },
                ),
                now,
            )
        for subject, alert in live.items():
            if subject not in moved:
                self._close_when_quiet(subject, alert, now)

    def _close_when_quiet(self, subject: str, alert: Alert, now: float) -> None:
        self._quiet[subject] += 1
        if self._quiet[subject] >= QUIET_TO_CLOSE:
            self._store.alerts.close_alert(alert.alert_id, now)
            del self._quiet[subject]
