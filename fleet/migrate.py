"""Brings a database's schema up to date, by the steps in ``fleet/migrations/versions``."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from skerry.errors import RefusedError

__all__ = ["alembic_config", "upgrade"]

SCRIPTS: Final = Path(__file__).parent / "migrations"


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest version, inside the caller's transaction.

    Raises:
        RefusedError: the database was written by a newer Skerry.
    """
    config = alembic_config(connection)
    scripts = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if present is not None and present not in known:
        raise RefusedError(
            f"expected a database schema up to {scripts.get_current_head()}, got {present}: "
            "it was written by a newer Skerry; install that one"
        )
    if present != scripts.get_current_head():
        command.upgrade(config, "head")


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for an open connection."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
