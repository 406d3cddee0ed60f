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
    Completion,
    Demonstration,
    Person,
    Prompt,
    PromptReview,
    Ranking,
    RankingItem,
    Rating,
    Submission,
    Task,
    TaskCompletion,
)
from instructgpt.label.exchange.selection import AT_ONCE, HELD_OUT, Filter, Tally, Work, why_not, works
from instructgpt.records import LABELS

FileName = Literal["rankings", "demonstrations", "prompts", "comparisons", "pairs", "ratings", "reviews"]
Row = dict[str, Any]


class Judged(NamedTuple):
    """One completion of one model in a ranking: where it was put, how it was rated. The rating is None where there is none."""

    completion: Completion
    model: str
    item: RankingItem
    rating: Rating | None


def _origin(work: Work) -> Row:
    """The columns that say where a row comes from."""
    prompt = work.prompt
    return {
        "id": work.submission.id,
        "labeler": work.person.pseudonym,
        "cohort": work.person.cohort,
        "fold": work.person.fold,
        "source": "site",
        "batch": work.batch.name,
        "task": work.task.id,
        "prompt_id": None if prompt is None else prompt.external_id or prompt.id,
        "user": prompt and prompt.user,
        "use_case": prompt and prompt.use_case,
        "split": prompt and prompt.split,
        "instructions": work.instructions and work.instructions.version,
        "gold": work.task.gold,
        "surplus": work.submission.surplus,
        "round": work.assignment.round,
        "note": work.submission.note or None,
        "active_ms": work.submission.active_ms,
        "created_at": work.submission.created_at,
    }


def judged(db: Session, portion: list[Work]) -> Iterator[tuple[Work, Ranking, list[Judged]]]:
    """Every ranking of a portion with its completions in the task's order, identical texts once for each model that gave them.

    A completion that was rated alone, elsewhere, is a ranking of one.
    """
    first, last = portion[0].submission.id, portion[-1].submission.id
    rankings = {each.submission_id: each for each in db.scalars(select(Ranking).where(Ranking.submission_id.between(first, last)))}
    found = db.execute(
        select(RankingItem, TaskCompletion, Completion, Rating)
        .join(Submission, RankingItem.submission_id == Submission.id)
        .join(Assignment, Submission.assignment_id == Assignment.id)
        .join(TaskCompletion, (TaskCompletion.task_id == Assignment.task_id) & (TaskCompletion.completion_id == RankingItem.completion_id))
        .join(Completion, RankingItem.completion_id == Completion.id)
        .outerjoin(Rating, (Rating.submission_id == RankingItem.submission_id) & (Rating.completion_id == RankingItem.completion_id))
        .where(RankingItem.submission_id.between(first, last))
        .order_by(RankingItem.submission_id, TaskCompletion.position)
    )
    parts: dict[str, list[Judged]] = {}
    for item, place, completion, rating in found:
        names = place.models or [completion.model]
        parts.setdefault(item.submission_id, []).extend(Judged(completion, name, item, rating) for name in names)
    for work in portion:
        yield work, rankings[work.submission.id], parts[work.submission.id]


def _rankings(db: Session, wanted: Filter, tally: Tally) -> Iterator[Row]:
    for portion in works(db, "rank", wanted, tally):
        for work, ranking, parts in judged(db, portion):
            assert work.prompt is not None
            if len(parts) < 2:
                tally.left_out["one_completion"] += 1
                continue
            ratings = [part.rating.rating if part.rating else None for part in parts]
            answers = [part.rating.labels if part.rating else {} for part in parts]
            yield _origin(work) | {
                "prompt": work.prompt.text,
                "messages": work.prompt.messages,
                "completions": [part.completion.text for part in parts],
                "ranks": [part.item.rank for part in parts],
                "models": [part.model for part in parts],
                "finish": [part.completion.finish for part in parts],
                "ratings": ratings if all(rating is not None for rating in ratings) else None,
                "labels": answers if any(answers) else None,
                "unanswered": [unanswered(given) for given in answers] if any(answers) else None,
                "none_acceptable": ranking.none_acceptable,
                "confidence": ranking.confidence,
                "shown": [part.item.shown for part in parts],
                "names_itself": any(part.completion.names_itself for part in parts),
            }


def unanswered(labels: Mapping[str, Any]) -> list[str]:
    """The labels nobody answered: in a table, whose columns are always there, they would look like not applicable."""
    return [name for name in LABELS if name not in labels]


def _comparisons(db: Session, wanted: Filter, tally: Tally) -> Iterator[Row]:
    """Every pair of a ranking, ties too; the weights of a ranking's pairs add up to 1 (paper, equation 1)."""
    for portion in works(db, "rank", wanted, tally):
        for work, _, parts in judged(db, portion):
            assert work.prompt is not None
            weight = 1 / max(1, comb(len(parts), 2))
            for (i, one), (j, other) in combinations(enumerate(parts), 2):
                order = other.item.rank - one.item.rank
                yield {
                    "ranking": work.submission.id,
                    "prompt_id": work.prompt.external_id or work.prompt.id,
                    "prompt": work.prompt.text,
                    "i": i,
                    "j": j,
                    "completion_i": one.completion.text,
                    "completion_j": other.completion.text,
                    "model_i": one.model,
                    "model_j": other.model,
                    "better": "tie" if order == 0 else "i" if order > 0 else "j",
                    "weight": weight,
                    "labeler": work.person.pseudonym,
                    "cohort": work.person.cohort,
                    "fold": work.person.fold,
                }


def _pairs(db: Session, wanted: Filter, tally: Tally) -> Iterator[Row]:
    """TRL's preference pairs; ties give none, and a text that several models gave stands for all of them."""
    for portion in works(db, "rank", wanted, tally):
        for work, _, parts in judged(db, portion):
            assert work.prompt is not None
            texts = list({part.completion.id: part for part in parts}.values())
            for one, other in combinations(texts, 2):
                if one.item.rank != other.item.rank:
                    better, worse = (one, other) if one.item.rank < other.item.rank else (other, one)
                    yield {
                        "prompt": work.prompt.text,
                        "chosen": better.completion.text,
                        "rejected": worse.completion.text,
                        "ranking": work.submission.id,
                        "labeler": work.person.pseudonym,
                    }


def _ratings(db: Session, wanted: Filter, tally: Tally) -> Iterator[Row]:
    for portion in works(db, "rank", wanted, tally):
        for work, _, parts in judged(db, portion):
            assert work.prompt is not None
            for part in parts:
                if part.rating is not None:
                    yield {
                        "ranking": work.submission.id,
                        "prompt_id": work.prompt.external_id or work.prompt.id,
                        "prompt": work.prompt.text,
                        "completion": part.completion.text,
                        "model": part.model,
                        "rating": part.rating.rating,
                        "labels": part.rating.labels,
                        "unanswered": unanswered(part.rating.labels),
                        "note": part.rating.note or None,
                        "rank": part.item.rank,
                        "labeler": work.person.pseudonym,
                        "cohort": work.person.cohort,
                        "fold": work.person.fold,
                        "created_at": work.submission.created_at,
                    }


def _demonstrations(db: Session, wanted: Filter, tally: Tally) -> Iterator[Row]:
    for portion in works(db, "demonstrate", wanted, tally):
        first, last = portion[0].submission.id, portion[-1].submission.id
        between = select(Demonstration).where(Demonstration.submission_id.between(first, last))
        texts = {each.submission_id: each.text for each in db.scalars(between)}
        for work in portion:
            yield _origin(work) | _asked(work.prompt) | {"completion": texts[work.submission.id]}


def _asked(prompt: Prompt | None) -> Row:
    """The prompt as a record asks: the turns of a conversation, otherwise the text."""
    assert prompt is not None
    return {"messages": prompt.messages} if prompt.messages else {"prompt": prompt.text}


def _reviews(db: Session, wanted: Filter, tally: Tally) -> Iterator[Row]:
    for portion in works(db, "review", wanted, tally):
        first, last = portion[0].submission.id, portion[-1].submission.id
        between = select(PromptReview).where(PromptReview.submission_id.between(first, last))
        reviews = {each.submission_id: each for each in db.scalars(between)}
        for work in portion:
            review = reviews[work.submission.id]
            yield (
                _origin(work)
                | _asked(work.prompt)
                | {
                    "reviewed_use_case": review.use_case,
                    "personal_data": review.personal_data,
                    "sensitive": review.sensitive,
                    "prompt_labels": review.labels,
                    "rejected": review.rejected,
                }
            )


def _prompts(db: Session, wanted: Filter, tally: Tally) -> Iterator[Row]:
    """Prompts of users, and those labelers wrote. What models are measured on is not trained on."""
    measures = select(Task.id).join(Batch, Task.batch_id == Batch.id).where(Task.prompt_id == Prompt.id, Batch.purpose == "evaluation")
    chosen = (
        select(Prompt, measures.exists(), Submission, Assignment, Task, Batch, Person)
        .outerjoin(Submission, Prompt.submission_id == Submission.id)
        .outerjoin(Assignment, Submission.assignment_id == Assignment.id)
        .outerjoin(Task, Assignment.task_id == Task.id)
        .outerjoin(Batch, Task.batch_id == Batch.id)
        .outerjoin(Person, Assignment.person_id == Person.id)
        .order_by(Prompt.id)
    )
    if wanted.batches:
        used = select(Task.id).join(Batch, Task.batch_id == Batch.id).where(Task.prompt_id == Prompt.id, Batch.name.in_(wanted.batches))
        chosen = chosen.where(used.exists() | Batch.name.in_(wanted.batches))
    for prompt, measured, submission, assignment, task, batch, person in db.execute(chosen.execution_options(yield_per=AT_ONCE)):
        reason = _why_no_prompt(prompt, measured or prompt.split in HELD_OUT, wanted)
        if reason is None and submission is not None:
            reason = why_not(Work(submission, assignment, task, batch, person, prompt, None), wanted)
        if reason is not None:
            tally.left_out[reason] += 1
            continue
        yield _asked(prompt) | {
            "id": prompt.external_id or prompt.id,
            "user": prompt.user,
            "source": prompt.source,
            "use_case": prompt.use_case,
            "split": prompt.split,
            "sensitive": prompt.sensitive,
            "labeler": person and person.pseudonym,
            "created_at": prompt.created_at,
        }


def _why_no_prompt(prompt: Prompt, measures: bool, wanted: Filter) -> str | None:
    if prompt.withdrawn_at is not None:
        return "withdrawn_prompt"
    if not (wanted.since or 0) <= prompt.created_at < (wanted.until or prompt.created_at + 1):
        return "other_time"
    if measures != (wanted.use == "evaluation") and prompt.submission_id is None:
        return "evaluation" if measures else "training"
    return None


FILES: dict[FileName, Callable[[Session, Filter, Tally], Iterator[Row]]] = {
    "rankings": _rankings,
    "demonstrations": _demonstrations,
    "prompts": _prompts,
    "comparisons": _comparisons,
    "pairs": _pairs,
    "ratings": _ratings,
    "reviews": _reviews,
}
"""Every file an export can have. The first three are what `reward`, `sft` and `ppo` read."""


def rows(db: Session, name: FileName, wanted: Filter, tally: Tally) -> Iterator[Row]:
    """The rows of one file of an export, without the columns that are empty; they are counted as they are taken."""
    for row in FILES[name](db, wanted, tally):
        tally.rows += 1
        yield {column: value for column, value in row.items() if value is not None}
