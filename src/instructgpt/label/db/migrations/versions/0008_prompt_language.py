"""Add the language of prompts, and indexes for the lists of owners."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from instructgpt.label.language import guess_language

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INDEXED_COLUMNS = ("source", "use_case", "language")
_CHUNK_SIZE = 1_000


def upgrade() -> None:
    op.add_column("prompt", sa.Column("language", sa.String(), nullable=True))
    _fill_languages(op.get_bind())
    for column in _INDEXED_COLUMNS:
        op.create_index(f"ix_prompt_{column}", "prompt", [column])
    op.create_index("ix_task_order", "task", ["batch_id", "position"])


def downgrade() -> None:
    op.drop_index("ix_task_order", "task")
    for column in _INDEXED_COLUMNS:
        op.drop_index(f"ix_prompt_{column}", "prompt")
    with op.batch_alter_table("prompt") as table:
        table.drop_column("language")


def _fill_languages(connection: sa.Connection) -> None:
    prompts = sa.table("prompt", *(sa.column(name) for name in ("id", "text", "language")))
    statement = sa.update(prompts).where(prompts.c.id == sa.bindparam("key")).values(language=sa.bindparam("code"))
    rows = connection.execute(sa.select(prompts.c.id, prompts.c.text)).all()
    changes = [{"key": key, "code": code} for key, text in rows if (code := guess_language(text)) is not None]
    for start in range(0, len(changes), _CHUNK_SIZE):
        connection.execute(statement, changes[start : start + _CHUNK_SIZE])
