"""An evaluation batch that is divided between the cohorts: each gets exactly its share, whoever comes first.

pytest tests/label/tasks/test_cohort_share.py
"""

from __future__ import annotations

import pytest
from support.owner import fill
from support.site import add_person, client_of
from support.tasks import PLAIN

from instructgpt.errors import InputError
from instructgpt.label.db.models import Batch, Task
from instructgpt.label.tasks.batch_warnings import find_batch_warnings

DIVIDED = PLAIN.model_copy(update={"heldout_share": 0.3})


def work_until_nothing_is_left(site, name, cohort):
    """The tasks that a labeler gets through the API, one after the other."""
    client, tasks = client_of(site, add_person(site, name, cohort=cohort)), []
    while (answer := client.post("/api/v1/tasks/claim")).status_code == 200:
        task = answer.json()
        form = {"ratings": [], "tiers": [[each["id"]] for each in task["completions"]]}
        path = f"/api/v1/assignments/{task['assignment']}/submit"
        assert client.post(path, json=form, headers={"Idempotency-Key": task["assignment"]}).status_code == 200
        tasks.append(task["prompt"])
    assert answer.status_code == 204
    return tasks


def test_each_cohort_gets_its_share(site):
    """The training labelers come first and are quick; held-out tasks wait for the held-out labeler."""
    filled = fill(site, tasks=10, purpose="evaluation", policy=DIVIDED)
    training = work_until_nothing_is_left(site, "ada", "training") + work_until_nothing_is_left(site, "ben", "training")
    heldout = work_until_nothing_is_left(site, "hal", "heldout")
    assert (len(training), len(heldout)) == (7, 3)
    assert not set(training) & set(heldout)
    with site.database.read() as db:
        assert {task.cohort for task in db.query(Task).filter_by(batch_id=filled.batch)} == {"training", "heldout"}


def test_a_cohort_for_the_whole_batch_ends_the_division(site):
    filled = fill(site, tasks=10, purpose="evaluation", policy=DIVIDED)
    owner = client_of(site, add_person(site, "olga", role="owner"))
    changed = owner.post(
        f"/batches/{filled.batch}/settings", data={"name": "batch", "cohort": "training", "overlap": "1"}
    )
    assert changed.status_code == 303
    assert len(work_until_nothing_is_left(site, "ada", "training")) == 10
    assert work_until_nothing_is_left(site, "hal", "heldout") == []


def test_copies_are_divided_alike_and_a_missing_cohort_is_named(site):
    filled = fill(site, tasks=10, purpose="evaluation", policy=DIVIDED)
    owner = client_of(site, add_person(site, "olga", role="owner"))
    add_person(site, "ada")
    page = owner.get(f"/batches/{filled.batch}").text
    assert "There is no active held-out labeler: 3 tasks" in page
    owner.post(f"/batches/{filled.batch}/duplicate", data={"name": "copy"})
    with site.database.read() as db:
        copy = db.query(Batch).filter_by(name="copy").one()
        assert db.query(Task).filter_by(batch_id=copy.id, cohort="heldout").count() == 3
        assert [each.code for each in find_batch_warnings(db, copy)] == ["nobody_heldout"]


@pytest.mark.parametrize("options", [{"purpose": "training"}, {"purpose": "evaluation", "cohort": "heldout"}])
def test_only_evaluations_of_both_cohorts_are_divided(site, options):
    with pytest.raises(InputError, match="heldout_share"):
        fill(site, tasks=2, policy=DIVIDED, **options)
