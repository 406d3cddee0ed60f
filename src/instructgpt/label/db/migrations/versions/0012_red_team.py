"""Add attempts of red-team tasks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_KINDS = "failure IN ('false_premise', 'hedging', 'harm', 'constraints')"


def upgrade() -> None:
    op.create_table(
        "red_team_attempt",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("assignment_id", sa.String(), nullable=False),
        sa.Column("failure", sa.String(length=13), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("checkpoint", sa.String(), nullable=True),
        sa.Column("prompt", sa.String(), nullable=False),
        sa.Column("completion", sa.String(), nullable=False),
        sa.Column("finish", sa.String(), nullable=False),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("success", sa.Boolean(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("judged_at", sa.BigInteger(), nullable=True),
        sa.Column("withdrawn_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(_KINDS, name=op.f("ck_red_team_attempt_failure")),
        sa.ForeignKeyConstraint(
            ["assignment_id"], ["assignment.id"], name=op.f("fk_red_team_attempt_assignment_id_assignment")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_red_team_attempt")),
    )
    op.create_index(op.f("ix_red_team_attempt_assignment_id"), "red_team_attempt", ["assignment_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_red_team_attempt_assignment_id"), table_name="red_team_attempt")
    op.drop_table("red_team_attempt")
