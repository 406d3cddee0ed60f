"""What there is to do: prompts, completions, batches and their tasks."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.records import Cohort

TaskKind = Literal["rank", "demonstrate", "write", "review"]
TASK_KINDS: tuple[TaskKind, ...] = ("rank", "demonstrate", "write", "review")
"""Rank: rate every completion, then rank them all. Demonstrate: write the completion. Write: write a prompt. Review: describe a prompt."""

_BATCH_STATES = ("draft", "open", "closed")
_TASK_STATES = ("open", "done", "review", "withdrawn")
"""`review`: skipped so often that a person must look at it. Withdrawn: its prompt was taken back."""


class PromptRow(Base):
    """What a user or a labeler asked. `user` stays with it to the end of the pipeline."""

    __tablename__ = "prompt"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    external_id: Mapped[str | None] = mapped_column(unique=True)
    text: Mapped[str]
    messages: Mapped[list[Any] | None] = mapped_column(type_=Base.type_annotation_map[list[str]])
    text_hash: Mapped[str] = mapped_column(index=True)
    source: Mapped[str | None]
    user: Mapped[str | None]
    use_case: Mapped[str | None]
    split: Mapped[str | None]
    sensitive: Mapped[bool] = mapped_column(default=False)
    author_id: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    submission_id: Mapped[str | None]
    """The submission in which a labeler wrote it."""
    written: Mapped[dict[str, Any] | None]
    """What that labeler filled in, part by part (`forms.WriteForm`); `text` is made of it."""
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    withdrawn_at: Mapped[int | None]


class CompletionRow(Base):
    """What a model, or a labeler, answered. Labelers never see `model`."""

    __tablename__ = "completion"
    __table_args__ = (UniqueConstraint("prompt_id", "model", "text_hash"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"), index=True)
    text: Mapped[str]
    text_hash: Mapped[str]
    model: Mapped[str]
    finish: Mapped[str] = mapped_column(default="stop")
    sampling: Mapped[dict[str, Any]]
    score: Mapped[float | None]
    names_itself: Mapped[bool] = mapped_column(default=False)
    """The text gives its model away; its task is marked and shown apart."""
    author_id: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    """The labeler whose demonstration this is; they never rank it."""
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class Batch(Base):
    """Tasks that were made together, by one policy. `policy` is `batches.Policy` as JSON."""

    __tablename__ = "batch"
    __table_args__ = (
        choices_constraint("kind", TASK_KINDS),
        choices_constraint("purpose", PURPOSES),
        choices_constraint("state", _BATCH_STATES),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[TaskKind]
    purpose: Mapped[str]
    screening: Mapped[str | None]
    """Which part of the screening test this batch is: `sensitive`, `ranking` or `demonstration`; None for work."""
    cohort: Mapped[Cohort | None]
    """Whose work this is; None: anybody's."""
    state: Mapped[str] = mapped_column(default="draft")
    priority: Mapped[int] = mapped_column(default=0)
    """Work of the batch with the highest number comes first."""
    policy: Mapped[dict[str, Any]]
    intake: Mapped[dict[str, Any]]
    """What came in and what was left out: `batches.Intake` as JSON."""
    baseline: Mapped[str | None]
    """Evaluation: the model the others are compared with."""
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    closed_at: Mapped[int | None]
    unblinded_at: Mapped[int | None]
    """Evaluation: somebody chose to see the names of the models before the batch was closed; the journal knows who and why."""


class Task(Base):
    """One prompt to be worked on by `overlap` labelers. The counters are guarded here and recounted by `assignment.recount`."""

    __tablename__ = "task"
    __table_args__ = (
        choices_constraint("kind", TASK_KINDS),
        choices_constraint("state", _TASK_STATES),
        CheckConstraint("n_open >= 0 AND n_done >= 0 AND n_open + n_done <= overlap", name="overlap"),
        Index("ix_task_queue", "batch_id", "state", "gold", "position"),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.id"))
    kind: Mapped[TaskKind]
    prompt_id: Mapped[str | None] = mapped_column(ForeignKey("prompt.id"), index=True)
    brief: Mapped[dict[str, Any] | None]
    """Write: which kind of prompt is wanted (`plain`, `few_shot`, `user_based`) and the use case."""
    overlap: Mapped[int]
    n_open: Mapped[int] = mapped_column(default=0)
    n_done: Mapped[int] = mapped_column(default=0)
    n_skipped: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(default="open")
    position: Mapped[int] = mapped_column(default=0)
    """Order within the batch: random by the policy's seed. Batches come in the order of their priority, the highest first."""
    gold: Mapped[bool] = mapped_column(default=False)
    """Its answer is known (`quality.Gold`); everybody of the cohort gets it once, at the pace of the policy's `gold_share`."""
    repeat: Mapped[bool] = mapped_column(default=False)
    """Whoever did it is given it once more, later and without a word: the ceiling of agreement."""


class TaskCompletion(Base):
    """The completions of a rank task, by id: each of them once, identical texts merged at intake."""

    __tablename__ = "task_completion"
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), primary_key=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), primary_key=True)
    position: Mapped[int]
    models: Mapped[list[str]]
    """Every model that gave exactly this text; the ones after the first are tied with it in exports."""
