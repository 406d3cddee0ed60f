"""Settling on a ranking where labelers disagreed: the queue, the rankings side by side, a proposal, what was wrong, gold for later.

Labelers' own rankings are never changed: an adjudication is a further row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.quality import Disagreement, disagreements
from instructgpt.label.analysis.rankings import Ranked, Rated, read_rankings, read_ratings
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Adjudication, Assignment, Batch, Completion, Gold, Person, Prompt, Submission, Task, TaskCompletion
from instructgpt.label.errors import Problem
from instructgpt.label.tasks.batches import EVERYBODY
from instructgpt.label.tasks.forms import dense_ranks

if TYPE_CHECKING:
    from instructgpt.statistics.consensus import Consensus

ERRORS = (
    "misread_prompt", "missed_constraint", "missed_hallucination", "missed_harm", "length", "style", "expertise", "careless",
    "instructions", "taste",
)  # fmt: skip
"""Why labelers disagreed: somebody overlooked something, was led by length or style, lacked knowledge or care; or the instructions leave
the case open; or it is taste, and nobody is wrong."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One line of the queue."""

    disagreement: Disagreement
    batch: str
    text: str
    settled: int
    """When it was last settled (milliseconds); 0: not yet."""


@dataclass(frozen=True, slots=True)
class Case:
    """A task to be settled: rankings under numbers in place of names, in an order that tells nothing."""

    task: Task
    batch: Batch
    prompt: Prompt
    completions: Sequence[Completion]
    """Letters follow their order."""
    rankings: Sequence[Ranked]
    ratings: Mapping[tuple[int, str], Rated]
    """(number of the ranking, completion) -> rating and labels."""
    proposal: Consensus | None
    """Kemeny's; None with fewer than two rankings."""
    disputed: Sequence[tuple[str, str, int, int]]
    """(completion, completion, labelers who put the first above, labelers who put the second above) where both happened."""
    settled: Sequence[Adjudication]
    gold: Gold | None


def queue(db: Session, batch: str | None = None) -> list[Waiting]:
    """Tasks on which labelers went opposite ways: unsettled ones first, by the share of decided pairs that did. Four statements."""
    found = [each for each in disagreements(read_rankings(db, batch)) if each.opposite]
    about = {
        task: (name, text)
        for task, name, text in db.execute(
            select(Task.id, Batch.name, Prompt.text).join(Batch, Batch.id == Task.batch_id).join(Prompt, Prompt.id == Task.prompt_id)
            .where(Task.kind == "rank", Task.overlap > 1)
        )
    }  # fmt: skip
    settled = {row.task_id: row.at for row in db.execute(select(Adjudication.task_id, Adjudication.at).order_by(Adjudication.at))}
    rows = [Waiting(each, *about[each.task], settled.get(each.task, 0)) for each in found if each.task in about]
    return sorted(rows, key=lambda row: bool(row.settled))


def completions_of(db: Session, task_id: str) -> list[Completion]:
    """The completions of a task in an order of the task's own: were it that of the models, letters would give them away over many tasks."""
    statement = select(Completion).join(TaskCompletion, TaskCompletion.completion_id == Completion.id)
    rows = db.scalars(statement.where(TaskCompletion.task_id == task_id))
    return sorted(rows, key=lambda row: sha256(f"{task_id} {row.id}".encode()).digest())


def case(db: Session, task_id: str) -> Case:
    """Everything about one task. Raises Problem 404."""
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank" or task.prompt_id is None:
        raise Problem(404, "no_such_task")
    batch, prompt = db.get_one(Batch, task.batch_id), db.get_one(Prompt, task.prompt_id)
    completions = completions_of(db, task_id)
    mine = [each for each in read_rankings(db, batch.id) if each.task == task_id and each.round == 0]
    rankings = sorted(mine, key=lambda each: each.submission[::-1])  # random bits first: neither by name nor by time
    number = {each.submission: place for place, each in enumerate(rankings)}
    ratings = {
        (number[each.submission], each.completion): each for each in read_ratings(db, batch.id) if each.submission in number
    }  # fmt: skip
    gold = db.get(Gold, task_id) or db.scalar(select(Gold).where(Gold.source == f"adjudication of {task_id}"))
    settled = list(db.scalars(select(Adjudication).where(Adjudication.task_id == task_id).order_by(Adjudication.at.desc())))
    return Case(task, batch, prompt, completions, rankings, ratings, proposal(rankings), disputed(rankings), settled, gold)


def proposal(rankings: Sequence[Ranked]) -> Consensus | None:
    """Kemeny's consensus of rankings of the same completions: the ranking that contradicts the fewest of their pairs."""
    from instructgpt.statistics.consensus import consensus

    return consensus(rankings) if len(rankings) > 1 else None


def disputed(rankings: Sequence[Ranked]) -> list[tuple[str, str, int, int]]:
    """Pairs of completions that were put both ways, the most even ones first."""
    rows = [dict(zip(each.completions, each.ranks, strict=True)) for each in rankings]
    found = []
    names = list(rows[0]) if rows else []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            above = sum(row[first] < row[second] for row in rows)
            below = sum(row[first] > row[second] for row in rows)
            if above and below:
                found.append((first, second, above, below))
    return sorted(found, key=lambda pair: abs(pair[2] - pair[3]))


def settle(db: Session, task_id: str, by: Person, tiers: Mapping[str, int], errors: Sequence[str], reason: str, at: int) -> Adjudication:
    """Settle on a ranking.

    Args:
        tiers: completion -> tier, 1 is best; gaps are closed, equal tiers tie.
        errors: some of ERRORS.

    Raises:
        Problem: `bad_ranking` (422) when not every completion has a tier, `bad_error` (422), or 404.
    """
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank":
        raise Problem(404, "no_such_task")
    completions = set(db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task_id)))
    if set(tiers) != completions or min(tiers.values(), default=0) < 1:
        raise Problem(422, "bad_ranking")
    if set(errors) - set(ERRORS):
        raise Problem(422, "bad_error", errors=", ".join(ERRORS))
    placed = [[each for each, tier in tiers.items() if tier == level] for level in sorted(set(tiers.values()))]
    ranks = {completion: rank for completion, (_, rank) in dense_ranks(placed).items()}
    row = Adjudication(task_id=task_id, by_id=by.id, ranks=ranks, errors=list(errors), reason=reason.strip(), at=at)
    db.add(row)
    db.flush()
    audit_log.note(db, by.id, "adjudication.settled", task_id, adjudication=row.id, errors=list(errors))
    return row


def promote(db: Session, task_id: str, by: Person, at: int, into: str | None = None) -> Gold:
    """Ask the settled ranking of others as a check: a further task with the same completions, gold, once for everybody.

    The task itself stays as it is, so that progress, results and exports do not change.

    Args:
        into: the batch that gets the gold task; the task's own where not given.

    Raises:
        Problem: `not_settled` (409), `already_gold` (409), or `no_such_batch` (404).
    """
    last = db.scalar(
        select(Adjudication).where(Adjudication.task_id == task_id).order_by(Adjudication.at.desc(), Adjudication.id.desc()).limit(1)
    )
    task = db.get(Task, task_id)
    if last is None or task is None:
        raise Problem(409, "not_settled")
    source = f"adjudication of {task_id}"
    if task.gold or db.scalar(select(Gold.task_id).where(Gold.source == source)) is not None:
        raise Problem(409, "already_gold")
    batch = db.get(Batch, into or task.batch_id)
    if batch is None or batch.kind != "rank":
        raise Problem(404, "no_such_batch")
    behind = db.scalar(select(func.max(Task.position)).where(Task.batch_id == batch.id)) or 0
    check = Task(batch_id=batch.id, kind="rank", prompt_id=task.prompt_id, overlap=EVERYBODY, position=behind + 1, gold=True)
    db.add(check)
    db.flush()
    for row in db.scalars(select(TaskCompletion).where(TaskCompletion.task_id == task_id)):
        db.add(TaskCompletion(task_id=check.id, completion_id=row.completion_id, position=row.position, models=list(row.models)))
    gold = Gold(task_id=check.id, answer=dict(last.ranks), source=source, created_by=by.id, created_at=at)
    db.add(gold)
    db.flush()
    audit_log.note(db, by.id, "gold.promoted", check.id, adjudication=last.id)
    return gold


def whose(db: Session, task_id: str) -> list[tuple[str, str, str]]:
    """(assignment, labeler's name, state) of everybody who handed in this task, for returning work."""
    statement = (
        select(Assignment.id, Person.name, Assignment.state)
        .join(Person, Person.id == Assignment.person_id)
        .join(Submission, Submission.assignment_id == Assignment.id)
        .where(Assignment.task_id == task_id, Submission.replaced_at.is_(None))
        .order_by(Submission.created_at)
    )
    return [(assignment, name, state) for assignment, name, state in db.execute(statement)]
