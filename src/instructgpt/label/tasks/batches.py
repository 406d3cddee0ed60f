"""Create batches of tasks with an exact overlap policy, open and close them, withdraw prompts, report progress.

Of N tasks, exactly N times the share (rounded) get more labelers or are repeated; the seed selects them.
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
from instructgpt.label.db.models import Batch, GoldAnswer, Person, PromptRow, Task, TaskCompletion
from instructgpt.label.db.models.base import current_time_ms, new_id
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.tasks import ingest
from instructgpt.label.tasks.ingest import IngestReport, TaskCandidate
from instructgpt.label.tasks.questions import parse_questions
from instructgpt.label.tasks.rates import HourlyRate
from instructgpt.label.tasks.task_events import record_batch_completion
from instructgpt.label.vocabulary import FAILURE_KINDS, MAX_COMPLETIONS, TASK_KINDS, TaskKind
from instructgpt.label.vocabulary import UNLIMITED_OVERLAP as UNLIMITED_OVERLAP
from instructgpt.records import Cohort

SCREENING_TASK_PARTS = ("sensitive", "ranking", "demonstration")
"""The parts of the screening test that are tasks (paper, B.1); the fourth is a survey."""


class OverlapPolicy(BaseModel):
    """How many labelers each task gets.

    "Most comparisons are only labeled by 1 contractor for cost reasons" (paper, B.3): overlap measures agreement, for
    which a share of the tasks is enough.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    overlap: int = Field(1, ge=1, le=100)
    cohort_share: float = Field(0.12, ge=0, le=1)  # share of tasks for `cohort_overlap` labelers
    cohort_overlap: int = Field(3, ge=1, le=100)
    gold_share: float = Field(0.05, ge=0, le=1)  # share of gold tasks among a labeler's tasks, while new ones are left
    heldout_share: float | None = Field(None, ge=0, le=1)
    """Evaluation: share of tasks for held-out labelers, the rest for the training cohort; None: who comes first."""
    repeat_share: float = Field(0.02, ge=0, le=1)  # share of tasks that the same labeler gets a second time
    repeat_gap: int = Field(20, ge=1, le=10_000)  # assignments between the two, except at the end of the batch
    k: tuple[int, int] | None = None  # rank: minimum and maximum completions of a task; None: all, up to 9
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
    questions: Mapping[str, Any] | None = None,
    rate: HourlyRate | None = None,
    created_by: Person | None = None,
) -> Batch:
    """Create a batch with its tasks, in draft until `mark_batch_open`; `Batch.intake` counts excluded records.

    Args:
        prompts: one task each; rank batches default to the prompts of the completions.
        completions: rank: identical completions of a prompt are merged.
        screening, cohort: the part of the screening test that the batch is for; None: both cohorts.
        baseline: evaluation: the model that every task must contain.
        gold: known answers by the prompt's text or id. Rank: `{completion text: rank}`; others: fields of the form.
        briefs: write: one task each, with `form`, `use_case`, `hint`, `red_team`.

    Raises:
        InputError: the arguments contradict each other, or no task is left.
    """
    _check_batch_fields(db, name, kind, purpose, screening, cohort, policy)
    rng, report, unused_gold = Random(f"{policy.seed}:{name}"), IngestReport(), dict(gold or {})
    candidates = ingest.build_task_candidates(db, kind, prompts, completions, policy.k, baseline, report, rng)
    if kind == "write":
        candidates += [TaskCandidate(None, (), _check_brief(brief)) for brief in briefs]
    if not candidates:
        raise InputError(f"batch '{name}': no task is left ({report.format_counts() or 'no records'})")
    batch = Batch(
        name=name,
        kind=kind,
        purpose=purpose,
        screening=screening,
        cohort=cohort,
        policy=policy.model_dump(mode="json"),
        intake={},
        baseline=baseline,
        questions=_check_questions(kind, questions),
        priority=priority,
        rates=[rate.model_dump()] if rate else [],
        created_by=created_by.id if created_by else None,
    )
    db.add(batch)
    db.flush()
    _add_tasks(db, batch, policy, candidates, unused_gold, rng, created_by)
    report.tasks, report.unused_gold = len(candidates), len(unused_gold)
    batch.intake = report.model_dump(mode="json")
    db.flush()
    return batch


def _check_questions(kind: str, questions: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the document of `questions.parse_questions`, None for the paper's questions; raise InputError."""
    if questions and kind != "rank":
        raise InputError(f"questions belong to rankings, not to a batch of kind '{kind}'")
    parse_questions(questions)
    return dict(questions) if questions else None


def _check_batch_fields(
    db: Session,
    name: str,
    kind: str,
    purpose: str,
    screening: str | None,
    cohort: str | None,
    policy: OverlapPolicy,
) -> None:
    if not name.strip():
        raise InputError("a batch needs a name")
    if db.scalar(select(Batch.id).where(Batch.name == name)) is not None:
        raise InputError(f"there is already a batch '{name}'; choose another name")
    if kind not in TASK_KINDS:
        raise InputError(f"unknown kind of task '{kind}'; choose from {', '.join(TASK_KINDS)}")
    if purpose not in PURPOSES:
        raise InputError(f"unknown purpose '{purpose}'; choose from {', '.join(PURPOSES)}")
    if screening is not None and screening not in SCREENING_TASK_PARTS:
        raise InputError(f"unknown screening part '{screening}'; choose from {', '.join(SCREENING_TASK_PARTS)}")
    if cohort == "heldout" and purpose == "training":
        raise InputError("held-out labelers never get training tasks; use purpose 'evaluation'")
    if policy.heldout_share is not None and (purpose != "evaluation" or cohort is not None or screening is not None):
        raise InputError("heldout_share divides an evaluation batch that both cohorts work on")


def _check_brief(brief: Mapping[str, Any]) -> dict[str, Any]:
    failure = brief.get("red_team")
    if failure is not None and failure not in FAILURE_KINDS:
        raise InputError(f"unknown kind of failure '{failure}'; choose from {', '.join(FAILURE_KINDS)}")
    if failure is not None and brief.get("form", "plain") != "plain":
        raise InputError("red-team tasks are plain prompts to write")
    return dict(brief)


def _add_tasks(
    db: Session,
    batch: Batch,
    policy: OverlapPolicy,
    candidates: list[TaskCandidate],
    answers: dict[str, Mapping[str, Any]],
    rng: Random,
    created_by: Person | None,
) -> None:
    """Add one task for each candidate, in random order; gold answers that are used are removed from `answers`."""
    gold = [ingest.pop_gold_answer(candidate, answers) for candidate in candidates]
    non_gold = [index for index, answer in enumerate(gold) if answer is None]
    high_overlap = set(sample_exact_share(non_gold, policy.cohort_share, rng))
    order = list(range(len(candidates)))
    rng.shuffle(order)
    cohorts = _divide_cohorts(non_gold, policy.heldout_share, rng)
    repeatable = [index for index in order if gold[index] is None]
    repeated = set() if batch.screening else _sample_repeats(repeatable, policy.repeat_share, rng)
    creator_id = created_by.id if created_by else None
    tasks: list[Task] = []
    rows: list[TaskCompletion | GoldAnswer] = []
    for position, index in enumerate(order):
        candidate, answer = candidates[index], gold[index]
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
            cohort=cohorts.get(index),
            repeat=index in repeated,
        )
        tasks.append(task)
        rows += [
            TaskCompletion(task_id=task.id, completion_id=draft.completion.id, position=place, models=draft.models)
            for place, draft in enumerate(candidate.completions)
        ]
        if answer is not None:
            rows.append(GoldAnswer(task_id=task.id, answer=dict(answer), source="intake", created_by=creator_id))
    db.add_all(tasks)
    db.flush()
    db.add_all(rows)
    db.flush()


def sample_exact_share(indices: Sequence[int], share: float, rng: Random) -> list[int]:
    """Sample exactly `share` of the indices, rounded half up."""
    return rng.sample(indices, int(len(indices) * share + 0.5))


def _divide_cohorts(indices: Sequence[int], heldout_share: float | None, rng: Random) -> dict[int, Cohort]:
    """Assign exactly the share of the tasks to held-out labelers, the others to the training cohort."""
    if heldout_share is None:
        return {}
    heldout = set(sample_exact_share(indices, heldout_share, rng))
    return {index: "heldout" if index in heldout else "training" for index in indices}


def _sample_repeats(order: Sequence[int], share: float, rng: Random) -> set[int]:
    """Sample exactly `share` of the tasks, among the first three quarters to leave tasks before the repeat."""
    count = int(len(order) * share + 0.5)
    return set(rng.sample(order[: max(count, len(order) * 3 // 4)], count))


def mark_batch_open(db: Session, batch: Batch) -> None:
    batch.state, batch.closed_at = "open", None
    db.flush()


def mark_batch_closed(db: Session, batch: Batch, now_ms: int | None = None) -> None:
    """Stop assigning the tasks of a batch; active assignments can still be submitted."""
    batch.state, batch.closed_at = "closed", now_ms or current_time_ms()
    db.flush()


def withdraw_prompt(db: Session, prompt: PromptRow, now_ms: int) -> int:
    """Withdraw a prompt and its tasks from labelers and exports; rows stay. Return the number of tasks."""
    prompt.withdrawn_at = prompt.withdrawn_at or now_ms
    db.flush()
    task_ids = list(db.scalars(select(Task.id).where(Task.prompt_id == prompt.id, Task.state != "withdrawn")))
    if task_ids:
        db.execute(update(Task).where(Task.id.in_(task_ids)).values(state="withdrawn"))
        for batch_id in db.scalars(
            select(Task.batch_id).where(Task.id.in_(task_ids)).distinct().order_by(Task.batch_id)
        ):
            record_batch_completion(db, batch_id)
    return len(task_ids)


class BatchProgress(BaseModel):
    """Counters of a batch without gold and screening tasks, which have no overlap to reach."""

    model_config = ConfigDict(frozen=True)
    tasks: int
    finished: int
    wanted: int  # submissions that the policy requires
    done: int
    in_hand: int
    in_review: int


def get_batch_progress(db: Session, batch: Batch) -> BatchProgress:
    statement = select(
        func.count(),
        func.count().filter(Task.state == "done"),
        func.coalesce(func.sum(Task.overlap), 0),
        func.coalesce(func.sum(Task.n_done), 0),
        func.coalesce(func.sum(Task.n_open), 0),
        func.count().filter(Task.state == "review"),
    ).where(Task.batch_id == batch.id, Task.overlap < UNLIMITED_OVERLAP, Task.state != "withdrawn")
    counts = zip(BatchProgress.model_fields, db.execute(statement).one(), strict=True)
    return BatchProgress(**{name: int(count) for name, count in counts})
