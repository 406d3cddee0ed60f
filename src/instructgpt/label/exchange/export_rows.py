"""What leaves the site: the rows of every file that is made from labelers' work, one row a submission, in a fixed order, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from math import comb
from typing import Any, Literal, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Assignment,
    Batch,
    CompletionRow,
    DemonstrationRow,
    Person,
    PromptReview,
    PromptRow,
    RankingItem,
    RankingRow,
    Rating,
    Submission,
    Task,
    TaskCompletion,
)
from instructgpt.label.exchange.selection import (
    EVALUATION_SPLITS,
    SUBMISSION_CHUNK_SIZE,
    ExportFilter,
    ExportItem,
    ExportTally,
    exclusion_reason,
    iter_export_items,
)
from instructgpt.records import LABELS

ExportFileName = Literal["rankings", "demonstrations", "prompts", "comparisons", "pairs", "ratings", "reviews"]
ExportRow = dict[str, Any]


class RankedCompletion(NamedTuple):
    """One completion of one model in a ranking: where it was put, how it was rated. The rating is None where there is none."""

    completion: CompletionRow
    model: str
    item: RankingItem
    rating: Rating | None


def _provenance(export_item: ExportItem) -> ExportRow:
    """The columns that say where a row comes from."""
    prompt = export_item.prompt
    return {
        "id": export_item.submission.id,
        "labeler": export_item.person.pseudonym,
        "cohort": export_item.person.cohort,
        "fold": export_item.person.fold,
        "source": "site",
        "batch": export_item.batch.name,
        "task": export_item.task.id,
        "prompt_id": None if prompt is None else prompt.external_id or prompt.id,
        "user": prompt and prompt.user,
        "use_case": prompt and prompt.use_case,
        "split": prompt and prompt.split,
        "instructions": export_item.instructions and export_item.instructions.version,
        "gold": export_item.task.gold,
        "surplus": export_item.submission.surplus,
        "round": export_item.assignment.round,
        "note": export_item.submission.note or None,
        "active_ms": export_item.submission.active_ms,
        "created_at": export_item.submission.created_at,
    }


def _ranked_completions(
    db: Session, chunk: list[ExportItem]
) -> Iterator[tuple[ExportItem, RankingRow, list[RankedCompletion]]]:
    """Every ranking of a portion with its completions in the task's order, identical texts once for each model that gave them.

    A completion that was rated alone, elsewhere, is a ranking of one.
    """
    first, last = chunk[0].submission.id, chunk[-1].submission.id
    rankings = {
        each.submission_id: each
        for each in db.scalars(select(RankingRow).where(RankingRow.submission_id.between(first, last)))
    }
    joined_rows = db.execute(
        select(RankingItem, TaskCompletion, CompletionRow, Rating)
        .join(Submission, RankingItem.submission_id == Submission.id)
        .join(Assignment, Submission.assignment_id == Assignment.id)
        .join(
            TaskCompletion,
            (TaskCompletion.task_id == Assignment.task_id)
            & (TaskCompletion.completion_id == RankingItem.completion_id),
        )
        .join(CompletionRow, RankingItem.completion_id == CompletionRow.id)
        .outerjoin(
            Rating,
            (Rating.submission_id == RankingItem.submission_id) & (Rating.completion_id == RankingItem.completion_id),
        )
        .where(RankingItem.submission_id.between(first, last))
        .order_by(RankingItem.submission_id, TaskCompletion.position)
    )
    completions_by_submission: dict[str, list[RankedCompletion]] = {}
    for ranking_item, task_completion, completion, rating in joined_rows:
        models = task_completion.models or [completion.model]
        completions_by_submission.setdefault(ranking_item.submission_id, []).extend(
            RankedCompletion(completion, name, ranking_item, rating) for name in models
        )
    for export_item in chunk:
        yield export_item, rankings[export_item.submission.id], completions_by_submission[export_item.submission.id]


def _iter_rankings(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    for chunk in iter_export_items(db, "rank", export_filter, tally):
        for export_item, ranking, ranked_completions in _ranked_completions(db, chunk):
            assert export_item.prompt is not None
            if len(ranked_completions) < 2:
                tally.left_out["one_completion"] += 1
                continue
            ratings = [part.rating.rating if part.rating else None for part in ranked_completions]
            label_answers = [part.rating.labels if part.rating else {} for part in ranked_completions]
            yield _provenance(export_item) | {
                "prompt": export_item.prompt.text,
                "messages": export_item.prompt.messages,
                "completions": [part.completion.text for part in ranked_completions],
                "ranks": [part.item.rank for part in ranked_completions],
                "models": [part.model for part in ranked_completions],
                "finish": [part.completion.finish for part in ranked_completions],
                "ratings": ratings if all(rating is not None for rating in ratings) else None,
                "labels": label_answers if any(label_answers) else None,
                "unanswered": [_unanswered_labels(given) for given in label_answers] if any(label_answers) else None,
                "none_acceptable": ranking.none_acceptable,
                "confidence": ranking.confidence,
                "shown": [part.item.shown for part in ranked_completions],
                "names_itself": any(part.completion.names_itself for part in ranked_completions),
            }


def _unanswered_labels(labels: Mapping[str, Any]) -> list[str]:
    """The labels nobody answered: in a table, whose columns are always there, they would look like not applicable."""
    return [name for name in LABELS if name not in labels]


def _iter_comparisons(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    """Every pair of a ranking, ties too; the weights of a ranking's pairs add up to 1 (paper, equation 1)."""
    for chunk in iter_export_items(db, "rank", export_filter, tally):
        for export_item, _, ranked_completions in _ranked_completions(db, chunk):
            assert export_item.prompt is not None
            weight = 1 / max(1, comb(len(ranked_completions), 2))
            for (i, first), (j, second) in combinations(enumerate(ranked_completions), 2):
                rank_difference = second.item.rank - first.item.rank
                yield {
                    "ranking": export_item.submission.id,
                    "prompt_id": export_item.prompt.external_id or export_item.prompt.id,
                    "prompt": export_item.prompt.text,
                    "i": i,
                    "j": j,
                    "completion_i": first.completion.text,
                    "completion_j": second.completion.text,
                    "model_i": first.model,
                    "model_j": second.model,
                    "better": "tie" if rank_difference == 0 else "i" if rank_difference > 0 else "j",
                    "weight": weight,
                    "labeler": export_item.person.pseudonym,
                    "cohort": export_item.person.cohort,
                    "fold": export_item.person.fold,
                }


def _iter_pairs(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    """TRL's preference pairs; ties give none, and a text that several models gave stands for all of them."""
    for chunk in iter_export_items(db, "rank", export_filter, tally):
        for export_item, _, ranked_completions in _ranked_completions(db, chunk):
            assert export_item.prompt is not None
            distinct_completions = list({part.completion.id: part for part in ranked_completions}.values())
            for first, second in combinations(distinct_completions, 2):
                if first.item.rank != second.item.rank:
                    better, worse = (first, second) if first.item.rank < second.item.rank else (second, first)
                    yield {
                        "prompt": export_item.prompt.text,
                        "chosen": better.completion.text,
                        "rejected": worse.completion.text,
                        "ranking": export_item.submission.id,
                        "labeler": export_item.person.pseudonym,
                    }


def _iter_ratings(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    for chunk in iter_export_items(db, "rank", export_filter, tally):
        for export_item, _, ranked_completions in _ranked_completions(db, chunk):
            assert export_item.prompt is not None
            for ranked_completion in ranked_completions:
                if ranked_completion.rating is not None:
                    yield {
                        "ranking": export_item.submission.id,
                        "prompt_id": export_item.prompt.external_id or export_item.prompt.id,
                        "prompt": export_item.prompt.text,
                        "completion": ranked_completion.completion.text,
                        "model": ranked_completion.model,
                        "rating": ranked_completion.rating.rating,
                        "labels": ranked_completion.rating.labels,
                        "unanswered": _unanswered_labels(ranked_completion.rating.labels),
                        "note": ranked_completion.rating.note or None,
                        "rank": ranked_completion.item.rank,
                        "labeler": export_item.person.pseudonym,
                        "cohort": export_item.person.cohort,
                        "fold": export_item.person.fold,
                        "created_at": export_item.submission.created_at,
                    }


def _iter_demonstrations(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    for chunk in iter_export_items(db, "demonstrate", export_filter, tally):
        first, last = chunk[0].submission.id, chunk[-1].submission.id
        statement = select(DemonstrationRow).where(DemonstrationRow.submission_id.between(first, last))
        texts = {each.submission_id: each.text for each in db.scalars(statement)}
        for export_item in chunk:
            yield (
                _provenance(export_item)
                | _prompt_fields(export_item.prompt)
                | {"completion": texts[export_item.submission.id]}
            )


def _prompt_fields(prompt: PromptRow | None) -> ExportRow:
    """The prompt as a record asks: the turns of a conversation, otherwise the text."""
    assert prompt is not None
    return {"messages": prompt.messages} if prompt.messages else {"prompt": prompt.text}


def _iter_reviews(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    for chunk in iter_export_items(db, "review", export_filter, tally):
        first, last = chunk[0].submission.id, chunk[-1].submission.id
        statement = select(PromptReview).where(PromptReview.submission_id.between(first, last))
        reviews = {each.submission_id: each for each in db.scalars(statement)}
        for export_item in chunk:
            review = reviews[export_item.submission.id]
            yield (
                _provenance(export_item)
                | _prompt_fields(export_item.prompt)
                | {
                    "reviewed_use_case": review.use_case,
                    "personal_data": review.personal_data,
                    "sensitive": review.sensitive,
                    "prompt_labels": review.labels,
                    "rejected": review.rejected,
                }
            )


def _iter_prompts(db: Session, export_filter: ExportFilter, tally: ExportTally) -> Iterator[ExportRow]:
    """Prompts of users, and those labelers wrote. What models are measured on is not trained on."""
    evaluation_tasks = (
        select(Task.id)
        .join(Batch, Task.batch_id == Batch.id)
        .where(Task.prompt_id == PromptRow.id, Batch.purpose == "evaluation")
    )
    statement = (
        select(PromptRow, evaluation_tasks.exists(), Submission, Assignment, Task, Batch, Person)
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
    for prompt, in_evaluation, submission, assignment, task, batch, person in db.execute(
        statement.execution_options(yield_per=SUBMISSION_CHUNK_SIZE)
    ):
        reason = _prompt_exclusion_reason(prompt, in_evaluation or prompt.split in EVALUATION_SPLITS, export_filter)
        if reason is None and submission is not None:
            reason = exclusion_reason(
                ExportItem(submission, assignment, task, batch, person, prompt, None), export_filter
            )
        if reason is not None:
            tally.left_out[reason] += 1
            continue
        yield _prompt_fields(prompt) | {
            "id": prompt.external_id or prompt.id,
            "user": prompt.user,
            "source": prompt.source,
            "use_case": prompt.use_case,
            "split": prompt.split,
            "sensitive": prompt.sensitive,
            "labeler": person and person.pseudonym,
            "created_at": prompt.created_at,
        }


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
"""Every file an export can have. The first three are what `reward`, `sft` and `ppo` read."""


def iter_export_rows(
    db: Session, name: ExportFileName, export_filter: ExportFilter, tally: ExportTally
) -> Iterator[ExportRow]:
    """The rows of one file of an export, without the columns that are empty; they are counted as they are taken."""
    for row in EXPORT_FILES[name](db, export_filter, tally):
        tally.rows += 1
        yield {column: value for column, value in row.items() if value is not None}
