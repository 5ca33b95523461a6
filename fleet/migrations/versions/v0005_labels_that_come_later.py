"""Errors of predictions whose labels came later."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Take the step."""
    op.create_table(
        "error_windows",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("boot", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("context", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.Double(), nullable=False),
        sa.Column("length_s", sa.Double(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=True),
        sa.Column("measured", sa.BigInteger(), nullable=False),
        sa.Column("abs_total", sa.Double(), nullable=False),
        sa.Column("sq_total", sa.Double(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("device", "boot", "seq", "place", name=op.f("pk_error_windows")),
    )
    with op.batch_alter_table("error_windows", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_error_windows_context_start"), ["context", "start"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_error_windows_start"), ["start"], unique=False)
