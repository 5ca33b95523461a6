"""The fleet's settings: one frozen value, read once from ``<data>/fleet.toml``.

Every key has a default but `fleet_id`; an unknown key is an error. Paths inside the data
directory are properties here, so that each is spelled once.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skerry.errors import ConflictError, NotFoundError, UsageError
from skerry.ids import check_id
from skerry.toml import MAX_TOML_BYTES, from_toml

__all__ = ["FleetConfig", "load_config", "write_config"]

FILE_NAME: Final = "fleet.toml"
MAX_SHARDS: Final = 256
BROKER_AUTH: Final = ("callout", "users")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """Settings of one fleet service.

    Attributes:
        data: the data directory; not in the file, it is where the file lies.
        database_url: empty for SQLite in the data directory.
        broker_auth: "callout": the broker asks the fleet about each login; "users": it has a list,
            which is all that nats-server before 2.10 can do.
        shards: ingest slots; fixed for the life of a fleet.
        credit: telemetry batches that a device may have under way.
    """

    data: Path
    fleet_id: str
    host: str = "127.0.0.1"
    port: int = 8440  # operators: API and console; 0 picks a free one
    device_port: int = 8441  # devices: enrolment, bundles, metadata
    broker_port: int = 8883  # MQTT listener of the embedded broker
    advertise_host: str = ""  # how devices reach this machine; empty for `host`
    broker_auth: str = "callout"
    database_url: str = ""
    shards: int = 4
    credit: int = 8
    commit_every_s: float = 0.05  # messages of so long a time share a transaction
    commit_at_most: int = 64  # messages in one transaction
    tick_s: float = 0.25  # rollouts are looked at so often
    drift_every_s: float = 2.0
    drift_windows: int = 60  # latest windows of a device that an assessment looks at
    keep_predictions_s: float = 7 * 86400.0
    keep_windows_s: float = 90 * 86400.0
    broker_max_store_mb: int = 1024

    def __post_init__(self) -> None:
        check_id(self.fleet_id, "fleet id")
        for name in ("port", "device_port", "broker_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise UsageError(f"expected {name} of 0 to 65535, got {getattr(self, name)}")
        if self.broker_auth not in BROKER_AUTH:
            raise UsageError(
                f'expected broker_auth "callout" or "users", got {self.broker_auth[:40]!r}'
            )
        if not 1 <= self.shards <= MAX_SHARDS:
            raise UsageError(f"expected 1 to {MAX_SHARDS} shards, got {self.shards}")
        for name in ("credit", "commit_every_s", "commit_at_most", "tick_s", "drift_every_s",
                     "drift_windows", "keep_predictions_s", "keep_windows_s",
                     "broker_max_store_mb"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise UsageError(f"expected {name} above 0, got {getattr(self, name)}")

    @property
    def file(self) -> Path:
        """The settings file."""
        return self.data / FILE_NAME

    @property
    def db_url(self) -> str:
        """SQLAlchemy's address of the database."""
        return self.database_url or f"sqlite:///{self.data / 'fleet.db'}"

    @property
    def blobs_dir(self) -> Path:
        """Bundles' blobs, by digest."""
        return self.data / "blobs"

    @property
    def tuf_dir(self) -> Path:
        """Catalog and director metadata."""
        return self.data / "tuf"

    @property
    def keys_dir(self) -> Path:
        """Online keys and the certificate authority."""
        return self.data / "keys"

    @property
    def tls_dir(self) -> Path:
        """Certificates and keys of the listeners and of the fleet's own broker client."""
        return self.data / "tls"

    @property
    def broker_dir(self) -> Path:
        """What the embedded broker keeps, and its configuration."""
        return self.data / "nats"

    @property
    def admin_token_file(self) -> Path:
        """The operators' bearer token."""
        return self.data / "admin.token"

    @property
    def run_file(self) -> Path:
        """Addresses and process ids of the running service."""
        return self.data / "run.json"


def load_config(data: Path, **overrides: object) -> FleetConfig:
    """Read the settings of a data directory.

    Args:
        data: the data directory.
        **overrides: settings given on the command line; None means not given.

    Raises:
        NotFoundError: there is no fleet in this directory.
        UsageError: an unknown key, or a wrong value.
    """
    file = data / FILE_NAME
    try:
        with file.open("rb") as stream:
            values = from_toml(stream.read(MAX_TOML_BYTES + 1), str(file))
    except FileNotFoundError:
        raise NotFoundError(
            f"expected a fleet in {data}, found no {FILE_NAME}; "
            f"make one with: skerry fleet init --data {data}"
        ) from None
    values.update({key: value for key, value in overrides.items() if value is not None})
    return _typed(data, values, str(file))


def write_config(config: FleetConfig) -> None:
    """Write the settings file of a new fleet.

    Raises:
        ConflictError: there is one already.
    """
    config.data.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{field.name} = {_toml(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
        if field.name != "data"
        and (field.name == "fleet_id" or getattr(config, field.name) != field.default)
    ]
    try:
        descriptor = os.open(config.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise ConflictError(
            f"expected no fleet in {config.data}, found {FILE_NAME}; choose another directory"
        ) from None
    with os.fdopen(descriptor, "w") as stream:
        stream.write("\n".join(lines) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _typed(data: Path, values: dict[str, Any], where: str) -> FleetConfig:
    kinds = {f.name: f.type for f in dataclasses.fields(FleetConfig) if f.name != "data"}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        near = difflib.get_close_matches(unknown[0], kinds, 1)
        advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(kinds))}"
        raise UsageError(f"{where}: unknown setting {unknown[0]!r}; {advice}")
    if "fleet_id" not in values:
        raise UsageError(f'expected fleet_id in {where}; add a line such as: fleet_id = "demo"')
    for key, value in values.items():
        kind = kinds[key]
        if kind is float and type(value) is int:
            values[key] = float(value)
        elif type(value) is not kind:
            name = getattr(kind, "__name__", kind)
            raise UsageError(f"expected {key} in {where} to be {name}, got {value!r}")
    return FleetConfig(data=data, **values)


def _toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)
