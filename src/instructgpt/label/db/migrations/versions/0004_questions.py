"""Add the questions of a batch and the answers that concern a whole ranking."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch", sa.Column("questions", sa.JSON(), nullable=True))
    op.add_column("ranking", sa.Column("answers", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("ranking") as table:
        table.drop_column("answers")
    with op.batch_alter_table("batch") as table:
        table.drop_column("questions")
