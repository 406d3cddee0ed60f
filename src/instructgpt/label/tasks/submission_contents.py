"""A form's contents in their tables, and back: typed rows for what is trained on."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Demonstration, Prompt, PromptReview, Ranking, RankingItem, Rating, Submission, Task
from instructgpt.label.tasks.forms import DemonstrateForm, Form, RankForm, Rated, ReviewForm, WriteForm, dense_ranks
from instructgpt.label.tasks.ingest import text_hash


def store(db: Session, submission: Submission, assignment: Assignment, task: Task, form: Form) -> None:
    """Write a form's contents down under a submission."""
    if isinstance(form, RankForm):
        _store_ranking(db, submission, assignment, form)
    elif isinstance(form, DemonstrateForm):
        written = Demonstration(
            submission_id=submission.id, person_id=assignment.person_id, prompt_id=task.prompt_id, text=form.text,
            text_hash=text_hash(form.text),
        )  # fmt: skip
        db.add(written)
    elif isinstance(form, WriteForm):
        withdraw_written(db, assignment, submission.created_at)
        db.add(_written(submission, assignment, form))
    elif isinstance(form, ReviewForm):
        review = PromptReview(
            submission_id=submission.id, use_case=form.use_case, personal_data=form.personal_data, sensitive=form.sensitive,
            labels=form.labels, rejected=form.rejected,
        )  # fmt: skip
        db.add(review)
    db.flush()


def _store_ranking(db: Session, submission: Submission, assignment: Assignment, form: RankForm) -> None:
    places = {completion: place for place, completion in enumerate(assignment.shown)}
    db.add(Ranking(submission_id=submission.id, none_acceptable=form.none_acceptable, confidence=form.confidence))
    for completion, (tier, rank) in dense_ranks(form.tiers).items():
        item = RankingItem(submission_id=submission.id, completion_id=completion, tier=tier, rank=rank, shown=places[completion])
        db.add(item)
    for each in form.ratings:
        rating = Rating(submission_id=submission.id, completion_id=each.completion, rating=each.rating, labels=each.labels, note=each.note)
        db.add(rating)


def _written(submission: Submission, assignment: Assignment, form: WriteForm) -> Prompt:
    text = prompt_text(form)
    return Prompt(
        text=text, text_hash=text_hash(text), source=f"labeler_{form.form}", use_case=form.use_case, sensitive=form.sensitive,
        author_id=assignment.person_id, submission_id=submission.id, created_at=submission.created_at,
        written=form.model_dump(mode="json", include={"form", "text", "examples"}),
    )  # fmt: skip


def prompt_text(form: WriteForm) -> str:
    """What a labeler wrote as one text: the instruction, then the examples, a blank line between any two."""
    blocks = [form.text, *(f"Input: {given}\nOutput: {wanted}" for given, wanted in form.examples)]
    return "\n\n".join(blocks)


def withdraw_written(db: Session, assignment: Assignment, at: int) -> None:
    """Prompts of earlier versions of the same work are no longer meant."""
    earlier = select(Submission.id).where(Submission.assignment_id == assignment.id)
    for prompt in db.scalars(select(Prompt).where(Prompt.submission_id.in_(earlier), Prompt.withdrawn_at.is_(None))):
        prompt.withdrawn_at = at


def withdraw(db: Session, submission: Submission, at: int) -> None:
    """What lives on outside a submission goes with it when it is undone: the prompt somebody wrote."""
    if submission.kind == "write":
        for prompt in db.scalars(select(Prompt).where(Prompt.submission_id == submission.id, Prompt.withdrawn_at.is_(None))):
            prompt.withdrawn_at = at


def form_of(db: Session, submission: Submission) -> Form:
    """What was handed in, read back from the tables. Completions come in the order in which they were shown."""
    common = {"note": submission.note, "active_ms": submission.active_ms, "pasted": submission.pasted}
    if submission.kind == "rank":
        return _ranking(db, submission, common)
    if submission.kind == "demonstrate":
        text = db.get_one(Demonstration, submission.id).text
        return DemonstrateForm.model_validate({**common, "text": text, "meant_empty": not text.strip()})
    if submission.kind == "write":
        prompt = db.scalars(select(Prompt).where(Prompt.submission_id == submission.id)).one()
        return WriteForm.model_validate({**common, **(prompt.written or {}), "use_case": prompt.use_case, "sensitive": prompt.sensitive})
    review = db.get_one(PromptReview, submission.id)
    answers = {name: getattr(review, name) for name in ("use_case", "personal_data", "sensitive", "labels", "rejected")}
    return ReviewForm.model_validate({**common, **answers})


def _ranking(db: Session, submission: Submission, common: dict[str, object]) -> RankForm:
    items = db.scalars(select(RankingItem).where(RankingItem.submission_id == submission.id).order_by(RankingItem.shown)).all()
    tiers: list[list[str]] = [[] for _ in range(max((item.tier for item in items), default=0))]
    for item in items:
        tiers[item.tier - 1].append(item.completion_id)
    place = {item.completion_id: item.shown for item in items}
    rated = db.scalars(select(Rating).where(Rating.submission_id == submission.id)).all()
    ratings = [
        Rated(completion=each.completion_id, rating=each.rating, labels=each.labels, note=each.note)
        for each in sorted(rated, key=lambda each: place[each.completion_id])
    ]
    whole = db.get_one(Ranking, submission.id)
    return RankForm.model_validate(
        {**common, "ratings": ratings, "tiers": tiers, "none_acceptable": whole.none_acceptable, "confidence": whole.confidence}
    )
