"""Work that people did elsewhere, as finished tasks of this site."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    Completion,
    Person,
    Prompt,
    RankingItem,
    Rating,
    Submission,
    Task,
    TaskCompletion,
    new_id,
    now,
)
from instructgpt.label.db.models import Demonstration as DemonstrationRow
from instructgpt.label.db.models import Ranking as RankingRow
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.exchange.imports import Come, Placed, at
from instructgpt.label.exchange.third_party import RatedCompletion
from instructgpt.label.tasks.ingest import prompt_hash, prompt_rows, text_hash
from instructgpt.label.tasks.leaks import names_itself
from instructgpt.records import LABELS, Asked, Cohort, Demonstration, Ranking, Record
from instructgpt.records import Prompt as PromptRecord


class Elsewhere:
    """Takes in what people did elsewhere: one finished batch for each kind of work.

    Args:
        db: a transaction that writes.
        name: of the batch; a second kind gets it with the kind behind.
        purpose: what the work is for.
        cohort: of labelers whose lines name none.
        by: who imports, for the journal.
    """

    def __init__(self, db: Session, name: str, purpose: str, cohort: Cohort, come: Come, by: str = "cli") -> None:
        self.db, self.name, self.purpose, self.cohort, self.come, self.by = db, name, purpose, cohort, come, by
        self.people: dict[str, Person] = {}
        self.prompts: dict[tuple[str, str | None], Prompt] = {}
        self.completions: dict[tuple[str, str, str], Completion] = {}
        self.tasks: dict[tuple[str, ...], Task] = {}
        self.batches: dict[Kind, Batch] = {}
        self.done: set[tuple[str, str]] = set()
        self.at = now()

    def take(self, found: Sequence[Placed]) -> None:
        """All of it. Raises BadInput with the place of the first line that does not fit."""
        for place, record in found:
            with at(place):
                if isinstance(record, Ranking):
                    self._ranking(record)
                elif isinstance(record, RatedCompletion):
                    self._rated(record)
                elif isinstance(record, Demonstration):
                    self._demonstration(record)
        self.db.flush()
        for batch in self.batches.values():
            audit_log.note(self.db, self.by, "work.import", batch.id, kind=batch.kind)

    def _person(self, record: Record) -> Person:
        """Whoever did it, by the name the file has: somebody of this site by the pseudonym, otherwise an account that cannot sign in."""
        extra = record.model_dump()
        name, cohort = str(extra.get("labeler") or "unknown"), extra.get("cohort")
        if name not in self.people:
            pseudonym = f"elsewhere-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"
            known = self.db.scalars(select(Person).where(Person.pseudonym.in_((name, pseudonym)))).first()
            if known is None:
                known = Person(
                    id=new_id(), name=pseudonym, role="labeler", status="paused", cohort=cohort or self.cohort, pseudonym=pseudonym,
                    fold=extra.get("fold"),
                )  # fmt: skip
                self.db.add(known)
                self.come.counts["labelers"] += 1
            self.people[name] = known
        person = self.people[name]
        if cohort is not None and person.cohort != cohort:
            raise ValueError(f"labeler '{name}' is of cohort {person.cohort} here, the line says {cohort}")
        return person

    def _prompt(self, asked: Asked | str, user: str | None = None) -> Prompt:
        record = PromptRecord(prompt=asked) if isinstance(asked, str) else PromptRecord(prompt=asked.prompt, messages=asked.messages)
        key = (prompt_hash(record), user)
        if key not in self.prompts:
            self.prompts[key] = prompt_rows(self.db, [record.model_copy(update={"user": user})])[0]
        if self.prompts[key].withdrawn_at is not None:
            raise ValueError("its prompt was withdrawn; it does not come back by an import")
        return self.prompts[key]

    def _completion(self, prompt: Prompt, text: str, model: str, finish: str) -> Completion:
        key = (prompt.id, model, text_hash(text))
        if key not in self.completions:
            same = select(Completion).where(Completion.prompt_id == prompt.id, Completion.model == model, Completion.text_hash == key[2])
            row = self.db.scalars(same).first()
            if row is None:
                row = Completion(
                    id=new_id(), prompt_id=prompt.id, text=text, text_hash=key[2], model=model, finish=finish, sampling={},
                    names_itself=names_itself(text, [model]),
                )  # fmt: skip
                self.db.add(row)
            self.completions[key] = row
        return self.completions[key]

    def _batch(self, kind: Kind) -> Batch:
        if kind not in self.batches:
            name = self.name if not self.batches else f"{self.name} {kind}"
            if self.db.scalar(select(Batch.id).where(Batch.name == name)) is not None:
                raise ValueError(f"there is already a batch '{name}'; choose another name with --name")
            self.batches[kind] = Batch(
                id=new_id(), name=name, kind=kind, purpose=self.purpose, state="closed", policy={}, intake={"elsewhere": True},
                closed_at=self.at,
            )  # fmt: skip
            self.db.add(self.batches[kind])
            self.db.flush()
        return self.batches[kind]

    def _task(self, kind: Kind, prompt: Prompt, parts: Sequence[tuple[Completion, list[str]]]) -> Task:
        """The task of a prompt and these completions, the same for everybody who was shown them."""
        key = (kind, prompt.id, *sorted(completion.id for completion, _ in parts))
        if key not in self.tasks:
            batch = self._batch(kind)
            task = Task(
                id=new_id(), batch_id=batch.id, kind=kind, prompt_id=prompt.id, overlap=0, state="done", position=len(self.tasks)
            )  # fmt: skip
            self.db.add(task)
            self.db.flush()
            self.db.add_all(
                TaskCompletion(task_id=task.id, completion_id=completion.id, position=place, models=models)
                for place, (completion, models) in enumerate(parts)
            )
            self.tasks[key] = task
        return self.tasks[key]

    def _hand_in(self, task: Task, person: Person, record: Record, shown: list[str]) -> Submission | None:
        """A submission; None for work that is there already."""
        if (task.id, person.id) in self.done:
            self.come.left_out["given twice by one labeler"] += 1
            return None
        self.done.add((task.id, person.id))
        task.overlap, task.n_done = task.overlap + 1, task.n_done + 1
        extra = record.model_extra or {}
        times = {name: extra[name] if isinstance(extra.get(name), int) else 0 for name in ("created_at", "active_ms")}
        at = times["created_at"] or self.at
        held = Assignment(
            id=new_id(), task_id=task.id, person_id=person.id, state="submitted", lease_until=at, shown=shown, opened_at=at, closed_at=at
        )  # fmt: skip
        submission = Submission(
            id=new_id(), assignment_id=held.id, version=1, key="import", kind=task.kind, active_ms=times["active_ms"], created_at=at,
            note=str(extra.get("note") or ""),
        )  # fmt: skip
        self.db.add(held)
        self.db.flush()
        self.db.add(submission)
        self.db.flush()
        return submission

    def _ranking(self, record: Ranking) -> None:
        person, prompt = self._person(record), self._prompt(record.prompt, (record.model_extra or {}).get("user"))
        models = record.models or tuple("unknown" for _ in record.completions)
        finish = record.finish or tuple("stop" for _ in record.completions)
        parts: dict[str, tuple[Completion, list[str], list[int]]] = {}
        for index, text in enumerate(record.completions):
            if text_hash(text) not in parts:
                parts[text_hash(text)] = (self._completion(prompt, text, models[index], finish[index]), [], [])
            parts[text_hash(text)][1].append(models[index])
            parts[text_hash(text)][2].append(index)
        if len(parts) < 2:
            self.come.left_out["completions that all look alike"] += 1
            return
        task = self._task("rank", prompt, [(completion, names) for completion, names, _ in parts.values()])
        submission = self._hand_in(task, person, record, [completion.id for completion, _, _ in parts.values()])
        if submission is None:
            return
        self.come.counts["rankings"] += 1
        extra = record.model_extra or {}
        self.db.add(
            RankingRow(
                submission_id=submission.id, none_acceptable=bool(extra.get("none_acceptable", False)), confidence=extra.get("confidence")
            )
        )  # fmt: skip
        best = {completion.id: min(record.ranks[index] for index in indices) for completion, _, indices in parts.values()}
        dense = {rank: place for place, rank in enumerate(sorted(set(best.values())), start=1)}
        for place, (completion, _, indices) in enumerate(parts.values()):
            tier = best[completion.id]
            self.db.add(RankingItem(submission_id=submission.id, completion_id=completion.id, tier=tier, rank=dense[tier], shown=place))
            rating = record.ratings[indices[0]] if record.ratings else None
            labels = _answered(record, indices[0]) if record.labels else {}
            if rating is not None or labels:
                self.db.add(Rating(submission_id=submission.id, completion_id=completion.id, rating=rating, labels=labels))

    def _rated(self, record: RatedCompletion) -> None:
        person, prompt = self._person(record), self._prompt(record.prompt)
        completion = self._completion(prompt, record.completion, record.model, "stop")
        submission = self._hand_in(self._task("rank", prompt, [(completion, [record.model])]), person, record, [completion.id])
        if submission is not None:
            self.come.counts["ratings"] += 1
            self.db.add(RankingRow(submission_id=submission.id))
            self.db.add(RankingItem(submission_id=submission.id, completion_id=completion.id, tier=1, rank=1, shown=0))
            self.db.add(Rating(submission_id=submission.id, completion_id=completion.id, rating=record.rating, labels={}, note=record.note))

    def _demonstration(self, record: Demonstration) -> None:
        person, prompt = self._person(record), self._prompt(record, (record.model_extra or {}).get("user"))
        submission = self._hand_in(self._task("demonstrate", prompt, ()), person, record, [])
        if submission is not None:
            self.come.counts["demonstrations"] += 1
            self.db.add(
                DemonstrationRow(
                    submission_id=submission.id, person_id=person.id, prompt_id=prompt.id, text=record.completion,
                    text_hash=text_hash(record.completion),
                )
            )  # fmt: skip


def _answered(record: Ranking, index: int) -> dict[str, bool | None]:
    """The labels of one completion that were answered. Raises ValueError for one that is not in Table 3."""
    labels = record.labels[index] if record.labels else {}
    if unknown := set(labels) - set(LABELS):
        raise ValueError(f"no label '{sorted(unknown)[0]}'; there are: {', '.join(LABELS)}")
    unanswered = (record.model_extra or {}).get("unanswered")
    return {name: answer for name, answer in labels.items() if not unanswered or name not in unanswered[index]}
