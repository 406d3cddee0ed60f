"""Batches, labelers and rankings written straight into the tables, for tests of the owner's pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from sqlalchemy import insert
from support.site import add_person
from support.tasks import PLAIN

from instructgpt.label.context import Site
from instructgpt.label.db.models import (
    Assignment,
    Person,
    PromptRow,
    RankingItem,
    RankingRow,
    Rating,
    Submission,
    Task,
    TaskCompletion,
    current_time_ms,
    new_id,
)
from instructgpt.label.tasks.batches import create_batch_with_tasks, mark_batch_open
from instructgpt.records import Completion
from instructgpt.records import Prompt as PromptRecord

NUMBERS = count()


@dataclass
class Filled:
    """A batch, and its tasks in the order of their prompts: for each task {model: completion id}."""

    site: Site
    batch: str
    tasks: list[str]
    completions: list[dict[str, str]]
    rows: dict[type, list[dict]] = field(default_factory=dict)

    def rank(
        self,
        task: int,
        person: Person,
        ranks: Sequence[int],
        *,
        order=None,
        again=0,
        at=None,
        active=60_000,
        ratings=None,
        labels=None,
        pasted=None,
    ) -> str:
        """Add a labeler's ranks of a task's completions, in the order of the models. `order`: as shown on the page."""
        ids = list(self.completions[task].values())
        shown = [ids[number] for number in (order or range(len(ids)))]
        at = at or current_time_ms() + next(NUMBERS)
        submission = self._add_submission(self.tasks[task], person, shown, again, at, active, pasted)
        self.add(RankingRow, submission_id=submission, none_acceptable=False, confidence=None)
        for number, completion in enumerate(ids):
            of_completion = {"submission_id": submission, "completion_id": completion}
            tier = ranks[number]
            self.add(RankingItem, **of_completion, tier=tier, rank=tier, shown=shown.index(completion))
            if ratings or labels:
                rating, answers = ratings[number] if ratings else None, labels[number] if labels else {}
                self.add(Rating, **of_completion, rating=rating, labels=answers, note="")
        return submission

    def _add_submission(self, task: str, person: Person, shown: list[str], again, at, active, pasted) -> str:
        assignment, submission = new_id(), new_id()
        self.add(
            Assignment,
            id=assignment,
            task_id=task,
            person_id=person.id,
            round=again,
            state="submitted",
            lease_until=at,
            shown=shown,
            instructions_id=None,
            opened_at=at - 90_000,
            closed_at=at,
        )
        self.add(
            Submission,
            id=submission,
            assignment_id=assignment,
            version=1,
            key=submission,
            kind="rank",
            note="",
            active_ms=active,
            wall_ms=90_000,
            pasted=pasted,
            surplus=False,
            invalid_reason=None,
            created_at=at,
            replaced_at=None,
        )
        return submission

    def add(self, table: type, **row) -> None:
        self.rows.setdefault(table, []).append(row)

    def save(self) -> None:
        """Write what was ranked since."""
        with self.site.database.write() as db:
            for table, rows in self.rows.items():
                db.execute(insert(table), rows)
            counts = Counter(row["task_id"] for row in self.rows.get(Assignment, ()) if row["round"] == 0)
            for task in db.query(Task).filter(Task.id.in_(counts)):
                task.overlap = max(task.overlap, task.n_done + counts[task.id])
                task.n_done += counts[task.id]
                task.state = "done" if task.n_done == task.overlap else task.state
        self.rows = {}


def fill(
    site: Site,
    tasks=3,
    models=("sft", "ppo", "gpt"),
    name="batch",
    purpose="training",
    policy=PLAIN,
    use_cases=(),
    opened=True,
    **options,
) -> Filled:
    """A batch with one completion of each model for each prompt; nothing ranked yet."""
    prompts = [
        PromptRecord(prompt=f"{name} prompt {n}", use_case=use_cases[n % len(use_cases)] if use_cases else None)
        for n in range(tasks)
    ]
    answers = [
        Completion(prompt=p.prompt, completion=f"an answer of kind {k} to {p.prompt}", model=m)
        for p in prompts
        for k, m in enumerate(models)
    ]
    with site.database.write() as db:
        batch = create_batch_with_tasks(db, name, "rank", purpose, prompts, answers, policy, **options)
        if opened:
            mark_batch_open(db, batch)
        made = {
            prompt: task
            for task, prompt in db.query(Task.id, PromptRow.text)
            .join(PromptRow, PromptRow.id == Task.prompt_id)
            .filter(Task.batch_id == batch.id)
        }
        of = {(row.task_id, row.models[0]): row.completion_id for row in db.query(TaskCompletion)}
    order = [made[prompt.prompt] for prompt in prompts]
    return Filled(site, batch.id, order, [{model: of[task, model] for model in models} for task in order])


def people(site: Site, *names: str, cohort: str = "training") -> list[Person]:
    """Labelers."""
    return [add_person(site, name, cohort=cohort) for name in names]
