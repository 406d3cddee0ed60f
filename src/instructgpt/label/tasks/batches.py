"""From files to tasks: what comes in, what is merged or left out, who gets how much of it.

A policy is exact: of N tasks, the number with more labelers and the number that is repeated are N times the share, rounded; which ones
they are follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.errors import InputError
from instructgpt.label.db.models import (
    Batch,
    GoldAnswer,
    Person,
    PromptRow,
    Task,
    TaskCompletion,
    current_time_ms,
    new_id,
)
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.db.models.tasks import TASK_KINDS, TaskKind
from instructgpt.label.tasks import ingest
from instructgpt.label.tasks.ingest import MAX_COMPLETIONS, IngestReport, TaskCandidate
from instructgpt.records import Cohort

UNLIMITED_OVERLAP = 1_000_000
"""The overlap of tasks that are for everybody once: gold tasks and the screening test. They count in no progress."""
SCREENING_TASK_PARTS = ("sensitive", "ranking", "demonstration")
"""The parts of the screening test that are tasks (paper, B.1); the fourth is a questionnaire."""


class OverlapPolicy(BaseModel):
    """How many labelers each task gets.

    "Most comparisons are only labeled by 1 contractor for cost reasons" (paper, B.3): overlap is for measuring agreement, and a part of
    the tasks is enough for that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    overlap: int = Field(1, ge=1, le=100)
    cohort_share: float = Field(0.12, ge=0, le=1)
    """The share of tasks that `cohort_overlap` labelers get."""
    cohort_overlap: int = Field(3, ge=1, le=100)
    gold_share: float = Field(0.05, ge=0, le=1)
    """The share of gold tasks among everything that each labeler is given, as long as there are some they have not had."""
    repeat_share: float = Field(0.02, ge=0, le=1)
    """The share of tasks that whoever did them is given once more."""
    repeat_gap: int = Field(20, ge=1, le=10_000)
    """How many other tasks lie between the two, except at the end of the batch."""
    k: tuple[int, int] | None = None
    """Rank: how many completions a task has at least and at most; None: as many as there are, up to 9."""
    seed: int = 0

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.cohort_overlap < self.overlap:
            raise ValueError(f"cohort_overlap ({self.cohort_overlap}) must be at least overlap ({self.overlap})")
        if self.k is not None and not 2 <= self.k[0] <= self.k[1] <= MAX_COMPLETIONS:
            raise ValueError(f"k must be two numbers between 2 and {MAX_COMPLETIONS}, the smaller first")
        return self


def create_batch_with_tasks(
    db: Session,
    name: str,
    kind: TaskKind,
    purpose: str,
    prompts: Iterable[records.Prompt],
    completions: Iterable[records.Completion],
    policy: OverlapPolicy,
    *,
    screening: str | None = None,
    cohort: Cohort | None = None,
    baseline: str | None = None,
    gold: Mapping[str, Mapping[str, Any]] | None = None,
    briefs: Sequence[Mapping[str, Any]] = (),
    priority: int = 0,
    created_by: Person | None = None,
) -> Batch:
    """A batch with its tasks, still closed to labelers (`open_batch`). What was left out, and why, is in `Batch.intake`.

    Args:
        prompts: one task each; for rank batches they may be left out, the completions' own prompts are then taken.
        completions: rank: what is to be ranked; completions of one prompt that look alike are shown once.
        screening: the part of the screening test that this is; it is for everybody in screening.
        cohort: whose work this is; None: anybody's.
        baseline: evaluation: the model that every task must hold.
        gold: known answers by the prompt's text or id. Rank: `{completion text: rank}`; other kinds: whatever the grader reads.
        briefs: write: one task each, what kind of prompt is wanted (`form`, `use_case`, `hint`).

    Raises:
        BadInput: the batch makes no sense, or nothing is left of it.
    """
    _check_batch_fields(db, name, kind, purpose, screening, cohort)
    rng = Random(f"{policy.seed}:{name}")
    report = IngestReport()
    prompt_candidates = ingest.build_task_candidates(db, kind, prompts, completions, policy.k, baseline, report, rng)
    task_candidates = [
        *prompt_candidates,
        *(TaskCandidate(None, (), dict(brief)) for brief in briefs if kind == "write"),
    ]
    if not task_candidates:
        raise InputError(f"batch '{name}': no task is left ({report.format_counts() or 'nothing came in'})")
    batch = Batch(
        name=name,
        kind=kind,
        purpose=purpose,
        screening=screening,
        cohort=cohort,
        policy=policy.model_dump(mode="json"),
        intake={},
        baseline=baseline,
        priority=priority,
        created_by=created_by.id if created_by else None,
    )
    db.add(batch)
    db.flush()
    gold_answers = dict(gold or {})
    _add_tasks(db, batch, policy, task_candidates, gold_answers, rng, created_by)
    report.tasks = len(task_candidates)
    report.unused_gold = len(gold_answers)
    batch.intake = report.model_dump(mode="json")
    db.flush()
    return batch


def _check_batch_fields(
    db: Session, name: str, kind: str, purpose: str, screening: str | None, cohort: str | None
) -> None:
    if not name.strip():
        raise InputError("a batch needs a name")
    if db.scalar(select(Batch.id).where(Batch.name == name)) is not None:
        raise InputError(f"there is already a batch '{name}'; choose another name")
    if kind not in TASK_KINDS:
        raise InputError(f"no kind of task '{kind}'; there are: {', '.join(TASK_KINDS)}")
    if purpose not in PURPOSES:
        raise InputError(f"no purpose '{purpose}'; there are: {', '.join(PURPOSES)}")
    if screening is not None and screening not in SCREENING_TASK_PARTS:
        raise InputError(
            f"no part of the screening test is called '{screening}'; there are: {', '.join(SCREENING_TASK_PARTS)}"
        )
    if cohort == "heldout" and purpose == "training":
        raise InputError("held-out labelers never get training work; make the batch for purpose 'evaluation'")


def _add_tasks(
    db: Session,
    batch: Batch,
    policy: OverlapPolicy,
    candidates: list[TaskCandidate],
    answers: dict[str, Mapping[str, Any]],
    rng: Random,
    created_by: Person | None,
) -> None:
    """One task for each candidate, in random order, with the overlap that the policy gives it. Answers that are used leave `answers`."""
    answers_in_order = [ingest.pop_gold_answer(candidate, answers) for candidate in candidates]
    non_gold = [index for index, answer in enumerate(answers_in_order) if answer is None]
    high_overlap = set(sample_exact_share(non_gold, policy.cohort_share, rng))
    order = list(range(len(candidates)))
    rng.shuffle(order)
    repeated = (
        set()
        if batch.screening
        else _sample_repeats([index for index in order if answers_in_order[index] is None], policy.repeat_share, rng)
    )
    tasks: list[Task] = []
    rows: list[TaskCompletion | GoldAnswer] = []
    for position, index in enumerate(order):
        candidate, answer = candidates[index], answers_in_order[index]
        overlap = policy.cohort_overlap if index in high_overlap else policy.overlap
        task = Task(
            id=new_id(),
            batch_id=batch.id,
            kind=batch.kind,
            prompt_id=candidate.prompt.id if candidate.prompt else None,
            brief=candidate.brief,
            overlap=UNLIMITED_OVERLAP if batch.screening or answer is not None else overlap,
            position=position,
            gold=answer is not None,
            repeat=index in repeated,
        )
        tasks.append(task)
        rows += [
            TaskCompletion(
                task_id=task.id, completion_id=draft.completion.id, position=completion_position, models=draft.models
            )
            for completion_position, draft in enumerate(candidate.completions)
        ]
        if answer is not None:
            rows.append(
                GoldAnswer(
                    task_id=task.id,
                    answer=dict(answer),
                    source="intake",
                    created_by=created_by.id if created_by else None,
                )
            )
    db.add_all(tasks)
    db.flush()
    db.add_all(rows)
    db.flush()


def sample_exact_share(indices: Sequence[int], share: float, rng: Random) -> list[int]:
    """Exactly `share` of the numbers, rounded half up, at random."""
    return rng.sample(indices, int(len(indices) * share + 0.5))


def _sample_repeats(order: Sequence[int], share: float, rng: Random) -> set[int]:
    """Exactly `share` of the tasks, from the first three quarters of their order, so that other work lies before the repetition."""
    count = int(len(order) * share + 0.5)
    return set(rng.sample(order[: max(count, len(order) * 3 // 4)], count))


def mark_batch_open(db: Session, batch: Batch) -> None:
    """Labelers get its tasks from now on."""
    batch.state, batch.closed_at = "open", None
    db.flush()


def mark_batch_closed(db: Session, batch: Batch, now_ms: int | None = None) -> None:
    """Nobody is given a task of it any more. What is in hand can still be handed in."""
    batch.state, batch.closed_at = "closed", now_ms or current_time_ms()
    db.flush()


def withdraw_prompt(db: Session, prompt: PromptRow, now_ms: int) -> int:
    """Take a prompt back: nobody is shown it again and no export holds it; what people made of it stays in the database.

    Returns:
        how many tasks were withdrawn with it.
    """
    prompt.withdrawn_at = prompt.withdrawn_at or now_ms
    db.flush()
    task_ids = list(db.scalars(select(Task.id).where(Task.prompt_id == prompt.id, Task.state != "withdrawn")))
    if task_ids:
        db.execute(update(Task).where(Task.id.in_(task_ids)).values(state="withdrawn"))
    return len(task_ids)


class BatchProgress(BaseModel):
    """How far a batch is. Gold tasks and the screening test, which are for everybody, count in none of these."""

    model_config = ConfigDict(frozen=True)
    tasks: int
    finished: int
    wanted: int
    """Submissions that the policy asks for."""
    done: int
    in_hand: int
    in_review: int


def get_batch_progress(db: Session, batch: Batch) -> BatchProgress:
    """How far a batch is, from the tasks' counters."""
    statement = select(
        func.count(),
        func.count().filter(Task.state == "done"),
        func.coalesce(func.sum(Task.overlap), 0),
        func.coalesce(func.sum(Task.n_done), 0),
        func.coalesce(func.sum(Task.n_open), 0),
        func.count().filter(Task.state == "review"),
    ).where(Task.batch_id == batch.id, Task.overlap < UNLIMITED_OVERLAP, Task.state != "withdrawn")
    tasks, finished, required, submitted, assigned, in_review = db.execute(statement).one()
    return BatchProgress(
        tasks=tasks,
        finished=finished,
        wanted=int(required),
        done=int(submitted),
        in_hand=int(assigned),
        in_review=in_review,
    )
