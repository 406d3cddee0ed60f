"""Add the changes of many rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bulk_change",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("filter", sa.String(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("before_counts", sa.JSON(), nullable=False),
        sa.Column("after_counts", sa.JSON(), nullable=True),
        sa.Column("undone_at", sa.BigInteger(), nullable=True),
        sa.Column("undone_by", sa.String(), nullable=True),
        sa.CheckConstraint("subject IN ('task', 'submission', 'person')", name=op.f("ck_bulk_change_subject")),
        sa.ForeignKeyConstraint(["created_by"], ["person.id"], name=op.f("fk_bulk_change_created_by_person")),
        sa.ForeignKeyConstraint(["undone_by"], ["person.id"], name=op.f("fk_bulk_change_undone_by_person")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bulk_change")),
    )
    op.create_table(
        "bulk_item",
        sa.Column("change_id", sa.String(), nullable=False),
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("previous", sa.JSON(), nullable=True),
        sa.Column("undo_outcome", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["change_id"], ["bulk_change.id"], name=op.f("fk_bulk_item_change_id_bulk_change")),
        sa.PrimaryKeyConstraint("change_id", "object_id", name=op.f("pk_bulk_item")),
    )
    op.create_index("ix_bulk_item_outcome", "bulk_item", ["change_id", "outcome"])


def downgrade() -> None:
    op.drop_table("bulk_item")
    op.drop_table("bulk_change")
