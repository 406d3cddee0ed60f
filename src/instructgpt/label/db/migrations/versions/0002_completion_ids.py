"""Give completions random ids: the earlier ones sorted by time and so, for a labeler, by model."""

from __future__ import annotations

import json
import re
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_REFERENCES = ("task_completion", "ranking_item", "rating")
"""Tables with a foreign key `completion_id`."""
_JSON_COLUMNS = (
    ("assignment", ("id",), "shown"),
    ("draft", ("assignment_id",), "payload"),
    ("gold", ("task_id",), "answer"),
    ("adjudication", ("id",), "ranks"),
    ("vote", ("room_id", "person_id", "round"), "ranks"),
)
"""Tables, primary keys and JSON columns that hold ids of completions."""
_ID_PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CHUNK_SIZE = 1_000


def upgrade() -> None:
    connection = op.get_bind()
    completions = sa.table("completion", sa.column("id"))
    new_ids = {old_id: str(uuid4()) for old_id in connection.scalars(sa.select(completions.c.id))}
    if not new_ids:
        return
    # PostgreSQL checks foreign keys at every statement; SQLite's are off during a migration and checked at its end.
    is_postgresql = connection.dialect.name == "postgresql"
    if is_postgresql:
        for table in _REFERENCES:
            op.drop_constraint(f"fk_{table}_completion_id_completion", table, type_="foreignkey")
    id_map = op.create_table(
        "completion_id_map", sa.Column("old_id", sa.String(), primary_key=True), sa.Column("new_id", sa.String())
    )
    op.bulk_insert(id_map, [{"old_id": old_id, "new_id": new_id} for old_id, new_id in new_ids.items()])
    _replace_keys("completion", "id", id_map)
    for table in _REFERENCES:
        _replace_keys(table, "completion_id", id_map)
    op.drop_table("completion_id_map")
    for table, keys, column in _JSON_COLUMNS:
        _replace_in_json(connection, table, keys, column, new_ids)
    if is_postgresql:
        for table in _REFERENCES:
            name = f"fk_{table}_completion_id_completion"
            op.create_foreign_key(name, table, "completion", ["completion_id"], ["id"])


def downgrade() -> None:
    """Keep the ids: the earlier version reads them as well."""


def _replace_keys(table: str, column: str, id_map: sa.Table) -> None:
    # One statement a table with a lookup by primary key: not every reference has an index.
    rows = sa.table(table, sa.column(column))
    new_id = sa.select(id_map.c.new_id).where(id_map.c.old_id == rows.c[column]).scalar_subquery()
    op.get_bind().execute(sa.update(rows).values({column: new_id}))


def _replace_in_json(
    connection: sa.Connection, table: str, keys: tuple[str, ...], column: str, new_ids: dict[str, str]
) -> None:
    rows = sa.table(table, *(sa.column(key) for key in keys), sa.column(column, sa.JSON()))
    statement = sa.update(rows).values({column: sa.bindparam("value", type_=sa.JSON())})
    for key in keys:
        statement = statement.where(rows.c[key] == sa.bindparam(f"key_{key}"))
    changes = []
    for row in connection.execute(sa.select(rows)).mappings():
        text = json.dumps(row[column], ensure_ascii=False)
        new_text = _ID_PATTERN.sub(lambda match: new_ids.get(match[0], match[0]), text)
        if new_text != text:
            changes.append({f"key_{key}": row[key] for key in keys} | {"value": json.loads(new_text)})
    for start in range(0, len(changes), _CHUNK_SIZE):
        connection.execute(statement, changes[start : start + _CHUNK_SIZE])
