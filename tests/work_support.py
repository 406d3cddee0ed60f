"""Batches and forms for tests of the labelers' work."""

from __future__ import annotations

from sqlalchemy import select

from instructgpt.label.batches import Policy, make_batch, open_batch
from instructgpt.label.forms import RankForm
from instructgpt.label.tables import TaskCompletion
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
