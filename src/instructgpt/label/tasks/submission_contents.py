"""A form's contents in their tables, and back: typed rows for what is trained on."""

from __future__ import annotations

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


def write_submission_contents(
    db: Session, submission: Submission, assignment: Assignment, task: Task, form: SubmissionForm
) -> None:
    """Write a form's contents down under a submission."""
    if isinstance(form, RankingForm):
        _write_ranking(db, submission, assignment, form)
    elif isinstance(form, DemonstrationForm):
        demonstration = DemonstrationRow(
            submission_id=submission.id,
            person_id=assignment.person_id,
            prompt_id=task.prompt_id,
            text=form.text,
            text_hash=text_hash(form.text),
        )
        db.add(demonstration)
    elif isinstance(form, PromptForm):
        _withdraw_earlier_prompts(db, assignment, submission.created_at)
        db.add(_build_prompt_row(submission, assignment, form))
    elif isinstance(form, ReviewForm):
        review = PromptReview(
            submission_id=submission.id,
            use_case=form.use_case,
            personal_data=form.personal_data,
            sensitive=form.sensitive,
            labels=form.labels,
            rejected=form.rejected,
        )
        db.add(review)
    db.flush()


def _write_ranking(db: Session, submission: Submission, assignment: Assignment, form: RankingForm) -> None:
    positions = {completion: position for position, completion in enumerate(assignment.shown)}
    db.add(RankingRow(submission_id=submission.id, none_acceptable=form.none_acceptable, confidence=form.confidence))
    for completion, (tier, rank) in tier_ranks(form.tiers).items():
        item = RankingItem(
            submission_id=submission.id, completion_id=completion, tier=tier, rank=rank, shown=positions[completion]
        )
        db.add(item)
    for completion_rating in form.ratings:
        rating = Rating(
            submission_id=submission.id,
            completion_id=completion_rating.completion,
            rating=completion_rating.rating,
            labels=completion_rating.labels,
            note=completion_rating.note,
        )
        db.add(rating)


def _build_prompt_row(submission: Submission, assignment: Assignment, form: PromptForm) -> PromptRow:
    text = _format_written_prompt(form)
    return PromptRow(
        text=text,
        text_hash=text_hash(text),
        source=f"labeler_{form.form}",
        use_case=form.use_case,
        sensitive=form.sensitive,
        author_id=assignment.person_id,
        submission_id=submission.id,
        created_at=submission.created_at,
        written=form.model_dump(mode="json", include={"form", "text", "examples"}),
    )


def _format_written_prompt(form: PromptForm) -> str:
    """What a labeler wrote as one text: the instruction, then the examples, a blank line between any two."""
    blocks = [
        form.text,
        *(
            f"Input: {example_prompt}\nOutput: {example_completion}"
            for example_prompt, example_completion in form.examples
        ),
    ]
    return "\n\n".join(blocks)


def _withdraw_earlier_prompts(db: Session, assignment: Assignment, now_ms: int) -> None:
    """Prompts of earlier versions of the same work are no longer meant."""
    earlier = select(Submission.id).where(Submission.assignment_id == assignment.id)
    for prompt in db.scalars(
        select(PromptRow).where(PromptRow.submission_id.in_(earlier), PromptRow.withdrawn_at.is_(None))
    ):
        prompt.withdrawn_at = now_ms


def withdraw_written_prompt(db: Session, submission: Submission, now_ms: int) -> None:
    """What lives on outside a submission goes with it when it is undone: the prompt somebody wrote."""
    if submission.kind == "write":
        for prompt in db.scalars(
            select(PromptRow).where(PromptRow.submission_id == submission.id, PromptRow.withdrawn_at.is_(None))
        ):
            prompt.withdrawn_at = now_ms


def read_submission_form(db: Session, submission: Submission) -> SubmissionForm:
    """What was handed in, read back from the tables. Completions come in the order in which they were shown."""
    common_fields = {"note": submission.note, "active_ms": submission.active_ms, "pasted": submission.pasted}
    if submission.kind == "rank":
        return _read_ranking_form(db, submission, common_fields)
    if submission.kind == "demonstrate":
        text = db.get_one(DemonstrationRow, submission.id).text
        return DemonstrationForm.model_validate({**common_fields, "text": text, "meant_empty": not text.strip()})
    if submission.kind == "write":
        prompt = db.scalars(select(PromptRow).where(PromptRow.submission_id == submission.id)).one()
        return PromptForm.model_validate(
            {**common_fields, **(prompt.written or {}), "use_case": prompt.use_case, "sensitive": prompt.sensitive}
        )
    review = db.get_one(PromptReview, submission.id)
    answers = {name: getattr(review, name) for name in ("use_case", "personal_data", "sensitive", "labels", "rejected")}
    return ReviewForm.model_validate({**common_fields, **answers})


def _read_ranking_form(db: Session, submission: Submission, common_fields: dict[str, object]) -> RankingForm:
    items = db.scalars(
        select(RankingItem).where(RankingItem.submission_id == submission.id).order_by(RankingItem.shown)
    ).all()
    tiers: list[list[str]] = [[] for _ in range(max((item.tier for item in items), default=0))]
    for item in items:
        tiers[item.tier - 1].append(item.completion_id)
    positions = {item.completion_id: item.shown for item in items}
    rating_rows = db.scalars(select(Rating).where(Rating.submission_id == submission.id)).all()
    ratings = [
        CompletionRating(completion=row.completion_id, rating=row.rating, labels=row.labels, note=row.note)
        for row in sorted(rating_rows, key=lambda row: positions[row.completion_id])
    ]
    ranking = db.get_one(RankingRow, submission.id)
    return RankingForm.model_validate(
        {
            **common_fields,
            "ratings": ratings,
            "tiers": tiers,
            "none_acceptable": ranking.none_acceptable,
            "confidence": ranking.confidence,
        }
    )
