"""Send a prompt of the playground to the labelers' prompt review, and read what they decided."""

from __future__ import annotations

from collections.abc import Iterable
from secrets import randbelow

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.label.db.models import Assignment, Batch, PlaygroundTurn, PromptReview, Submission, Task
from instructgpt.label.db.models.base import new_id
from instructgpt.label.tasks import batches, ingest

REVIEW_BATCH_NAME = "playground review"
_POSITIONS = 1_000_000  # of tasks in the batch: reviews are assigned in random order


def send_to_review(db: Session, turn: PlaygroundTurn, pseudonym: str) -> None:
    """Create a review task for a turn's prompt, unless it has an unfinished one; the turn waits for its end."""
    turn.state = "review"
    prompt = records.Prompt.model_validate(
        {"messages": turn.messages, "user": pseudonym, "source": turn.client, "sensitive": True}
    )
    if turn.prompt_id is None:
        [row] = ingest.upsert_prompts(db, [prompt])
        turn.prompt_id = row.id
    batch = _ensure_review_batch(db)
    open_task = select(Task.id).where(Task.prompt_id == turn.prompt_id, Task.batch_id == batch.id, Task.state == "open")
    if db.scalar(open_task) is None:
        task = Task(
            id=new_id(),
            batch_id=batch.id,
            kind="review",
            prompt_id=turn.prompt_id,
            overlap=1,
            position=randbelow(_POSITIONS),
        )
        db.add(task)
    db.flush()


def _ensure_review_batch(db: Session) -> Batch:
    batch = db.scalars(select(Batch).where(Batch.name == REVIEW_BATCH_NAME)).first()
    if batch is None:
        policy = batches.OverlapPolicy(cohort_share=0, gold_share=0, repeat_share=0)
        batch = Batch(
            name=REVIEW_BATCH_NAME,
            kind="review",
            purpose="training",
            policy=policy.model_dump(mode="json"),
            intake={},
        )
        db.add(batch)
    batches.mark_batch_open(db, batch)
    return batch


def load_review_verdicts(db: Session, prompt_ids: Iterable[str]) -> dict[str, bool]:
    """Return prompt id -> whether the newest review in the playground's batch lets it be used; unreviewed: absent."""
    verdicts: dict[str, bool] = {}
    statement = (
        select(Task.prompt_id, PromptReview)
        .join(Submission, Submission.id == PromptReview.submission_id)
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Batch.name == REVIEW_BATCH_NAME, Submission.replaced_at.is_(None), Submission.invalid_reason.is_(None))
        .order_by(Submission.id)
    )
    wanted_ids = set(prompt_ids)
    for prompt_id, review in db.execute(statement):
        if prompt_id in wanted_ids:
            verdicts[prompt_id] = not review.rejected and review.personal_data is not True
    # A report after a review opens a task again, and the prompt waits for its end.
    unfinished = (
        select(Task.prompt_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Batch.name == REVIEW_BATCH_NAME, Task.state.in_(("open", "review")))
    )
    for prompt_id in db.scalars(unfinished):
        verdicts.pop(prompt_id or "", None)
    return verdicts


def find_unreviewed_prompts(db: Session) -> set[str]:
    """Return the ids of the playground's prompts that wait for their review or were rejected by it."""
    statement = select(PlaygroundTurn.prompt_id).where(
        PlaygroundTurn.state == "review", PlaygroundTurn.prompt_id.is_not(None)
    )
    prompt_ids = {str(prompt_id) for prompt_id in db.scalars(statement)}
    verdicts = load_review_verdicts(db, prompt_ids) if prompt_ids else {}
    return {prompt_id for prompt_id in prompt_ids if verdicts.get(prompt_id) is not True}
