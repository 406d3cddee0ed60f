"""Alembic environment: run the revisions on the caller's connection and inside its transaction."""

from __future__ import annotations

from alembic import context

from instructgpt.label.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
    compare_type=True,
    transaction_per_migration=False,
)
context.run_migrations()
