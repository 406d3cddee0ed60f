"""Names as sign-in compares them, and the second factor."""

from __future__ import annotations

import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("person") as table:
        table.add_column(sa.Column("name_key", sa.String()))
        table.add_column(sa.Column("totp_secret", sa.String()))
        table.add_column(sa.Column("totp_step", sa.BigInteger()))
        table.add_column(sa.Column("recovery_hashes", sa.JSON()))
    _fill_columns(op.get_bind())
    with op.batch_alter_table("person") as table:
        table.alter_column("name_key", existing_type=sa.String(), nullable=False)
        table.alter_column("recovery_hashes", existing_type=sa.JSON(), nullable=False)
        table.create_unique_constraint("uq_person_name_key", ["name_key"])
    op.create_table(
        "challenge",
        sa.Column("token_hash", sa.String(), primary_key=True),
        sa.Column("person_id", sa.String(), sa.ForeignKey("person.id"), nullable=False, index=True),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("challenge")
    with op.batch_alter_table("person") as table:
        table.drop_constraint("uq_person_name_key", type_="unique")
        for column in ("recovery_hashes", "totp_step", "totp_secret", "name_key"):
            table.drop_column(column)


def _fill_columns(connection: sa.Connection) -> None:
    person = sa.table("person", *(sa.column(name) for name in ("id", "name", "name_key", "created_at")))
    person.append_column(sa.column("recovery_hashes", sa.JSON()))
    used_keys: set[str] = set()
    rows = connection.execute(sa.select(person.c.id, person.c.name).order_by(person.c.created_at, person.c.id)).all()
    for person_id, name in rows:
        new_name, number = name, 1
        while _name_key(new_name) in used_keys:
            number += 1
            new_name = f"{name} {number}"
        if new_name != name:
            print(f"two accounts have the name '{name}', written in two ways; the later one is now '{new_name}'")
        used_keys.add(_name_key(new_name))
        values = {"name": new_name, "name_key": _name_key(new_name), "recovery_hashes": []}
        connection.execute(sa.update(person).where(person.c.id == person_id).values(values))


def _name_key(name: str) -> str:
    """Return `models.people.normalize_name` as it was at this revision."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.casefold().split())
