"""What migrations do to the data of earlier versions, whose tables are filled here by plain SQL."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from instructgpt.label.db import migrate
from instructgpt.label.db.database import Database
from instructgpt.label.db.models.base import new_id


@pytest.fixture
def old_database(database_url):
    """A database of the first revision."""
    database = Database(database_url)
    database.upgrade("0001")
    yield database
    database.close()


def insert(database, table, **values):
    """Insert a row as an earlier version did; columns that it must have and nobody looks at are filled."""
    with database.engine.begin() as connection:
        known = {column["name"]: column for column in sa_columns(connection, table)}
        for name, column in known.items():
            if name not in values and not column["nullable"] and column["default"] is None:
                kind = column["type"].python_type
                values[name] = {str: "x", int: 0, bool: False, dict: "{}", list: "[]", float: 0.0}.get(kind, "{}")
        values = {
            name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in values.items()
        }
        columns = ", ".join(f'"{name}"' for name in values)
        slots = ", ".join(f":{name}" for name in values)
        connection.execute(text(f'INSERT INTO "{table}" ({columns}) VALUES ({slots})'), values)


def sa_columns(connection, table):
    from sqlalchemy import inspect

    return inspect(connection).get_columns(table)


def rows(database, statement):
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def decoded(value):
    return json.loads(value) if isinstance(value, str) else value


def test_completions_get_random_ids_and_keep_what_refers_to_them(old_database):
    completions = [new_id() for _ in range(3)]
    insert(old_database, "person", id="p", name="Ada", role="labeler", status="active", pseudonym="labeler-1")
    insert(old_database, "prompt", id="q")
    insert(old_database, "batch", id="b", kind="rank", purpose="training", state="open")
    insert(old_database, "task", id="t", batch_id="b", kind="rank", prompt_id="q", overlap=1, n_done=1, state="done")
    for number, completion in enumerate(completions):
        insert(old_database, "completion", id=completion, prompt_id="q", text=f"answer {number}", text_hash=f"{number}")
        insert(old_database, "task_completion", task_id="t", completion_id=completion, position=number, models=["m"])
    insert(old_database, "assignment", id="a", task_id="t", person_id="p", state="submitted", shown=completions[::-1])
    note = f"a note about {completions[0]} and {new_id()}"
    insert(
        old_database, "draft", assignment_id="a", payload={"tiers": [completions[:2], completions[2:]], "note": note}
    )
    insert(old_database, "submission", id="s", assignment_id="a", version=1, kind="rank")
    insert(old_database, "ranking", submission_id="s")
    for number, completion in enumerate(completions):
        ids = {"submission_id": "s", "completion_id": completion}
        insert(old_database, "ranking_item", **ids, tier=number + 1, rank=number + 1, shown=number)
        insert(old_database, "rating", **ids, rating=number + 1)
    insert(old_database, "gold", task_id="t", answer={name: rank for rank, name in enumerate(completions, 1)})

    old_database.upgrade()

    new_ids = [row[0] for row in rows(old_database, "SELECT id FROM completion ORDER BY text")]
    assert not set(new_ids) & set(completions)
    assert {name[14] for name in new_ids} == {"4"}, "UUID version 4"
    assert [
        row[0] for row in rows(old_database, "SELECT completion_id FROM task_completion ORDER BY position")
    ] == new_ids
    assert [row[0] for row in rows(old_database, "SELECT completion_id FROM ranking_item ORDER BY rank")] == new_ids
    assert [row[0] for row in rows(old_database, "SELECT completion_id FROM rating ORDER BY rating")] == new_ids
    ((shown,),) = rows(old_database, "SELECT shown FROM assignment")
    assert decoded(shown) == new_ids[::-1]
    ((draft,),) = rows(old_database, "SELECT payload FROM draft")
    assert decoded(draft)["tiers"] == [new_ids[:2], new_ids[2:]]
    assert new_ids[0] in decoded(draft)["note"]
    ((gold,),) = rows(old_database, "SELECT answer FROM gold")
    assert decoded(gold) == {name: rank for rank, name in enumerate(new_ids, 1)}
    assert migrate.compute_schema_diff(old_database.engine) == [], "the foreign keys are back"


def test_ratings_up_to_twenty_are_stored_after_the_upgrade_and_no_row_is_lost(old_database):
    insert(old_database, "person", id="p", name="Ada", role="labeler", status="active", pseudonym="labeler-1")
    insert(old_database, "prompt", id="q")
    insert(old_database, "batch", id="b", kind="rank", purpose="training", state="open")
    insert(old_database, "task", id="t", batch_id="b", kind="rank", prompt_id="q", overlap=1, n_done=1, state="done")
    for number in range(3):
        insert(old_database, "completion", id=new_id(), prompt_id="q", text=f"{number}", text_hash=f"{number}")
    insert(old_database, "assignment", id="a", task_id="t", person_id="p", state="submitted", shown=[])
    insert(old_database, "submission", id="s", assignment_id="a", version=1, kind="rank")
    first, second, third = (row[0] for row in rows(old_database, "SELECT id FROM completion ORDER BY text"))
    insert(old_database, "rating", submission_id="s", completion_id=first, rating=7)
    with pytest.raises(IntegrityError):
        insert(old_database, "rating", submission_id="s", completion_id=second, rating=8)
    old_database.upgrade()
    first, second, third = (row[0] for row in rows(old_database, "SELECT id FROM completion ORDER BY text"))
    insert(old_database, "rating", submission_id="s", completion_id=second, rating=20)
    for wrong in (0, 21):
        with pytest.raises(IntegrityError):
            insert(old_database, "rating", submission_id="s", completion_id=third, rating=wrong)
    assert [row[0] for row in rows(old_database, "SELECT rating FROM rating ORDER BY rating")] == [7, 20]
    assert [decoded(row[0]) for row in rows(old_database, "SELECT rates FROM batch")] == [[]]
    assert migrate.compute_schema_diff(old_database.engine) == []


def test_names_get_their_key_and_two_forms_of_one_name_stay_apart(old_database, capsys):
    names = ["Ada", "민수", "STRASSE", "straße", "Zoë", "Zoe\u0308", "Ｊｏ"]
    for number, name in enumerate(names):
        insert(
            old_database, "person", id=f"p{number}", name=name, role="owner", status="active", pseudonym=f"l{number}"
        )
    old_database.upgrade()
    found = rows(old_database, "SELECT name, name_key FROM person ORDER BY id")
    assert found == [
        ("Ada", "ada"),
        ("민수", "민수"),
        ("STRASSE", "strasse"),
        ("straße 2", "strasse 2"),
        ("Zoë", "zoë"),
        ("Zoe\u0308 2", "zoë 2"),
        ("Ｊｏ", "jo"),
    ]
    assert "the later one is now 'straße 2'" in capsys.readouterr().out
    assert migrate.compute_schema_diff(old_database.engine) == []
