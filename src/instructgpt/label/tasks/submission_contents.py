"""The contents of submissions: typed rows for each kind of form, written once and read back as the form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Assignment,
    DemonstrationRow,
    PromptReview,
    PromptRow,
    RankingItem,
    RankingRow,
    Rating,
    Submission,
    Task,
)
from instructgpt.label.tasks.forms import (
    CompletionRating,
    DemonstrationForm,
    PromptForm,
    RankingForm,
    ReviewForm,
    SubmissionForm,
    tier_ranks,
)
from instructgpt.label.tasks.ingest import text_hash
from instructgpt.label.tasks.red_team import get_failure_kind

_REVIEW_COLUMNS = ("use_case", "personal_data", "sensitive", "labels", "rejected")
_CHUNK_SIZE = 2000


def write_contents(
    db: Session, submission: Submission, assignment: Assignment, task: Task, form: SubmissionForm
) -> None:
    """Write the contents of a form to the tables of its kind."""
    if isinstance(form, RankingForm):
        _write_ranking(db, submission, assignment, form)
    elif isinstance(form, DemonstrationForm):
        ids = {"submission_id": submission.id, "person_id": assignment.person_id, "prompt_id": task.prompt_id}
        db.add(DemonstrationRow(**ids, text=form.text, text_hash=text_hash(form.text)))
    elif isinstance(form, PromptForm):
        _withdraw_earlier_prompts(db, assignment, submission.created_at)
        db.add(_build_prompt_row(submission, assignment, task, form))
    elif isinstance(form, ReviewForm):
        db.add(PromptReview(submission_id=submission.id, **form.model_dump(include=set(_REVIEW_COLUMNS))))
    db.flush()


def _write_ranking(db: Session, submission: Submission, assignment: Assignment, form: RankingForm) -> None:
    positions = {completion: position for position, completion in enumerate(assignment.shown)}
    ranking = RankingRow(submission_id=submission.id, answers=form.answers or None)
    ranking.none_acceptable, ranking.confidence = form.none_acceptable, form.confidence
    db.add(ranking)
    for completion, (tier, rank) in tier_ranks(form.tiers).items():
        key = {"submission_id": submission.id, "completion_id": completion}
        db.add(RankingItem(**key, tier=tier, rank=rank, shown=positions[completion]))
    for rating in form.ratings:
        key = {"submission_id": submission.id, "completion_id": rating.completion}
        db.add(Rating(**key, rating=rating.rating, labels=rating.labels, note=rating.note))


def _build_prompt_row(submission: Submission, assignment: Assignment, task: Task, form: PromptForm) -> PromptRow:
    text = _format_written_prompt(form)
    return PromptRow(
        text=text,
        text_hash=text_hash(text),
        source="red_team" if get_failure_kind(task.brief) else f"labeler_{form.form}",
        use_case=form.use_case,
        sensitive=form.sensitive,
        author_id=assignment.person_id,
        submission_id=submission.id,
        created_at=submission.created_at,
        written=form.model_dump(mode="json", include={"form", "text", "examples"}),
    )


def _format_written_prompt(form: PromptForm) -> str:
    """Join the instruction and the examples of a written prompt, with blank lines between."""
    examples = [f"Input: {prompt}\nOutput: {completion}" for prompt, completion in form.examples]
    return "\n\n".join([form.text, *examples])


def _withdraw_earlier_prompts(db: Session, assignment: Assignment, now_ms: int) -> None:
    """Withdraw prompts written in earlier versions of this submission."""
    versions = select(Submission.id).where(Submission.assignment_id == assignment.id)
    written_prompts = select(PromptRow).where(PromptRow.submission_id.in_(versions), PromptRow.withdrawn_at.is_(None))
    for prompt in db.scalars(written_prompts):
        prompt.withdrawn_at = now_ms


def withdraw_written_prompt(db: Session, submission: Submission, now_ms: int) -> None:
    """Withdraw the prompt of a submission that is undone."""
    if submission.kind == "write":
        written_prompts = select(PromptRow).where(
            PromptRow.submission_id == submission.id, PromptRow.withdrawn_at.is_(None)
        )
        for prompt in db.scalars(written_prompts):
            prompt.withdrawn_at = now_ms


def read_submission_form(db: Session, submission: Submission) -> SubmissionForm:
    """Read a submission back as its form, with completions in the order in which they were shown."""
    return read_submission_forms(db, [submission])[submission.id]


def read_submission_forms(db: Session, submissions: Sequence[Submission]) -> dict[str, SubmissionForm]:
    """Read submissions of any kinds back as forms, by id. At most six statements for each 2,000 submissions."""
    forms: dict[str, SubmissionForm] = {}
    for start in range(0, len(submissions), _CHUNK_SIZE):
        forms.update(_iter_forms(db, submissions[start : start + _CHUNK_SIZE]))
    return forms


def _iter_forms(db: Session, submissions: Sequence[Submission]) -> Iterator[tuple[str, SubmissionForm]]:
    by_kind: dict[str, dict[str, dict[str, Any]]] = {}
    for row in submissions:
        common_fields = {"note": row.note, "active_ms": row.active_ms, "pasted": row.pasted}
        by_kind.setdefault(row.kind, {})[row.id] = common_fields
    if rankings := by_kind.get("rank"):
        yield from _iter_ranking_forms(db, rankings)
    if demonstrations := by_kind.get("demonstrate"):
        of_demonstrations = select(DemonstrationRow).where(DemonstrationRow.submission_id.in_(demonstrations))
        for demonstration in db.scalars(of_demonstrations):
            key, text = demonstration.submission_id, demonstration.text
            fields = {**demonstrations[key], "text": text, "meant_empty": not text.strip()}
            yield key, DemonstrationForm.model_validate(fields)
    if write_fields := by_kind.get("write"):
        for prompt in db.scalars(select(PromptRow).where(PromptRow.submission_id.in_(write_fields))):
            assert prompt.submission_id is not None
            fields = {**write_fields[prompt.submission_id], **(prompt.written or {})}
            fields |= {"use_case": prompt.use_case, "sensitive": prompt.sensitive}
            yield prompt.submission_id, PromptForm.model_validate(fields)
    if reviews := by_kind.get("review"):
        for review in db.scalars(select(PromptReview).where(PromptReview.submission_id.in_(reviews))):
            answers = {name: getattr(review, name) for name in _REVIEW_COLUMNS}
            yield review.submission_id, ReviewForm.model_validate({**reviews[review.submission_id], **answers})


def _iter_ranking_forms(db: Session, common_fields: dict[str, dict[str, Any]]) -> Iterator[tuple[str, RankingForm]]:
    items: dict[str, list[RankingItem]] = {submission: [] for submission in common_fields}
    ratings: dict[str, list[Rating]] = {submission: [] for submission in common_fields}
    of_items = select(RankingItem).where(RankingItem.submission_id.in_(common_fields)).order_by(RankingItem.shown)
    for item in db.scalars(of_items):
        items[item.submission_id].append(item)
    for rating in db.scalars(select(Rating).where(Rating.submission_id.in_(common_fields))):
        ratings[rating.submission_id].append(rating)
    for ranking in db.scalars(select(RankingRow).where(RankingRow.submission_id.in_(common_fields))):
        key = ranking.submission_id
        fields = {**common_fields[key], **_ranking_fields(ranking, items[key], ratings[key])}
        yield key, RankingForm.model_validate(fields)


def _ranking_fields(ranking: RankingRow, items: Sequence[RankingItem], ratings: Sequence[Rating]) -> dict[str, Any]:
    tiers: list[list[str]] = [[] for _ in range(max((item.tier for item in items), default=0))]
    for item in items:
        tiers[item.tier - 1].append(item.completion_id)
    positions = {item.completion_id: item.shown for item in items}
    return {
        "ratings": [
            CompletionRating(completion=row.completion_id, rating=row.rating, labels=row.labels, note=row.note)
            for row in sorted(ratings, key=lambda row: positions[row.completion_id])
        ],
        "tiers": tiers,
        "answers": ranking.answers or {},
        "none_acceptable": ranking.none_acceptable,
        "confidence": ranking.confidence,
    }
