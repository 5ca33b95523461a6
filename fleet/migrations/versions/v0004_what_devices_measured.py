"""What devices measured of variants before they served them, and beside what serves."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Take the step."""
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("trials", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("shadow", sa.Text(), nullable=True))
        batch_op.create_index(batch_op.f("ix_assignments_bundle"), ["bundle"], unique=False)
