"""Add the playground: links, users, agreements, turns with answers and feedback, rounds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# In the order of their foreign keys.
_TABLES = (
    "playground_link",
    "playground_consent_text",
    "playground_user",
    "playground_session",
    "playground_agreement",
    "playground_round",
    "playground_turn",
    "playground_answer",
    "playground_feedback",
    "playground_count",
    "round_sample",
)


def upgrade() -> None:
    _create_users()
    _create_rounds()
    _create_turns()


def downgrade() -> None:
    for table in reversed(_TABLES):
        op.drop_table(table)


def _text(name: str, target: str | None = None, *, nullable: bool = False, index: bool = False) -> sa.Column[str]:
    keys = [sa.ForeignKey(target)] if target else []
    return sa.Column(name, sa.String(), *keys, nullable=nullable, index=index)


def _time(name: str = "created_at", *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _id() -> sa.Column[str]:
    return sa.Column("id", sa.String(), primary_key=True)


def _create_users() -> None:
    op.create_table(
        "playground_link",
        _id(),
        sa.Column("token", sa.String(), nullable=False, unique=True),
        _time(),
        _time("revoked_at", nullable=True),
    )
    op.create_table(
        "playground_consent_text",
        sa.Column("version", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("bodies", sa.JSON(), nullable=False),
        _text("created_by", "person.id", nullable=True),
        _time(),
    )
    op.create_table(
        "playground_user",
        _id(),
        sa.Column("pseudonym", sa.String(), nullable=False, unique=True),
        sa.Column("token_hash", sa.String(), nullable=False, unique=True),
        _text("link_id", "playground_link.id", nullable=True),
        _time(),
        _time("erased_at", nullable=True),
    )
    op.create_table(
        "playground_session",
        _id(),
        sa.Column("token_hash", sa.String(), nullable=False, unique=True),
        _text("user_id", "playground_user.id", index=True),
        _time(),
    )
    op.create_table(
        "playground_agreement",
        _id(),
        _text("user_id", "playground_user.id", index=True),
        _text("session_id", "playground_session.id"),
        sa.Column("version", sa.BigInteger(), sa.ForeignKey("playground_consent_text.version"), nullable=False),
        _time(),
        _time("withdrawn_at", nullable=True),
        sa.Index("ix_playground_agreement_session", "session_id", "version"),
    )
    op.create_table(
        "playground_count",
        sa.Column("day", sa.String(), primary_key=True),
        sa.Column("reason", sa.String(), primary_key=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
    )


def _create_rounds() -> None:
    op.create_table(
        "playground_round",
        _id(),
        sa.Column("number", sa.BigInteger(), nullable=False, unique=True),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        _text("error", nullable=True),
        _text("batch_id", "batch.id", nullable=True),
        _text("created_by", "person.id", nullable=True),
        _time(),
        _time("finished_at", nullable=True),
        sa.CheckConstraint("state IN ('sampling', 'done', 'failed')", name="state"),
    )


def _create_turns() -> None:
    op.create_table(
        "playground_turn",
        _id(),
        _text("key"),
        _text("user_id", "playground_user.id"),
        _text("agreement_id", "playground_agreement.id"),
        _text("parent_id", "playground_turn.id", nullable=True, index=True),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(6), nullable=False),
        sa.Column("personal_data", sa.JSON(), nullable=False),
        _text("client"),
        _text("prompt_id", "prompt.id", nullable=True, index=True),
        _text("round_id", "playground_round.id", nullable=True),
        _time(),
        sa.UniqueConstraint("user_id", "key"),
        sa.CheckConstraint("state IN ('kept', 'review', 'erased')", name="state"),
        sa.Index("ix_playground_turn_created", "created_at"),
    )
    op.create_table(
        "playground_answer",
        _id(),
        _text("turn_id", "playground_turn.id"),
        sa.Column("position", sa.BigInteger(), nullable=False),
        _text("model"),
        _text("checkpoint", nullable=True),
        sa.Column("sampling", sa.JSON(), nullable=False),
        _text("text"),
        _text("finish"),
        sa.UniqueConstraint("turn_id", "position"),
        sa.CheckConstraint("position >= 0", name="position"),
    )
    op.create_table(
        "playground_feedback",
        _id(),
        _text("turn_id", "playground_turn.id"),
        _text("answer_id", "playground_answer.id", nullable=True),
        sa.Column("kind", sa.String(7), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        _time(),
        _time("replaced_at", nullable=True),
        sa.CheckConstraint("kind IN ('ranking', 'edit', 'thumb', 'report')", name="kind"),
        sa.Index("ix_playground_feedback_turn", "turn_id"),
    )
    op.create_table(
        "round_sample",
        _id(),
        _text("round_id", "playground_round.id"),
        _text("turn_id", "playground_turn.id", index=True),
        _text("model"),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        _text("text", nullable=True),
        _text("finish", nullable=True),
        sa.Index("ix_round_sample_round", "round_id"),
    )
