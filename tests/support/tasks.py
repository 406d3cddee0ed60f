"""Batches, forms and steps for tests of the labelers' work."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from support.site import add_person

from instructgpt.label.db.models import Assignment, Base, Task, TaskCompletion
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.assignments import claim_next_task, find_counter_mismatches
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open
from instructgpt.label.tasks.forms import DemonstrationForm, PromptForm, RankingForm, ReviewForm
from instructgpt.label.tasks.submissions import submit_form
from instructgpt.records import Completion, Prompt

PLAIN = OverlapPolicy(overlap=1, cohort_share=0, gold_share=0, repeat_share=0)
"""One labeler a task, nothing else."""


def rank_batch(db, tasks=3, k=4, name="batch", purpose="training", policy=PLAIN, **options):
    """An open batch of rank tasks with k different completions each."""
    prompts = [Prompt(prompt=f"{name} prompt {number}") for number in range(tasks)]
    completions = [
        Completion(prompt=prompt.prompt, completion=f"answer {model} to {prompt.prompt}", model=f"model-{model}")
        for prompt in prompts
        for model in range(k)
    ]
    batch = create_batch_with_tasks(db, name, "rank", purpose, prompts, completions, policy, **options)
    mark_batch_open(db, batch)
    return batch


def prompt_batch(db, kind="demonstrate", tasks=2, name="batch", purpose="training", policy=PLAIN, **options):
    """An open batch of demonstrate or review tasks, or of write tasks with a brief each."""
    briefs = [{"form": "plain"}] * tasks if kind == "write" else ()
    prompts = [Prompt(prompt=f"{name} prompt {number}") for number in range(tasks if kind != "write" else 0)]
    batch = create_batch_with_tasks(db, name, kind, purpose, prompts, (), policy, briefs=briefs, **options)
    mark_batch_open(db, batch)
    return batch


def ranking(shown, order=None, **more):
    """A whole form: the completions of an assignment, each in a tier of its own, in the order shown or in another."""
    ids = list(order or shown)
    return RankingForm(
        ratings=[
            {"completion": each, "rating": 1 + number % 7, "labels": {"opinion": number % 2 == 0}}
            for number, each in enumerate(ids)
        ],
        tiers=[(each,) for each in ids],
        **more,
    )


def completions_of(db, task_id):
    """Ids of a task's completions."""
    return list(db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task_id)))


def take(site, person, at=1_000, kind=None, screening=None):
    return site.database.write_with_retry(lambda db: claim_next_task(db, site.settings, person, kind, at, screening))


def hand_in(site, mine, at=2_000, key="key"):
    def put(db):
        task = db.get(Task, mine.task_id)
        forms = {
            "demonstrate": DemonstrationForm(text="text"),
            "write": PromptForm(text="text"),
            "review": ReviewForm(),
        }
        form = ranking(mine.shown) if task.kind == "rank" else forms[task.kind]
        return submit_form(db, site.settings, mine, form, key, at)

    return site.database.write_with_retry(put)


def task_of(site, mine):
    with site.database.read() as db:
        return db.get(Task, mine.task_id)


def state(site, mine):
    with site.database.read() as db:
        return db.get(Assignment, mine.id).state


def refused(code, call, *arguments, **options):
    with pytest.raises(SiteError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return caught.value


def sound(site):
    with site.database.read() as db:
        assert find_counter_mismatches(db) == []


def make(site, build, *arguments, **options):
    with site.database.write() as db:
        return build(db, *arguments, **options)


def everything(site):
    """All rows of all tables."""
    with site.database.engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(table.select()))) for table in Base.metadata.sorted_tables
        }


@pytest.fixture
def desk(site):
    """(ada, her assignment of a rank task, a function that does something in a transaction)."""
    ada = add_person(site, "ada")
    with site.database.write() as db:
        rank_batch(db, tasks=2, k=3)

    def do(function, *arguments):
        return site.database.write_with_retry(lambda db: function(db, *arguments))

    return ada, do(claim_next_task, site.settings, ada, None, 1_000), do
