"""Batches, forms and steps for tests of the labelers' work."""

from __future__ import annotations

import pytest
from site_support import add_person
from sqlalchemy import select

from instructgpt.label.db.models import Assignment, Base, Task, TaskCompletion
from instructgpt.label.errors import Problem
from instructgpt.label.tasks.assignments import claim, recount
from instructgpt.label.tasks.batches import Policy, make_batch, open_batch
from instructgpt.label.tasks.forms import DemonstrateForm, RankForm, ReviewForm, WriteForm
from instructgpt.label.tasks.submissions import submit
from instructgpt.records import Completion, Prompt

PLAIN = Policy(overlap=1, cohort_share=0, gold_share=0, repeat_share=0)
"""One labeler a task, nothing else."""


def rank_batch(db, tasks=3, k=4, name="batch", purpose="training", policy=PLAIN, **options):
    """An open batch of rank tasks with k different completions each."""
    prompts = [Prompt(prompt=f"{name} prompt {number}") for number in range(tasks)]
    completions = [
        Completion(prompt=prompt.prompt, completion=f"answer {model} to {prompt.prompt}", model=f"model-{model}")
        for prompt in prompts
        for model in range(k)
    ]
    batch = make_batch(db, name, "rank", purpose, prompts, completions, policy, **options)
    open_batch(db, batch)
    return batch


def prompt_batch(db, kind="demonstrate", tasks=2, name="batch", purpose="training", policy=PLAIN, **options):
    """An open batch of demonstrate or review tasks, or of write tasks with a brief each."""
    briefs = [{"form": "plain"}] * tasks if kind == "write" else ()
    prompts = [Prompt(prompt=f"{name} prompt {number}") for number in range(tasks if kind != "write" else 0)]
    batch = make_batch(db, name, kind, purpose, prompts, (), policy, briefs=briefs, **options)
    open_batch(db, batch)
    return batch


def ranking(shown, order=None, **more):
    """A whole form: the completions of an assignment, each in a tier of its own, in the order shown or in another."""
    ids = list(order or shown)
    return RankForm(
        ratings=[{"completion": each, "rating": 1 + number % 7, "labels": {"opinion": number % 2 == 0}} for number, each in enumerate(ids)],
        tiers=[(each,) for each in ids],
        **more,
    )


def completions_of(db, task_id):
    """Ids of a task's completions."""
    return list(db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task_id)))


def take(site, person, at=1_000, kind=None, screening=None):
    return site.database.attempt(lambda db: claim(db, site.settings, person, kind, at, screening))


def hand_in(site, mine, at=2_000, key="key"):
    def put(db):
        task = db.get(Task, mine.task_id)
        forms = {"demonstrate": DemonstrateForm(text="text"), "write": WriteForm(text="text"), "review": ReviewForm()}
        form = ranking(mine.shown) if task.kind == "rank" else forms[task.kind]
        return submit(db, site.settings, mine, form, key, at)

    return site.database.attempt(put)


def task_of(site, mine):
    with site.database.read() as db:
        return db.get(Task, mine.task_id)


def state(site, mine):
    with site.database.read() as db:
        return db.get(Assignment, mine.id).state


def refused(code, call, *arguments, **options):
    with pytest.raises(Problem) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return caught.value


def sound(site):
    with site.database.read() as db:
        assert recount(db) == []


def make(site, build, *arguments, **options):
    with site.database.write() as db:
        return build(db, *arguments, **options)


def everything(site):
    """All rows of all tables."""
    with site.database.engine.connect() as connection:
        return {table.name: sorted(map(repr, connection.execute(table.select()))) for table in Base.metadata.sorted_tables}


@pytest.fixture
def desk(site):
    """(ada, her assignment of a rank task, a function that does something in a transaction)."""
    ada = add_person(site, "ada")
    with site.database.write() as db:
        rank_batch(db, tasks=2, k=3)

    def do(function, *arguments):
        return site.database.attempt(lambda db: function(db, *arguments))

    return ada, do(claim, site.settings, ada, None, 1_000), do
