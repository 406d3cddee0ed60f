"""Prompts, completions, batches and their tasks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, validates

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id, new_random_id
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.language import guess_language
from instructgpt.label.vocabulary import TASK_KINDS, TaskKind
from instructgpt.records import Cohort

_BATCH_STATES = ("draft", "open", "closed")
_TASK_STATES = ("open", "done", "review", "withdrawn")
"""`review`: waits for a researcher after several skips. `withdrawn`: its prompt was withdrawn."""


class PromptRow(Base):
    """A prompt of a user or a labeler. `user` stays with it to the end of the pipeline."""

    __tablename__ = "prompt"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    external_id: Mapped[str | None] = mapped_column(unique=True)
    text: Mapped[str]
    messages: Mapped[list[Any] | None] = mapped_column(type_=Base.type_annotation_map[list[str]])
    text_hash: Mapped[str] = mapped_column(index=True)
    source: Mapped[str | None] = mapped_column(index=True)
    user: Mapped[str | None]
    use_case: Mapped[str | None] = mapped_column(index=True)
    split: Mapped[str | None]
    sensitive: Mapped[bool] = mapped_column(default=False)
    author_id: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    submission_id: Mapped[str | None]  # the submission that a labeler wrote it in
    written: Mapped[dict[str, Any] | None]  # the labeler's fields of `forms.PromptForm`, from which `text` is composed
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    withdrawn_at: Mapped[int | None]
    language: Mapped[str | None] = mapped_column(index=True)
    """ISO 639-1, for filters: as its record states, otherwise guessed from the text; None: not known."""

    @validates("text")
    def _guess_missing_language(self, _: str, text: str) -> str:
        self.language = self.language or guess_language(text)
        return text


class CompletionRow(Base):
    """A model's or labeler's completion. Labelers never see `model`."""

    __tablename__ = "completion"
    __table_args__ = (UniqueConstraint("prompt_id", "model", "text_hash"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_random_id)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"), index=True)
    text: Mapped[str]
    text_hash: Mapped[str]
    model: Mapped[str]
    finish: Mapped[str] = mapped_column(default="stop")
    sampling: Mapped[dict[str, Any]]
    score: Mapped[float | None]
    names_itself: Mapped[bool] = mapped_column(default=False)
    """The text reveals its model (`ingest.reveals_model`); results list it separately."""
    author_id: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    """The labeler who wrote it as a demonstration and never ranks it."""
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class Batch(Base):
    """Tasks created together; `policy` is `batches.OverlapPolicy` as JSON."""

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
    """The part of the screening test (`sensitive`, `ranking`, `demonstration`); None: ordinary tasks."""
    cohort: Mapped[Cohort | None]  # None: open to both cohorts
    state: Mapped[str] = mapped_column(default="draft")
    priority: Mapped[int] = mapped_column(default=0)  # batches with a higher number come first
    policy: Mapped[dict[str, Any]]
    intake: Mapped[dict[str, Any]]  # `ingest.IngestReport` as JSON
    baseline: Mapped[str | None]  # evaluation: the model that the others are compared with
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    closed_at: Mapped[int | None]
    unblinded_at: Mapped[int | None]
    """Evaluation: when a researcher revealed the model names early; the audit log has the reason."""
    questions: Mapped[dict[str, Any] | None]  # rank: document of `questions.parse_questions`; None: the paper's
    rates: Mapped[list[Any]] = mapped_column(
        type_=Base.type_annotation_map[list[str]], default=list, server_default="[]"
    )
    """`rates.HourlyRate` as JSON, oldest first."""


class Task(Base):
    """One prompt for `overlap` labelers. `assignments.find_counter_mismatches` verifies the counters."""

    __tablename__ = "task"
    __table_args__ = (
        choices_constraint("kind", TASK_KINDS),
        choices_constraint("state", _TASK_STATES),
        CheckConstraint("n_open >= 0 AND n_done >= 0 AND n_open + n_done <= overlap", name="overlap"),
        Index("ix_task_queue", "batch_id", "state", "gold", "position"),
        Index("ix_task_order", "batch_id", "position"),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batch.id"))
    kind: Mapped[TaskKind]
    prompt_id: Mapped[str | None] = mapped_column(ForeignKey("prompt.id"), index=True)
    brief: Mapped[dict[str, Any] | None]
    """Write: the form (`plain`, `few_shot`, `user_based`) and use case of the prompt to write."""
    overlap: Mapped[int]
    n_open: Mapped[int] = mapped_column(default=0)
    n_done: Mapped[int] = mapped_column(default=0)
    n_skipped: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(default="open")
    position: Mapped[int] = mapped_column(default=0)  # random order within the batch, by the policy's seed
    gold: Mapped[bool] = mapped_column(default=False)
    """Its answer is known (`GoldAnswer`). Every labeler gets it once, at the rate of the policy's `gold_share`."""
    repeat: Mapped[bool] = mapped_column(default=False)
    """Assigned a second time to the same labeler, unannounced, to measure the ceiling of agreement."""
    cohort: Mapped[Cohort | None]  # None: open to the batch's cohorts


class TaskCompletion(Base):
    """A completion of a rank task; identical texts are merged at ingest."""

    __tablename__ = "task_completion"
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), primary_key=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), primary_key=True)
    position: Mapped[int]
    models: Mapped[list[str]]  # every model with exactly this text; exports write them as ties
