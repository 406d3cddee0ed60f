"""Every page that an owner opens, on a site with open, closed, evaluation, screening and imported work.

pytest tests/label/web/test_owner_routes.py
"""

from __future__ import annotations

import json
import re

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import select
from support.owner import fill, people
from support.site import add_person, client_of
from support.tasks import prompt_batch

from instructgpt.label.db.models import Batch, Person, Task
from instructgpt.label.web.app import create_app

DATABASES = ("sqlite",)


@pytest.fixture
def site_with_everything(site):
    crowd = people(site, "ada", "ben")
    for name, purpose in (("work", "training"), ("judged", "evaluation")):
        filled = fill(site, tasks=2, name=name, purpose=purpose, baseline="sft" if purpose == "evaluation" else None)
        for person in crowd:
            filled.rank(0, person, [1, 2, 3], ratings=[4, 5, 3])
        filled.save()
    with site.database.write() as db:
        prompt_batch(db, "demonstrate", name="demonstrations")
        prompt_batch(db, "write", name="prompts")
        prompt_batch(db, "review", name="reviews")
    owner = client_of(site, add_person(site, "olga", role="owner"))
    records = {
        "rankings": {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "elsewhere"},
        "demonstrations": {"prompt": "q", "completion": "c", "labeler": "elsewhere"},
    }
    for name, record in records.items():
        file = (f"{name}.jsonl", json.dumps(record).encode() + b"\n")
        assert owner.post("/data/imports", data={"name": f"imported {name}"}, files={"file": file}).status_code == 200
    return site, owner


def test_no_page_of_any_batch_task_or_person_fails(site_with_everything):
    """A page that fails for one kind of batch, such as an imported one, fails here."""
    site, owner = site_with_everything
    with site.database.read() as db:
        rows = {"batch_id": Batch, "task_id": Task, "person_id": Person, "labeler": Person, "key": Batch}
        ids = {name: db.scalars(select(table.id)).all() for name, table in rows.items()}
    words = {"purpose": ["training", "evaluation"], "name": ["rankings", "labelers"], "kind": ["demographics"]}
    statuses = {}
    for context in iter_route_contexts(create_app(site).routes):
        route = getattr(context, "path", "")
        if "GET" not in (getattr(context, "methods", None) or ()) or route == "/api/v1/readyz":
            continue
        name = next(iter(re.findall(r"{(\w+)", route)), None)
        for value in (ids | words).get(name, ["nothing"]):
            path = re.sub(r"{[\w:]+}", value, route)
            statuses[path] = owner.get(path).status_code
    assert len(statuses) > 100
    assert not {path: status for path, status in statuses.items() if status >= 500}
    assert all(statuses[f"/batches/{batch}"] == 200 for batch in ids["batch_id"])
    assert all(statuses[f"/people/{person}"] == 200 for person in ids["person_id"])
