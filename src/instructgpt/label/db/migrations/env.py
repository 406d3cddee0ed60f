"""How Alembic runs our revisions: on a connection that is given, inside its transaction, with SQLite's tables rebuilt where needed."""

from __future__ import annotations

from alembic import context

from instructgpt.label.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    transaction_per_migration=False,
)
context.run_migrations()
