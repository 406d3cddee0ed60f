"""Create all tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Tables in the order of their foreign keys. Constraint names follow the convention of `models/base.py`.
_TABLES = (
    ("person", "login", "invite"),
    ("api_key", "rate_bucket", "journal"),
    ("consent", "consent_text", "instructions", "reading"),
    ("survey_reply", "survey_done"),
    ("prompt", "completion"),
    ("batch", "task", "task_completion", "gold"),
    ("assignment", "draft", "skip", "message"),
    ("submission", "demonstration", "prompt_review"),
    ("ranking", "ranking_item", "rating"),
    ("grade", "decision", "adjudication", "room", "vote", "remark"),
)


def upgrade() -> None:
    _create_accounts()
    _create_keys_and_logs()
    _create_instructions()
    _create_surveys()
    _create_prompts()
    _create_tasks()
    _create_assignments()
    _create_submissions()
    _create_rankings()
    _create_quality()


def downgrade() -> None:
    for table in reversed([table for group in _TABLES for table in group]):
        op.drop_table(table)


def _create_accounts() -> None:
    op.create_table(
        "person",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False, unique=True),
        sa.Column("email", sa.String()),
        sa.Column("password_hash", sa.String()),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("status", sa.String(9), nullable=False),
        sa.Column("cohort", sa.String(8)),
        sa.Column("fold", sa.BigInteger()),
        sa.Column("pseudonym", sa.String(), nullable=False, unique=True),
        sa.Column("language", sa.String(), nullable=False),
        sa.Column("theme", sa.String(), nullable=False),
        sa.Column("sees_sensitive", sa.Boolean(), nullable=False),
        sa.Column("invite_id", sa.String()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("role IN ('labeler', 'researcher', 'owner')", name="role"),
        sa.CheckConstraint(
            "status IN ('screening', 'active', 'paused', 'declined', 'withdrawn', 'erased')", name="status"
        ),
        sa.CheckConstraint("cohort IN ('training', 'heldout')", name="cohort"),
        sa.CheckConstraint("fold BETWEEN 0 AND 4", name="fold"),
    )
    op.create_table(
        "login",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("token_hash", sa.String(), nullable=False, unique=True),
        sa.Column("csrf", sa.String(), nullable=False),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), nullable=False, index=True),
        sa.Column("agent", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger()),
    )
    op.create_table(
        "invite",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("token_hash", sa.String(), nullable=False, unique=True),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("cohort", sa.String(8)),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("max_uses", sa.BigInteger(), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.CheckConstraint("role IN ('labeler', 'researcher', 'owner')", name="role"),
        sa.CheckConstraint("cohort IN ('training', 'heldout')", name="cohort"),
    )


def _create_keys_and_logs() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_by", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("last_used_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
    )
    op.create_table(
        "rate_bucket",
        sa.Column("key", sa.String(), primary_key=True),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "journal",
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False, index=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False, unique=True),
    )


def _create_instructions() -> None:
    op.create_table(
        "consent",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), nullable=False, index=True),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("withdrawn_at", sa.BigInteger()),
    )
    op.create_table(
        "consent_text",
        sa.Column("version", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("bodies", sa.JSON(), nullable=False),
        sa.Column("created_by", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "instructions",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("quiz", sa.JSON(), nullable=False),
        sa.Column("language", sa.String(), nullable=False),
        sa.Column("translations", sa.JSON(), nullable=False),
        sa.Column("changes", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("purpose", "version"),
        sa.CheckConstraint("purpose IN ('training', 'evaluation')", name="purpose"),
    )
    op.create_table(
        "reading",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("instructions_id", sa.String(), sa.ForeignKey("instructions.id"), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("person_id", "instructions_id"),
    )


def _create_surveys() -> None:
    op.create_table(
        "survey_reply",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("month", sa.String(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "survey_done",
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), primary_key=True),
        sa.Column("kind", sa.String(), primary_key=True),
        sqlite_with_rowid=False,
    )


def _create_prompts() -> None:
    op.create_table(
        "prompt",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("external_id", sa.String(), unique=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("messages", sa.JSON()),
        sa.Column("text_hash", sa.String(), nullable=False, index=True),
        sa.Column("source", sa.String()),
        sa.Column("user", sa.String()),
        sa.Column("use_case", sa.String()),
        sa.Column("split", sa.String()),
        sa.Column("sensitive", sa.Boolean(), nullable=False),
        sa.Column("author_id", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("submission_id", sa.String()),
        sa.Column("written", sa.JSON()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("withdrawn_at", sa.BigInteger()),
    )
    op.create_table(
        "completion",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("prompt_id", sa.String(), sa.ForeignKey("prompt.id"), nullable=False, index=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("text_hash", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("finish", sa.String(), nullable=False),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("score", sa.Double()),
        sa.Column("names_itself", sa.Boolean(), nullable=False),
        sa.Column("author_id", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("prompt_id", "model", "text_hash"),
    )


def _create_tasks() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False, unique=True),
        sa.Column("kind", sa.String(11), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("screening", sa.String()),
        sa.Column("cohort", sa.String(8)),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.Column("intake", sa.JSON(), nullable=False),
        sa.Column("baseline", sa.String()),
        sa.Column("created_by", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger()),
        sa.Column("unblinded_at", sa.BigInteger()),
        sa.CheckConstraint("kind IN ('rank', 'demonstrate', 'write', 'review')", name="kind"),
        sa.CheckConstraint("purpose IN ('training', 'evaluation')", name="purpose"),
        sa.CheckConstraint("state IN ('draft', 'open', 'closed')", name="state"),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("batch_id", sa.String(), sa.ForeignKey("batch.id"), nullable=False),
        sa.Column("kind", sa.String(11), nullable=False),
        sa.Column("prompt_id", sa.String(), sa.ForeignKey("prompt.id"), index=True),
        sa.Column("brief", sa.JSON()),
        sa.Column("overlap", sa.BigInteger(), nullable=False),
        sa.Column("n_open", sa.BigInteger(), nullable=False),
        sa.Column("n_done", sa.BigInteger(), nullable=False),
        sa.Column("n_skipped", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("gold", sa.Boolean(), nullable=False),
        sa.Column("repeat", sa.Boolean(), nullable=False),
        sa.CheckConstraint("kind IN ('rank', 'demonstrate', 'write', 'review')", name="kind"),
        sa.CheckConstraint("state IN ('open', 'done', 'review', 'withdrawn')", name="state"),
        sa.CheckConstraint("n_open >= 0 AND n_done >= 0 AND n_open + n_done <= overlap", name="overlap"),
    )
    op.create_index("ix_task_queue", "task", ["batch_id", "state", "gold", "position"])
    op.create_table(
        "task_completion",
        sa.Column("task_id", sa.String(), sa.ForeignKey("task.id"), primary_key=True),
        sa.Column("completion_id", sa.String(), sa.ForeignKey("completion.id"), primary_key=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
    )
    op.create_table(
        "gold",
        sa.Column("task_id", sa.String(), sa.ForeignKey("task.id"), primary_key=True),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), sa.ForeignKey("person.id")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    )


def _create_assignments() -> None:
    op.create_table(
        "assignment",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("task_id", sa.String(), sa.ForeignKey("task.id"), nullable=False),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("instructions_id", sa.String(), sa.ForeignKey("instructions.id")),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger()),
        sa.UniqueConstraint("task_id", "person_id", "round"),
        sa.CheckConstraint("state IN ('open', 'submitted', 'skipped', 'expired', 'returned')", name="state"),
    )
    op.create_index("ix_assignment_lease", "assignment", ["state", "lease_until"])
    op.create_index("ix_assignment_person", "assignment", ["person_id", "state"])
    op.create_table(
        "draft",
        sa.Column("assignment_id", sa.String(), sa.ForeignKey("assignment.id"), primary_key=True),
        sa.Column("rev", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "skip",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("assignment_id", sa.String(), sa.ForeignKey("assignment.id"), nullable=False, index=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("undone_at", sa.BigInteger()),
        sa.CheckConstraint(
            "reason IN ('unclear', 'other_language', 'too_specialised', 'personal_data', "
            "'sensitive', 'broken', 'other')",
            name="reason",
        ),
    )
    op.create_table(
        "message",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("task_id", sa.String(), sa.ForeignKey("task.id"), nullable=False, index=True),
        sa.Column("about_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("author_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("reported", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.BigInteger()),
    )


def _create_submissions() -> None:
    op.create_table(
        "submission",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("assignment_id", sa.String(), sa.ForeignKey("assignment.id"), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("kind", sa.String(11), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.Column("active_ms", sa.BigInteger(), nullable=False),
        sa.Column("wall_ms", sa.BigInteger(), nullable=False),
        sa.Column("pasted", sa.Double()),
        sa.Column("surplus", sa.Boolean(), nullable=False),
        sa.Column("invalid_reason", sa.String()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("replaced_at", sa.BigInteger()),
        sa.UniqueConstraint("assignment_id", "version"),
        sa.UniqueConstraint("assignment_id", "key"),
        sa.CheckConstraint("kind IN ('rank', 'demonstrate', 'write', 'review')", name="kind"),
    )
    op.create_index("ix_submission_created", "submission", ["created_at"])
    op.create_table(
        "demonstration",
        sa.Column("submission_id", sa.String(), sa.ForeignKey("submission.id"), primary_key=True),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("prompt_id", sa.String(), sa.ForeignKey("prompt.id"), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("text_hash", sa.String(), nullable=False),
    )
    op.create_index("ix_demonstration_person", "demonstration", ["person_id", "prompt_id"])
    op.create_table(
        "prompt_review",
        sa.Column("submission_id", sa.String(), sa.ForeignKey("submission.id"), primary_key=True),
        sa.Column("use_case", sa.String()),
        sa.Column("personal_data", sa.Boolean()),
        sa.Column("sensitive", sa.Boolean()),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("rejected", sa.String()),
    )


def _create_rankings() -> None:
    op.create_table(
        "ranking",
        sa.Column("submission_id", sa.String(), sa.ForeignKey("submission.id"), primary_key=True),
        sa.Column("none_acceptable", sa.Boolean(), nullable=False),
        sa.Column("confidence", sa.BigInteger()),
        sa.CheckConstraint("confidence BETWEEN 1 AND 9", name="confidence"),
    )
    op.create_table(
        "ranking_item",
        sa.Column("submission_id", sa.String(), sa.ForeignKey("submission.id"), primary_key=True),
        sa.Column("completion_id", sa.String(), sa.ForeignKey("completion.id"), primary_key=True, index=True),
        sa.Column("tier", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("shown", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("rank >= 1 AND rank <= tier", name="rank"),
    )
    op.create_table(
        "rating",
        sa.Column("submission_id", sa.String(), sa.ForeignKey("submission.id"), primary_key=True),
        sa.Column("completion_id", sa.String(), sa.ForeignKey("completion.id"), primary_key=True, index=True),
        sa.Column("rating", sa.BigInteger()),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("note", sa.String(), nullable=False),
        sa.CheckConstraint("rating BETWEEN 1 AND 7", name="rating"),
    )


def _create_quality() -> None:
    op.create_table(
        "grade",
        sa.Column("submission_id", sa.String(), sa.ForeignKey("submission.id"), primary_key=True),
        sa.Column("grader_id", sa.String(), sa.ForeignKey("person.id"), primary_key=True),
        sa.Column("score", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("score BETWEEN 1 AND 7", name="score"),
    )
    op.create_table(
        "decision",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), nullable=False, index=True),
        sa.Column("by_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("measured", sa.JSON(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "adjudication",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("task_id", sa.String(), sa.ForeignKey("task.id"), nullable=False, index=True),
        sa.Column("by_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("ranks", sa.JSON(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "room",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("task_id", sa.String(), sa.ForeignKey("task.id"), nullable=False, index=True),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger()),
        sa.CheckConstraint("stage IN ('vote', 'talk', 'again', 'closed')", name="stage"),
    )
    op.create_table(
        "vote",
        sa.Column("room_id", sa.String(), sa.ForeignKey("room.id"), primary_key=True),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), primary_key=True),
        sa.Column("round", sa.BigInteger(), primary_key=True),
        sa.Column("ranks", sa.JSON(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("round IN (0, 1)", name="round"),
    )
    op.create_table(
        "remark",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("room_id", sa.String(), sa.ForeignKey("room.id"), nullable=False, index=True),
        sa.Column("author_id", sa.String(), sa.ForeignKey("person.id"), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )
