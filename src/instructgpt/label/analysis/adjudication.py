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

from instructgpt.label.analysis.quality import TaskDisagreement, find_disagreements
from instructgpt.label.analysis.rankings import StoredRanking, StoredRating, load_stored_rankings, load_stored_ratings
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Adjudication,
    Assignment,
    Batch,
    CompletionRow,
    GoldAnswer,
    Person,
    PromptRow,
    Submission,
    Task,
    TaskCompletion,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP
from instructgpt.label.tasks.forms import tier_ranks

if TYPE_CHECKING:
    from instructgpt.statistics.consensus import Consensus

ERROR_CATEGORIES = (
    "misread_prompt",
    "missed_constraint",
    "missed_hallucination",
    "missed_harm",
    "length",
    "style",
    "expertise",
    "careless",
    "instructions",
    "taste",
)
"""Why labelers disagreed: somebody overlooked something, was led by length or style, lacked knowledge or care; or the instructions leave
the case open; or it is taste, and nobody is wrong."""


@dataclass(frozen=True, slots=True)
class DisputedTask:
    """One line of the queue."""

    disagreement: TaskDisagreement
    batch_name: str
    prompt_text: str
    settled_at: int
    """When it was last settled (milliseconds); 0: not yet."""


@dataclass(frozen=True, slots=True)
class DisputedTaskDetail:
    """A task to be settled: rankings under numbers in place of names, in an order that tells nothing."""

    task: Task
    batch: Batch
    prompt: PromptRow
    completions: Sequence[CompletionRow]
    """Letters follow their order."""
    rankings: Sequence[StoredRanking]
    ratings: Mapping[tuple[int, str], StoredRating]
    """(number of the ranking, completion) -> rating and labels."""
    consensus: Consensus | None
    """Kemeny's; None with fewer than two rankings."""
    disputed_pairs: Sequence[tuple[str, str, int, int]]
    """(completion, completion, labelers who put the first above, labelers who put the second above) where both happened."""
    adjudications: Sequence[Adjudication]
    gold: GoldAnswer | None


def list_disputed_tasks(db: Session, batch: str | None = None) -> list[DisputedTask]:
    """Tasks on which labelers went opposite ways: unsettled ones first, by the share of decided pairs that did. Four statements."""
    contested = [each for each in find_disagreements(load_stored_rankings(db, batch)) if each.opposite]
    task_info = {
        task: (name, text)
        for task, name, text in db.execute(
            select(Task.id, Batch.name, PromptRow.text)
            .join(Batch, Batch.id == Task.batch_id)
            .join(PromptRow, PromptRow.id == Task.prompt_id)
            .where(Task.kind == "rank", Task.overlap > 1)
        )
    }
    settled = {
        row.task_id: row.at
        for row in db.execute(select(Adjudication.task_id, Adjudication.at).order_by(Adjudication.at))
    }
    rows = [
        DisputedTask(each, *task_info[each.task], settled.get(each.task, 0))
        for each in contested
        if each.task in task_info
    ]
    return sorted(rows, key=lambda row: bool(row.settled_at))


def get_task_completions(db: Session, task_id: str) -> list[CompletionRow]:
    """The completions of a task in an order of the task's own: were it that of the models, letters would give them away over many tasks."""
    statement = select(CompletionRow).join(TaskCompletion, TaskCompletion.completion_id == CompletionRow.id)
    rows = db.scalars(statement.where(TaskCompletion.task_id == task_id))
    return sorted(rows, key=lambda row: sha256(f"{task_id} {row.id}".encode()).digest())


def get_disputed_task(db: Session, task_id: str) -> DisputedTaskDetail:
    """Everything about one task. Raises Problem 404."""
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank" or task.prompt_id is None:
        raise SiteError(404, "no_such_task")
    batch, prompt = db.get_one(Batch, task.batch_id), db.get_one(PromptRow, task.prompt_id)
    completions = get_task_completions(db, task_id)
    task_rankings = [row for row in load_stored_rankings(db, batch.id) if row.task == task_id and row.round == 0]
    rankings = sorted(
        task_rankings, key=lambda row: row.submission[::-1]
    )  # random bits first: neither by name nor by time
    index_by_submission = {row.submission: index for index, row in enumerate(rankings)}
    ratings = {
        (index_by_submission[row.submission], row.completion): row
        for row in load_stored_ratings(db, batch.id)
        if row.submission in index_by_submission
    }
    gold = db.get(GoldAnswer, task_id) or db.scalar(
        select(GoldAnswer).where(GoldAnswer.source == f"adjudication of {task_id}")
    )
    adjudications = list(
        db.scalars(select(Adjudication).where(Adjudication.task_id == task_id).order_by(Adjudication.at.desc()))
    )
    return DisputedTaskDetail(
        task,
        batch,
        prompt,
        completions,
        rankings,
        ratings,
        _consensus_ranking(rankings),
        _disputed_pairs(rankings),
        adjudications,
        gold,
    )


def _consensus_ranking(rankings: Sequence[StoredRanking]) -> Consensus | None:
    """Kemeny's consensus of rankings of the same completions: the ranking that contradicts the fewest of their pairs."""
    from instructgpt.statistics.consensus import kemeny_consensus

    return kemeny_consensus(rankings) if len(rankings) > 1 else None


def _disputed_pairs(rankings: Sequence[StoredRanking]) -> list[tuple[str, str, int, int]]:
    """Pairs of completions that were put both ways, the most even ones first."""
    ranks_by_completion = [dict(zip(each.completions, each.ranks, strict=True)) for each in rankings]
    pairs = []
    completions = list(ranks_by_completion[0]) if ranks_by_completion else []
    for index, first in enumerate(completions):
        for second in completions[index + 1 :]:
            above = sum(row[first] < row[second] for row in ranks_by_completion)
            below = sum(row[first] > row[second] for row in ranks_by_completion)
            if above and below:
                pairs.append((first, second, above, below))
    return sorted(pairs, key=lambda pair: abs(pair[2] - pair[3]))


def adjudicate(
    db: Session,
    task_id: str,
    adjudicator: Person,
    tiers: Mapping[str, int],
    errors: Sequence[str],
    reason: str,
    now_ms: int,
) -> Adjudication:
    """Settle on a ranking.

    Args:
        tiers: completion -> tier, 1 is best; gaps are closed, equal tiers tie.
        errors: some of ERRORS.

    Raises:
        Problem: `bad_ranking` (422) when not every completion has a tier, `bad_error` (422), or 404.
    """
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank":
        raise SiteError(404, "no_such_task")
    completions = set(db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task_id)))
    if set(tiers) != completions or min(tiers.values(), default=0) < 1:
        raise SiteError(422, "bad_ranking")
    if set(errors) - set(ERROR_CATEGORIES):
        raise SiteError(422, "bad_error", errors=", ".join(ERROR_CATEGORIES))
    tier_groups = [[each for each, tier in tiers.items() if tier == level] for level in sorted(set(tiers.values()))]
    ranks = {completion: rank for completion, (_, rank) in tier_ranks(tier_groups).items()}
    adjudication = Adjudication(
        task_id=task_id, by_id=adjudicator.id, ranks=ranks, errors=list(errors), reason=reason.strip(), at=now_ms
    )
    db.add(adjudication)
    db.flush()
    audit_log.append_entry(
        db, adjudicator.id, "adjudication.settled", task_id, adjudication=adjudication.id, errors=list(errors)
    )
    return adjudication


def promote_to_gold(
    db: Session, task_id: str, adjudicator: Person, now_ms: int, target_batch_id: str | None = None
) -> GoldAnswer:
    """Ask the settled ranking of others as a check: a further task with the same completions, gold, once for everybody.

    The task itself stays as it is, so that progress, results and exports do not change.

    Args:
        into: the batch that gets the gold task; the task's own where not given.

    Raises:
        Problem: `not_settled` (409), `already_gold` (409), or `no_such_batch` (404).
    """
    latest = db.scalar(
        select(Adjudication)
        .where(Adjudication.task_id == task_id)
        .order_by(Adjudication.at.desc(), Adjudication.id.desc())
        .limit(1)
    )
    task = db.get(Task, task_id)
    if latest is None or task is None:
        raise SiteError(409, "not_settled")
    source = f"adjudication of {task_id}"
    if task.gold or db.scalar(select(GoldAnswer.task_id).where(GoldAnswer.source == source)) is not None:
        raise SiteError(409, "already_gold")
    batch = db.get(Batch, target_batch_id or task.batch_id)
    if batch is None or batch.kind != "rank":
        raise SiteError(404, "no_such_batch")
    last_position = db.scalar(select(func.max(Task.position)).where(Task.batch_id == batch.id)) or 0
    gold_task = Task(
        batch_id=batch.id,
        kind="rank",
        prompt_id=task.prompt_id,
        overlap=UNLIMITED_OVERLAP,
        position=last_position + 1,
        gold=True,
    )
    db.add(gold_task)
    db.flush()
    for row in db.scalars(select(TaskCompletion).where(TaskCompletion.task_id == task_id)):
        db.add(
            TaskCompletion(
                task_id=gold_task.id, completion_id=row.completion_id, position=row.position, models=list(row.models)
            )
        )
    gold = GoldAnswer(
        task_id=gold_task.id, answer=dict(latest.ranks), source=source, created_by=adjudicator.id, created_at=now_ms
    )
    db.add(gold)
    db.flush()
    audit_log.append_entry(db, adjudicator.id, "gold.promoted", gold_task.id, adjudication=latest.id)
    return gold


def list_submitters(db: Session, task_id: str) -> list[tuple[str, str, str]]:
    """(assignment, labeler's name, state) of everybody who handed in this task, for returning work."""
    statement = (
        select(Assignment.id, Person.name, Assignment.state)
        .join(Person, Person.id == Assignment.person_id)
        .join(Submission, Submission.assignment_id == Assignment.id)
        .where(Assignment.task_id == task_id, Submission.replaced_at.is_(None))
        .order_by(Submission.created_at)
    )
    return [(assignment, name, state) for assignment, name, state in db.execute(statement)]
