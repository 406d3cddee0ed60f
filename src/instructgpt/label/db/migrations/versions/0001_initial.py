"""All tables, as the SQL beside this file makes them."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def statements() -> list[str]:
    """The SQL for this database, one statement each."""
    text = Path(__file__).with_name(f"{revision}_{op.get_bind().dialect.name}.sql").read_text(encoding="utf-8")
    return [statement for statement in re.split(r";\n+", text) if statement.strip()]


def upgrade() -> None:
    """Forward."""
    for statement in statements():
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    """Back to an empty database."""
    tables = [found[1] for statement in statements() if (found := re.match(r"CREATE TABLE (\w+)", statement))]
    for table in reversed(tables):
        op.drop_table(table)
