"""Adjudication: the queue of disputed tasks, the rankings side by side, a consensus proposal, and promotion to gold.

An adjudication is a row of its own. The labelers' rankings are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.quality import TaskDisagreement, find_disagreements
from instructgpt.label.analysis.rankings import (
    StoredRanking,
    StoredRating,
    load_stored_rankings,
    load_stored_ratings,
    ranks_from_tiers,
)
from instructgpt.label.db import audit_log
from instructgpt.label.db.models.people import Person
from instructgpt.label.db.models.quality import Adjudication, GoldAnswer
from instructgpt.label.db.models.tasks import Batch, CompletionRow, PromptRow, Task, TaskCompletion
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP
from instructgpt.label.tasks.task_view import newest_turn

if TYPE_CHECKING:
    from instructgpt.statistics.consensus import Consensus

# Causes of a disagreement: oversight, bias, missing knowledge or care; unclear instructions; taste, where nobody errs.
_OVERSIGHTS = ("misread_prompt", "missed_constraint", "missed_hallucination", "missed_harm")
ERROR_CATEGORIES = (*_OVERSIGHTS, "length", "style", "expertise", "careless", "instructions", "taste")


@dataclass(frozen=True, slots=True)
class DisputedTask:
    disagreement: TaskDisagreement
    batch_name: str
    settled_at: int
    """Time of the latest adjudication in milliseconds; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class DisputedTaskDetail:
    """A disputed task with its rankings, numbered instead of named and in an order that reveals no labeler."""

    task: Task
    batch: Batch
    prompt: PromptRow
    completions: Sequence[CompletionRow]
    """In the order of their letters."""
    rankings: Sequence[StoredRanking]
    ratings: Mapping[tuple[int, str], StoredRating]
    """(index into `rankings`, completion) -> rating and labels."""
    consensus: Consensus | None
    """Kemeny consensus; None with fewer than two rankings."""
    disputed_pairs: Sequence[tuple[str, str, int, int]]
    """(completion, completion, labelers who prefer the first, labelers who prefer the second), both counts positive."""
    adjudications: Sequence[Adjudication]
    gold: GoldAnswer | None


def list_disputed_tasks(db: Session, batch: str | None = None) -> list[DisputedTask]:
    """Return tasks with opposite preferences, unsettled first, then by share of opposite pairs. Four statements."""
    rankings = load_stored_rankings(db, batch, Task.overlap > 1)
    disputed = [row for row in find_disagreements(rankings) if row.opposite]
    batch_names = {row.id: row.name for row in db.execute(select(Batch.id, Batch.name))}
    batch_by_task = {row.task: batch_names[row.batch] for row in rankings}
    latest_times = select(Adjudication.task_id, Adjudication.at).order_by(Adjudication.at)
    settled = {row.task_id: row.at for row in db.execute(latest_times)}
    rows = [DisputedTask(row, batch_by_task[row.task], settled.get(row.task, 0)) for row in disputed]
    return sorted(rows, key=lambda row: bool(row.settled_at))


def load_task_titles(db: Session, task_ids: Sequence[str]) -> dict[str, str]:
    """Return what names each task: its prompt, or the newest turn of a conversation. One statement."""
    statement = select(Task.id, PromptRow.text, PromptRow.messages).join(PromptRow, PromptRow.id == Task.prompt_id)
    rows = db.execute(statement.where(Task.id.in_(task_ids)))
    return {task: newest_turn(text, turns) for task, text, turns in rows}


def get_task_completions(db: Session, task_id: str) -> list[CompletionRow]:
    """Return a task's completions in an order specific to the task, so that a letter never stands for one model."""
    statement = select(CompletionRow).join(TaskCompletion, TaskCompletion.completion_id == CompletionRow.id)
    rows = db.scalars(statement.where(TaskCompletion.task_id == task_id))
    return sorted(rows, key=lambda row: sha256(f"{task_id} {row.id}".encode()).digest())


def get_disputed_task(db: Session, task_id: str) -> DisputedTaskDetail:
    """Load one task for adjudication. Raises SiteError 404."""
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank" or task.prompt_id is None:
        raise SiteError(404, "no_such_task")
    batch, prompt = db.get_one(Batch, task.batch_id), db.get_one(PromptRow, task.prompt_id)
    rankings = [row for row in load_stored_rankings(db, only=Task.id == task_id) if row.round == 0]
    # The random end of the submission's id, not its leading time, decides the order: it hides who was first.
    rankings.sort(key=lambda row: row.submission[::-1])
    index_by_submission = {row.submission: index for index, row in enumerate(rankings)}
    gold_source = select(GoldAnswer).where(GoldAnswer.source == _gold_source(task_id))
    adjudications = select(Adjudication).where(Adjudication.task_id == task_id).order_by(Adjudication.at.desc())
    return DisputedTaskDetail(
        task=task,
        batch=batch,
        prompt=prompt,
        completions=get_task_completions(db, task_id),
        rankings=rankings,
        ratings={
            (index_by_submission[row.submission], row.completion): row
            for row in load_stored_ratings(db, only=Task.id == task_id)
            if row.submission in index_by_submission
        },
        consensus=_consensus_ranking(rankings),
        disputed_pairs=_disputed_pairs(rankings),
        adjudications=list(db.scalars(adjudications)),
        gold=db.get(GoldAnswer, task_id) or db.scalar(gold_source),
    )


def _gold_source(task_id: str) -> str:
    return f"adjudication of {task_id}"


def _consensus_ranking(rankings: Sequence[StoredRanking]) -> Consensus | None:
    from instructgpt.statistics.consensus import kemeny_consensus

    return kemeny_consensus(rankings) if len(rankings) > 1 else None


def _disputed_pairs(rankings: Sequence[StoredRanking]) -> list[tuple[str, str, int, int]]:
    """Return the pairs of completions that were ranked both ways, most even first."""
    ranks_by_completion = [dict(zip(ranking.completions, ranking.ranks, strict=True)) for ranking in rankings]
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
    """Settle a disputed task with a ranking.

    Args:
        tiers: completion -> tier, 1 is best; gaps are closed, equal tiers tie.
        errors: codes from ERROR_CATEGORIES.

    Raises:
        SiteError: `no_such_task` (404), `bad_ranking` (422) unless every completion has a tier, or `bad_error` (422).
    """
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank":
        raise SiteError(404, "no_such_task")
    ranks = ranks_from_tiers(db, task_id, tiers)
    if set(errors) - set(ERROR_CATEGORIES):
        raise SiteError(422, "bad_error", errors=", ".join(ERROR_CATEGORIES))
    person, errors, reason = adjudicator.id, list(errors), reason.strip()
    row = Adjudication(task_id=task_id, by_id=person, ranks=ranks, errors=errors, reason=reason, at=now_ms)
    db.add(row)
    db.flush()
    audit_log.append_entry(db, person, "adjudication.settled", task_id, adjudication=row.id, errors=errors)
    return row


def promote_to_gold(
    db: Session, task_id: str, adjudicator: Person, now_ms: int, target_batch_id: str | None = None
) -> GoldAnswer:
    """Create a gold task with the same completions and the adjudicated ranking as its answer.

    The disputed task itself does not change, so progress, results and exports stay the same.

    Args:
        target_batch_id: the batch of the gold task; by default the batch of the disputed task.

    Raises:
        SiteError: `not_settled` (409), `already_gold` (409), or `no_such_batch` (404).
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
    source = _gold_source(task_id)
    if task.gold or db.scalar(select(GoldAnswer.task_id).where(GoldAnswer.source == source)) is not None:
        raise SiteError(409, "already_gold")
    batch = db.get(Batch, target_batch_id or task.batch_id)
    if batch is None or batch.kind != "rank":
        raise SiteError(404, "no_such_batch")
    position = 1 + (db.scalar(select(func.max(Task.position)).where(Task.batch_id == batch.id)) or 0)
    gold_task = Task(
        batch_id=batch.id,
        kind="rank",
        prompt_id=task.prompt_id,
        position=position,
        gold=True,
        overlap=UNLIMITED_OVERLAP,
    )
    db.add(gold_task)
    db.flush()
    for row in db.scalars(select(TaskCompletion).where(TaskCompletion.task_id == task_id)):
        columns = {"completion_id": row.completion_id, "position": row.position, "models": list(row.models)}
        db.add(TaskCompletion(task_id=gold_task.id, **columns))
    gold = GoldAnswer(task_id=gold_task.id, answer=dict(latest.ranks), source=source, created_at=now_ms)
    gold.created_by = adjudicator.id
    db.add(gold)
    db.flush()
    audit_log.append_entry(db, adjudicator.id, "gold.promoted", gold_task.id, adjudication=latest.id)
    return gold
