"""The fleet's store, on SQLite and, where there is one, on PostgreSQL."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from fleet.registry import Claim, DeviceRecord
from fleet.schema import METADATA
from fleet.store import Store, open_store
from skerry.states import DeviceState
from tests.fakes.postgres import postgres_server
from tests.fakes.reporter import INVENTORY, Reporter

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
Enrol = Callable[..., Reporter]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str) -> str:
    """A second database of the server, which keeps its tables."""
    engine = create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE migrated"))
    engine.dispose()
    url = postgres.replace("/postgres?", "/migrated?")
    open_store(url).close()
    return url


ON_BOTH = ("sqlite", pytest.param("postgres", marks=pytest.mark.postgres))


@pytest.fixture(params=ON_BOTH)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    url: str = request.getfixturevalue("postgres")
    _execute(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return url


@pytest.fixture(params=ON_BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without any row."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    url: str = request.getfixturevalue("migrated_postgres")
    # much quicker than to migrate each time
    _execute(url, f"TRUNCATE {', '.join(METADATA.tables)} RESTART IDENTITY CASCADE")
    return url


def _execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    yield opened
    opened.close()


@pytest.fixture
def enrol(store: Store) -> Enrol:
    """Accept a device, and give its voice."""

    def accept(device: str, tags: dict[str, str] | None = None) -> Reporter:
        reporter = Reporter(device)
        secret = device.encode().hex().ljust(64, "0")[:64]
        store.devices.preauthorize(
            Claim(device, secret, NOW + timedelta(hours=1)), tags=tags or {}, now=NOW
        )
        record = DeviceRecord(
            device_id=device,
            state=DeviceState.ACCEPTED,
            client_id=f"{device}_x",
            report_key=reporter.signer.public.raw,
            certificate="PEM",
            certificate_expires=NOW + timedelta(days=30),
            inventory=INVENTORY,
            enrolled_at=NOW,
        )
        assert store.devices.enrol(secret, record)
        return reporter

    return accept
