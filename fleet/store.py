"""The fleet's store: one database, and a store for each topic on top of it."""

from dataclasses import dataclass

from fleet.database import Database, open_database
from fleet.store_alerts import AlertStore
from fleet.store_devices import DeviceStore
from fleet.store_releases import ReleaseStore
from fleet.store_rollouts import RolloutStore
from fleet.store_telemetry import TelemetryStore
from fleet.store_windows import WindowStore

__all__ = ["Store", "open_store"]


@dataclass(frozen=True, slots=True)
class Store:
    """Everything that the fleet keeps in its database."""

    database: Database
    devices: DeviceStore
    releases: ReleaseStore
    rollouts: RolloutStore
    telemetry: TelemetryStore
    windows: WindowStore
    alerts: AlertStore

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def open_store(url: str) -> Store:
    """Open the database at an address, its schema brought up to date.

    Raises:
        UsageError: no such kind of database, or its driver is not installed.
        UnreachableError: it does not answer.
        RefusedError: it was written by a newer Skerry.
    """
    database = open_database(url)
    devices = DeviceStore(database)
    return Store(
        database=database,
        devices=devices,
        releases=ReleaseStore(database),
        rollouts=RolloutStore(database),
        telemetry=TelemetryStore(database, devices),
        windows=WindowStore(database),
        alerts=AlertStore(database),
    )
