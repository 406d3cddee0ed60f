"""Add the use case of API keys to the prompts that come through them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("playground_turn", sa.Column("use_case", sa.String(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("playground_turn") as table:
        table.drop_column("use_case")
