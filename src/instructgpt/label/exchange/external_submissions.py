"""Import of submissions made with other tools, as finished tasks in a closed batch per task kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models.base import current_time_ms, new_id, new_random_id
from instructgpt.label.db.models.people import Person
from instructgpt.label.db.models.submissions import (
    Assignment,
    DemonstrationRow,
    RankingItem,
    RankingRow,
    Rating,
    Submission,
)
from instructgpt.label.db.models.tasks import Batch, CompletionRow, PromptRow, Task, TaskCompletion
from instructgpt.label.exchange.imports import ImportReport, LocatedRecord, error_location
from instructgpt.label.exchange.third_party import RatedCompletion
from instructgpt.label.tasks.ingest import prompt_hash, reveals_model, text_hash, upsert_prompts
from instructgpt.label.vocabulary import MAX_RATING, MAX_RATING_POINTS, TaskKind
from instructgpt.records import LABELS, Cohort, Demonstration, PromptFields, Ranking, Record
from instructgpt.records import Prompt as PromptRecord


class ExternalSubmissionImporter:
    """Imports external submissions.

    Args:
        name: name of the batch; further task kinds get batches named `<name> <kind>`.
        cohort: cohort of labelers whose records name none.
        imported_by: actor of the audit log entries.
    """

    def __init__(
        self, db: Session, name: str, purpose: str, cohort: Cohort, report: ImportReport, imported_by: str = "cli"
    ) -> None:
        self.db, self.name, self.purpose, self.cohort = db, name, purpose, cohort
        self.report, self.imported_by = report, imported_by
        self.people: dict[str, Person] = {}
        self.prompts: dict[tuple[str, str | None], PromptRow] = {}
        self.completions: dict[tuple[str, str, str], CompletionRow] = {}
        self.tasks: dict[tuple[str, ...], Task] = {}
        self.batches: dict[TaskKind, Batch] = {}
        self.submitted_keys: set[tuple[str, str]] = set()
        self.rating_points: int | None = None  # of the batch of rankings, once one with ratings came
        self.now_ms = current_time_ms()

    def import_all(self, located_records: Sequence[LocatedRecord]) -> None:
        """Import all records. Raises InputError with the location of the first invalid record."""
        for location, record in located_records:
            with error_location(location):
                if isinstance(record, Ranking):
                    self._import_ranking(record)
                elif isinstance(record, RatedCompletion):
                    self._import_rating(record)
                elif isinstance(record, Demonstration):
                    self._import_demonstration(record)
        self.db.flush()
        for batch in self.batches.values():
            audit_log.append_entry(self.db, self.imported_by, "work.import", batch.id, kind=batch.kind)

    def _get_or_create_person(self, record: Record) -> Person:
        """Return the account with the record's labeler as its pseudonym, or a new one that cannot sign in."""
        extra = record.model_dump()
        name, cohort = str(extra.get("labeler") or "unknown"), extra.get("cohort")
        if cohort == "user":
            raise ValueError(
                "rankings of users are no labelers' work; train on their file beside an export of the site"
            )
        if name not in self.people:
            pseudonym = f"elsewhere-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]}"
            account = self.db.scalars(select(Person).where(Person.pseudonym.in_((name, pseudonym)))).first()
            if account is None:
                account = Person(
                    id=new_id(),
                    name=pseudonym,
                    role="labeler",
                    status="paused",
                    cohort=cohort or self.cohort,
                    pseudonym=pseudonym,
                    fold=extra.get("fold"),
                )
                self.db.add(account)
                self.report.counts["labelers"] += 1
            self.people[name] = account
        person = self.people[name]
        if cohort is not None and person.cohort != cohort:
            raise ValueError(f"labeler '{name}' is in cohort {person.cohort} on this site, but the line says {cohort}")
        return person

    def _get_or_create_prompt(self, content: PromptFields, user: str | None = None) -> PromptRow:
        record = PromptRecord.model_validate(content.prompt_columns())
        key = (prompt_hash(record), user)
        if key not in self.prompts:
            self.prompts[key] = upsert_prompts(self.db, [record.model_copy(update={"user": user})])[0]
        if self.prompts[key].withdrawn_at is not None:
            raise ValueError("the prompt was withdrawn; an import does not restore it")
        return self.prompts[key]

    def _get_or_create_completion(self, prompt: PromptRow, text: str, model: str, finish: str) -> CompletionRow:
        key = (prompt.id, model, text_hash(text))
        if key not in self.completions:
            statement = select(CompletionRow).where(
                CompletionRow.prompt_id == prompt.id, CompletionRow.model == model, CompletionRow.text_hash == key[2]
            )
            row = self.db.scalars(statement).first()
            if row is None:
                row = CompletionRow(id=new_random_id(), prompt_id=prompt.id, text=text, text_hash=key[2], model=model)
                row.finish, row.sampling, row.names_itself = finish, {}, reveals_model(text, [model])
                self.db.add(row)
            self.completions[key] = row
        return self.completions[key]

    def _get_or_create_batch(self, kind: TaskKind) -> Batch:
        if kind not in self.batches:
            name = self.name if not self.batches else f"{self.name} {kind}"
            if self.db.scalar(select(Batch.id).where(Batch.name == name)) is not None:
                raise ValueError(f"there is already a batch '{name}'; choose another name with --name")
            batch = Batch(id=new_id(), name=name, kind=kind, purpose=self.purpose, state="closed", policy={})
            batch.intake, batch.closed_at = {"elsewhere": True}, self.now_ms
            self.batches[kind] = batch
            self.db.add(batch)
            self.db.flush()
        return self.batches[kind]

    def _get_or_create_task(
        self, kind: TaskKind, prompt: PromptRow, completions: Sequence[tuple[CompletionRow, list[str]]]
    ) -> Task:
        """Return the task of a prompt and a set of completions; labelers of the same set share it."""
        key = (kind, prompt.id, *sorted(completion.id for completion, _ in completions))
        if key not in self.tasks:
            batch = self._get_or_create_batch(kind)
            task = Task(id=new_id(), batch_id=batch.id, kind=kind, prompt_id=prompt.id, overlap=0, state="done")
            task.position = len(self.tasks)
            self.db.add(task)
            self.db.flush()
            self.db.add_all(
                TaskCompletion(task_id=task.id, completion_id=completion.id, position=position, models=models)
                for position, (completion, models) in enumerate(completions)
            )
            self.tasks[key] = task
        return self.tasks[key]

    def _add_submission(
        self, task: Task, person: Person, record: Record, completion_ids: list[str]
    ) -> Submission | None:
        """Add a submission; return None for a duplicate of the same labeler."""
        if (task.id, person.id) in self.submitted_keys:
            self.report.left_out["duplicates by the same labeler"] += 1
            return None
        self.submitted_keys.add((task.id, person.id))
        task.overlap, task.n_done = task.overlap + 1, task.n_done + 1
        extra = record.model_extra or {}
        times = {name: extra[name] if isinstance(extra.get(name), int) else 0 for name in ("created_at", "active_ms")}
        created_at = times["created_at"] or self.now_ms
        assignment = Assignment(
            id=new_id(), task_id=task.id, person_id=person.id, state="submitted", shown=completion_ids
        )
        assignment.lease_until = assignment.opened_at = assignment.closed_at = created_at
        submission = Submission(id=new_id(), assignment_id=assignment.id, version=1, key="import", kind=task.kind)
        submission.active_ms, submission.created_at = times["active_ms"], created_at
        submission.note = str(extra.get("note") or "")
        self.db.add(assignment)
        self.db.flush()
        self.db.add(submission)
        self.db.flush()
        return submission

    def _set_rating_scale(self, record: Ranking) -> None:
        """Give the batch the scale of the ratings. Raises ValueError for a second scale, or one that is too long."""
        if not record.ratings:
            return
        points = record.rating_points or MAX_RATING
        if points > MAX_RATING_POINTS:
            raise ValueError(f"a scale of {points} points; a site takes up to {MAX_RATING_POINTS}")
        if self.rating_points is None and points != MAX_RATING:
            self._get_or_create_batch("rank").questions = {"rating": {"points": points}}
        self.rating_points = self.rating_points or points
        if points != self.rating_points:
            scales = f"ratings from 1 to {points} after ratings from 1 to {self.rating_points}"
            raise ValueError(f"{scales}: one batch has one scale, so import them as two files")

    def _import_ranking(self, record: Ranking) -> None:
        extra = record.model_extra or {}
        person = self._get_or_create_person(record)
        prompt = self._get_or_create_prompt(record, extra.get("user"))
        models = record.models or tuple("unknown" for _ in record.completions)
        finish = record.finish or tuple("stop" for _ in record.completions)
        # Equal texts are one completion of several models; its rank is the best rank of its copies.
        groups: dict[str, tuple[CompletionRow, list[str], list[int]]] = {}
        for index, text in enumerate(record.completions):
            digest = text_hash(text)
            if digest not in groups:
                completion = self._get_or_create_completion(prompt, text, models[index], finish[index])
                groups[digest] = (completion, [], [])
            groups[digest][1].append(models[index])
            groups[digest][2].append(index)
        if len(groups) < 2:
            self.report.left_out["rankings of identical completions"] += 1
            return
        completions = [completion for completion, _, _ in groups.values()]
        self._set_rating_scale(record)
        task = self._get_or_create_task("rank", prompt, [group[:2] for group in groups.values()])
        submission = self._add_submission(task, person, record, [completion.id for completion in completions])
        if submission is None:
            return
        self.report.counts["rankings"] += 1
        ranking = RankingRow(submission_id=submission.id, confidence=extra.get("confidence"))
        ranking.none_acceptable = bool(extra.get("none_acceptable", False))
        ranking.answers = extra.get("answers") if isinstance(extra.get("answers"), dict) else None
        self.db.add(ranking)
        tiers = [min(record.ranks[index] for index in indices) for _, _, indices in groups.values()]
        levels = sorted(set(tiers))
        for position, (completion, _, indices) in enumerate(groups.values()):
            tier = tiers[position]
            ids = {"submission_id": submission.id, "completion_id": completion.id}
            self.db.add(RankingItem(**ids, tier=tier, rank=1 + levels.index(tier), shown=position))
            rating = record.ratings[indices[0]] if record.ratings else None
            labels = _answered_labels(record, indices[0]) if record.labels else {}
            if rating is not None or labels:
                self.db.add(Rating(**ids, rating=rating, labels=labels))

    def _import_rating(self, record: RatedCompletion) -> None:
        person, prompt = self._get_or_create_person(record), self._get_or_create_prompt(record)
        completion = self._get_or_create_completion(prompt, record.completion, record.model, "stop")
        task = self._get_or_create_task("rank", prompt, [(completion, [record.model])])
        submission = self._add_submission(task, person, record, [completion.id])
        if submission is not None:
            self.report.counts["ratings"] += 1
            ids = {"submission_id": submission.id, "completion_id": completion.id}
            self.db.add(RankingRow(submission_id=submission.id))
            self.db.add(RankingItem(**ids, tier=1, rank=1, shown=0))
            self.db.add(Rating(**ids, rating=record.rating, labels={}, note=record.note))

    def _import_demonstration(self, record: Demonstration) -> None:
        person = self._get_or_create_person(record)
        prompt = self._get_or_create_prompt(record, (record.model_extra or {}).get("user"))
        submission = self._add_submission(self._get_or_create_task("demonstrate", prompt, ()), person, record, [])
        if submission is not None:
            self.report.counts["demonstrations"] += 1
            row = DemonstrationRow(submission_id=submission.id, person_id=person.id, prompt_id=prompt.id)
            row.text, row.text_hash = record.completion, text_hash(record.completion)
            self.db.add(row)


def _answered_labels(record: Ranking, index: int) -> dict[str, bool | None]:
    """Return the answered labels of one completion. Raises ValueError for a label that is not in Table 3."""
    labels = record.labels[index] if record.labels else {}
    unanswered = (record.model_extra or {}).get("unanswered")
    # Exports of a site, which have `unanswered`, may hold answers to a batch's own questions.
    if (unknown_labels := set(labels) - set(LABELS)) and not unanswered:
        raise ValueError(f"unknown label '{sorted(unknown_labels)[0]}'; valid labels: {', '.join(LABELS)}")
    return {name: answer for name, answer in labels.items() if not unanswered or name not in unanswered[index]}
