"""What is remembered of a device's certificates, of what it said, and of why it may not speak."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Take the step."""
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("previous_certificate", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("state_reason", sa.Text(), server_default="", nullable=False))
    with op.batch_alter_table("liveness", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("trust", sa.String(length=128), server_default="", nullable=False)
        )
    op.create_table(
        "voices",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("device", name=op.f("pk_voices")),
    )
