"""Allow rating scales above 7, tasks for one cohort, and hourly rates of a batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_OLD, _NEW = "rating BETWEEN 1 AND 7", "rating BETWEEN 1 AND 20"


def upgrade() -> None:
    op.add_column("batch", sa.Column("rates", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("task", sa.Column("cohort", sa.String(length=8), nullable=True))
    _replace_rating_check(_NEW)


def downgrade() -> None:
    """Fails where a rating above 7 is stored, which the earlier check forbids."""
    _replace_rating_check(_OLD)
    with op.batch_alter_table("task") as table:
        table.drop_column("cohort")
    with op.batch_alter_table("batch") as table:
        table.drop_column("rates")


def _replace_rating_check(condition: str) -> None:
    with op.batch_alter_table("rating") as table:
        table.drop_constraint(op.f("ck_rating_rating"), type_="check")
        table.create_check_constraint(op.f("ck_rating_rating"), condition)
