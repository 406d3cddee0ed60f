"""Add the owner's list of groups, and what labelers declared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "labeler_group",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("retired_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labeler_group")),
        sa.UniqueConstraint("name", name=op.f("uq_labeler_group_name")),
    )
    op.create_table(
        "group_declaration",
        sa.Column("person_id", sa.String(), nullable=False),
        sa.Column("group_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_group_declaration_person_id_person")),
        sa.ForeignKeyConstraint(
            ["group_id"], ["labeler_group.id"], name=op.f("fk_group_declaration_group_id_labeler_group")
        ),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_group_declaration")),
    )


def downgrade() -> None:
    op.drop_table("group_declaration")
    op.drop_table("labeler_group")
