"""Indexes for what operators look up, however many rows there are."""

from collections.abc import Sequence

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Take the step."""
    with op.batch_alter_table("predictions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_predictions_device_request"), ["device", "request"], unique=False
        )
    with op.batch_alter_table("windows", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_windows_context_device_n"), ["context", "device", "n"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_windows_device_start"), ["device", "start"], unique=False
        )
