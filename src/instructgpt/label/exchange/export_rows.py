"""The rows of each export file, streamed in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, combinations
from math import comb
from typing import Any, NamedTuple

from sqlalchemy import Exists, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models.people import Person
from instructgpt.label.db.models.submissions import (
    Assignment,
    DemonstrationRow,
    PromptReview,
    RankingItem,
    RankingRow,
    Rating,
    Submission,
)
from instructgpt.label.db.models.tasks import Batch, CompletionRow, PromptRow, Task, TaskCompletion
from instructgpt.label.exchange.selection import (
    EVALUATION_SPLITS,
    SUBMISSION_CHUNK_SIZE,
    ExportFilter,
    ExportItem,
    ExportTally,
    exclusion_reason,
    iter_export_items,
)
from instructgpt.label.people.groups import find_visible_groups, list_groups
from instructgpt.label.playground.review import find_unreviewed_prompts
from instructgpt.label.playground.user_rankings import iter_user_records
from instructgpt.label.tasks.questions import batch_questions
from instructgpt.label.vocabulary import ExportFileName
from instructgpt.records import LABELS

ExportRow = dict[str, Any]


class RankedCompletion(NamedTuple):
    completion: CompletionRow
    model: str
    item: RankingItem
    rating: Rating | None


def _provenance(item: ExportItem) -> ExportRow:
    prompt = item.prompt
    return {
        "id": item.submission.id,
        "labeler": item.person.pseudonym,
        "cohort": item.person.cohort,
        "fold": item.person.fold,
        "source": "site",
        "batch": item.batch.name,
        "task": item.task.id,
        "prompt_id": None if prompt is None else prompt.external_id or prompt.id,
        "user": prompt and prompt.user,
        "use_case": prompt and prompt.use_case,
        "split": prompt and prompt.split,
        "instructions": item.instructions and item.instructions.version,
        "gold": item.task.gold,
        "surplus": item.submission.surplus,
        "round": item.assignment.round,
        "note": item.submission.note or None,
        "active_ms": item.submission.active_ms,
        "created_at": item.submission.created_at,
    }


def _iter_ranked(
    db: Session, export_filter: ExportFilter, tally: ExportTally
) -> Iterator[tuple[ExportItem, PromptRow, RankingRow, list[RankedCompletion]]]:
    """Yield the rankings with completions in the task's order, repeated for each model with the same text.

    An imported rating without a ranking is a ranking of one completion.
    """
    for chunk in iter_export_items(db, "rank", export_filter, tally):
        first, last = chunk[0].submission.id, chunk[-1].submission.id
        statement = select(RankingRow).where(RankingRow.submission_id.between(first, last))
        rankings = {ranking.submission_id: ranking for ranking in db.scalars(statement)}
        ranked = _load_ranked_completions(db, first, last)
        for item in chunk:
            assert item.prompt is not None
            yield item, item.prompt, rankings[item.submission.id], ranked[item.submission.id]


def _load_ranked_completions(db: Session, first: str, last: str) -> dict[str, list[RankedCompletion]]:
    same_completion = TaskCompletion.completion_id == RankingItem.completion_id
    in_task = (TaskCompletion.task_id == Assignment.task_id) & same_completion
    is_rated = (Rating.submission_id == RankingItem.submission_id) & (Rating.completion_id == RankingItem.completion_id)
    rows = db.execute(
        select(RankingItem, TaskCompletion, CompletionRow, Rating)
        .join(Submission, RankingItem.submission_id == Submission.id)
        .join(Assignment, Submission.assignment_id == Assignment.id)
        .join(TaskCompletion, in_task)
        .join(CompletionRow, RankingItem.completion_id == CompletionRow.id)
        .outerjoin(Rating, is_rated)
        .where(RankingItem.submission_id.between(first, last))
        .order_by(RankingItem.submission_id, TaskCompletion.position)
    )
    ranked: dict[str, list[RankedCompletion]] = {}
    for item, task_completion, completion, rating in rows:
        models = task_completion.models or [completion.model]
        parts = (RankedCompletion(completion, model, item, rating) for model in models)
        ranked.setdefault(item.submission_id, []).extend(parts)
    return ranked


def _find_groups(db: Session, export_filter: ExportFilter) -> dict[str, str]:
    """Return the groups of people, by id, that at least five labelers with rankings in this export declared."""
    if not list_groups(db):
        return {}
    chunks = iter_export_items(db, "rank", export_filter, ExportTally())
    return find_visible_groups(db, list({item.person.id for chunk in chunks for item in chunk}))


def _iter_rankings(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    groups = _find_groups(db, export_filter)
    for item, prompt, ranking, ranked in _iter_ranked(db, export_filter, tally):
        if len(ranked) < 2:
            tally.left_out["one_completion"] += 1
            continue
        ratings = [part.rating.rating if part.rating else None for part in ranked]
        labels = [part.rating.labels if part.rating else {} for part in ranked]
        group = groups.get(item.person.id)
        yield _provenance(item) | {
            **({} if group is None else {"group": group}),
            **prompt_fields(prompt),
            "completions": [part.completion.text for part in ranked],
            "ranks": [part.item.rank for part in ranked],
            "models": [part.model for part in ranked],
            "finish": [part.completion.finish for part in ranked],
            "ratings": ratings if all(rating is not None for rating in ratings) else None,
            "rating_points": batch_questions(item.batch).rating.points,
            "labels": labels if any(labels) else None,
            "unanswered": [_unanswered_labels(item, part) for part in labels] if any(labels) else None,
            "answers": ranking.answers or None,
            "none_acceptable": ranking.none_acceptable,
            "confidence": ranking.confidence,
            "shown": [part.item.shown for part in ranked],
            "names_itself": any(part.completion.names_itself for part in ranked),
        }


def _unanswered_labels(item: ExportItem, labels: Mapping[str, Any]) -> list[str]:
    """Return the unanswered labels; in a table their null would be read as not applicable."""
    extra_labels = [name for name in batch_questions(item.batch).active("completion") if name not in LABELS]
    return [name for name in (*LABELS, *extra_labels) if name not in labels]


def _ranking_provenance(item: ExportItem, prompt: PromptRow) -> ExportRow:
    return {
        "ranking": item.submission.id,
        "prompt_id": prompt.external_id or prompt.id,
        "prompt": prompt.text,
        "labeler": item.person.pseudonym,
        "cohort": item.person.cohort,
        "fold": item.person.fold,
    }


def _iter_comparisons(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    """Yield all pairs of each ranking including ties, with weights that add up to 1 per ranking (paper, equation 1)."""
    for item, prompt, _, ranked in _iter_ranked(db, export_filter, tally):
        weight = 1 / max(1, comb(len(ranked), 2))
        for (i, first), (j, second) in combinations(enumerate(ranked), 2):
            rank_difference = second.item.rank - first.item.rank
            yield _ranking_provenance(item, prompt) | {
                "i": i,
                "j": j,
                "completion_i": first.completion.text,
                "completion_j": second.completion.text,
                "model_i": first.model,
                "model_j": second.model,
                "better": "tie" if rank_difference == 0 else "i" if rank_difference > 0 else "j",
                "weight": weight,
            }


def _iter_pairs(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    """Yield TRL's preference pairs of distinct texts, without ties."""
    for item, prompt, _, ranked in _iter_ranked(db, export_filter, tally):
        distinct = {part.completion.id: part for part in ranked}.values()
        for pair in combinations(distinct, 2):
            better, worse = sorted(pair, key=lambda part: part.item.rank)
            if better.item.rank != worse.item.rank:
                yield {
                    "prompt": prompt.text,
                    "chosen": better.completion.text,
                    "rejected": worse.completion.text,
                    "ranking": item.submission.id,
                    "labeler": item.person.pseudonym,
                }


def _iter_ratings(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    for item, prompt, _, ranked in _iter_ranked(db, export_filter, tally):
        for part in ranked:
            if part.rating is not None:
                yield _ranking_provenance(item, prompt) | {
                    "completion": part.completion.text,
                    "model": part.model,
                    "rating": part.rating.rating,
                    "rating_points": batch_questions(item.batch).rating.points,
                    "labels": part.rating.labels,
                    "unanswered": _unanswered_labels(item, part.rating.labels),
                    "note": part.rating.note or None,
                    "rank": part.item.rank,
                    "created_at": item.submission.created_at,
                }


def _iter_demonstrations(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    for chunk in iter_export_items(db, "demonstrate", export_filter, tally):
        first, last = chunk[0].submission.id, chunk[-1].submission.id
        statement = select(DemonstrationRow).where(DemonstrationRow.submission_id.between(first, last))
        texts = {row.submission_id: row.text for row in db.scalars(statement)}
        for item in chunk:
            completion = {"completion": texts[item.submission.id]}
            yield _provenance(item) | prompt_fields(item.prompt) | completion


def prompt_fields(prompt: PromptRow | None) -> ExportRow:
    """Return the file column that holds a prompt: `messages` for a conversation, `prompt` for text."""
    assert prompt is not None
    return {"messages": prompt.messages} if prompt.messages else {"prompt": prompt.text}


def _iter_reviews(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    for chunk in iter_export_items(db, "review", export_filter, tally):
        first, last = chunk[0].submission.id, chunk[-1].submission.id
        statement = select(PromptReview).where(PromptReview.submission_id.between(first, last))
        reviews = {row.submission_id: row for row in db.scalars(statement)}
        for item in chunk:
            review = reviews[item.submission.id]
            yield (
                _provenance(item)
                | prompt_fields(item.prompt)
                | {
                    "reviewed_use_case": review.use_case,
                    "personal_data": review.personal_data,
                    "sensitive": review.sensitive,
                    "prompt_labels": review.labels,
                    "rejected": review.rejected,
                }
            )


def _iter_prompts(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    """Yield prompts of users and of labelers; the filter's use keeps evaluation prompts out of training."""
    tasks = select(Task.id).join(Batch, Task.batch_id == Batch.id).where(Task.prompt_id == PromptRow.id)
    tasks = tasks.correlate(PromptRow)
    in_evaluation = tasks.where(Batch.purpose == "evaluation", Batch.screening.is_(None)).exists()
    in_screening = tasks.where(Batch.screening.is_not(None)).exists()
    screening_only = in_screening & ~tasks.where(Batch.screening.is_(None)).exists()
    columns = (in_evaluation, screening_only, _reviewed_as_sensitive())
    statement = (
        select(PromptRow, *columns, Submission, Assignment, Task, Batch, Person)
        .outerjoin(Submission, PromptRow.submission_id == Submission.id)
        .outerjoin(Assignment, Submission.assignment_id == Assignment.id)
        .outerjoin(Task, Assignment.task_id == Task.id)
        .outerjoin(Batch, Task.batch_id == Batch.id)
        .outerjoin(Person, Assignment.person_id == Person.id)
        .order_by(PromptRow.id)
    )
    if export_filter.batches:
        batch_tasks = (
            select(Task.id)
            .join(Batch, Task.batch_id == Batch.id)
            .where(Task.prompt_id == PromptRow.id, Batch.name.in_(export_filter.batches))
        )
        statement = statement.where(batch_tasks.exists() | Batch.name.in_(export_filter.batches))
    if export_filter.labelers:
        statement = statement.where(Person.pseudonym.in_(export_filter.labelers))
    unreviewed_ids = find_unreviewed_prompts(db)
    rows = db.execute(statement.execution_options(yield_per=SUBMISSION_CHUNK_SIZE))
    for prompt, is_evaluation, is_screening, is_sensitive, submission, assignment, task, batch, person in rows:
        reason = _prompt_exclusion_reason(prompt, is_evaluation or prompt.split in EVALUATION_SPLITS, export_filter)
        reason = reason or ("screening" if is_screening else "in_review" if prompt.id in unreviewed_ids else None)
        if reason is None and submission is not None:
            item = ExportItem(submission, assignment, task, batch, person, prompt, None)
            reason = exclusion_reason(item, export_filter)
        if reason is not None:
            tally.left_out[reason] += 1
            continue
        yield prompt_fields(prompt) | {
            "id": prompt.external_id or prompt.id,
            "user": prompt.user,
            "source": prompt.source,
            "use_case": prompt.use_case,
            "split": prompt.split,
            "sensitive": prompt.sensitive or is_sensitive,
            "labeler": person and person.pseudonym,
            "created_at": prompt.created_at,
        }


def _reviewed_as_sensitive() -> Exists:
    """Return the condition that a valid review of a prompt, outside the screening test, says it is sensitive."""
    reviews = (
        select(PromptReview.submission_id)
        .join(Submission, Submission.id == PromptReview.submission_id)
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Task.prompt_id == PromptRow.id, PromptReview.sensitive.is_(True), Batch.screening.is_(None))
        .where(Submission.replaced_at.is_(None), Submission.invalid_reason.is_(None))
    )
    return reviews.correlate(PromptRow).exists()


def _prompt_exclusion_reason(prompt: PromptRow, is_evaluation: bool, export_filter: ExportFilter) -> str | None:
    if prompt.withdrawn_at is not None:
        return "withdrawn_prompt"
    if not (export_filter.since or 0) <= prompt.created_at < (export_filter.until or prompt.created_at + 1):
        return "other_time"
    if is_evaluation != (export_filter.use == "evaluation") and prompt.submission_id is None:
        return "evaluation" if is_evaluation else "training"
    return None


EXPORT_FILES: dict[ExportFileName, Callable[[Session, ExportFilter, ExportTally], Iterator[ExportRow]]] = {
    "rankings": _iter_rankings,
    "demonstrations": _iter_demonstrations,
    "prompts": _iter_prompts,
    "comparisons": _iter_comparisons,
    "pairs": _iter_pairs,
    "ratings": _iter_ratings,
    "reviews": _iter_reviews,
}
"""All export files; `reward`, `sft` and `ppo` read the first three."""


def _iter_user_rows(
    db: Session, name: ExportFileName, export_filter: ExportFilter, tally: ExportTally
) -> Iterator[ExportRow]:
    """Yield users' feedback behind its switch; it is in no batch and measures no model."""
    is_narrowed = export_filter.batches or export_filter.labelers
    if not export_filter.user_feedback or export_filter.use != "training" or is_narrowed:
        return
    for row in iter_user_records(db, name, tally.left_out, export_filter.since, export_filter.until):
        tally.labelers.setdefault("user", set()).add(row["labeler"])
        yield row


def iter_export_rows(
    db: Session, name: ExportFileName, export_filter: ExportFilter, tally: ExportTally
) -> Iterator[ExportRow]:
    """Yield the rows of one file without null columns, and count them in the tally."""
    for row in chain(EXPORT_FILES[name](db, export_filter, tally), _iter_user_rows(db, name, export_filter, tally)):
        tally.rows += 1
        yield {column: value for column, value in row.items() if value is not None}
