"""Runs the migrations on the connection that `fleet.migrate` hands over."""

from alembic import context
from sqlalchemy import Connection

from fleet.schema import METADATA


def run(connection: Connection) -> None:
    """Apply the steps that are missing, in the caller's transaction."""
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
    context.run_migrations()


run(context.config.attributes["connection"])
