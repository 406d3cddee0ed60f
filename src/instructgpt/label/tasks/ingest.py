"""What comes into a batch: prompts and completions as rows, duplicates merged, texts that name their model marked, all of it counted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt import records
from instructgpt.errors import InputError
from instructgpt.label.db.models import CompletionRow, Person, PromptRow, new_id
from instructgpt.label.tasks.leaks import reveals_model

MAX_COMPLETIONS = 9
"""They are called A to I; K goes from 4 to 9 in the paper (3.5)."""
_RecordT = TypeVar("_RecordT", bound=records.Record)
_SQL_CHUNK_SIZE = 500
"""Values that one statement names at most; databases have a limit."""


class IngestReport(BaseModel):
    """What came into a batch and what was left out of it, in numbers."""

    prompts: int = 0
    completions: int = 0
    tasks: int = 0
    same_prompt: int = 0
    """Prompts with a text that an earlier one of the same batch has."""
    withdrawn_prompts: int = 0
    without_prompt: int = 0
    """Completions of prompts that are not in the batch."""
    merged: int = 0
    """Completions that look like an earlier one of their prompt: shown once, tied in exports."""
    beyond_k: int = 0
    """Completions above the largest K, left out at random."""
    too_few: int = 0
    """Prompts with fewer different completions than the smallest K."""
    without_baseline: int = 0
    mended: int = 0
    """Texts with characters that no database keeps (NUL, half surrogates), each of which became U+FFFD."""
    name_themselves: int = 0
    """Completions that say which model wrote them: kept, marked, shown apart."""
    unused_gold: int = 0
    """Answers that belong to no task, or do not cover its completions."""

    def format_counts(self) -> str:
        """The numbers that are not 0, for one line."""
        return ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in self.model_dump().items() if count)


@dataclass
class TaskCompletionDraft:
    """A completion of a task, and every model that gave this text."""

    completion: CompletionRow
    models: list[str]


@dataclass
class TaskCandidate:
    """A task to be."""

    prompt: PromptRow | None
    completions: tuple[TaskCompletionDraft, ...] = ()
    brief: dict[str, Any] | None = None


@dataclass
class _MergedCompletion:
    """Completions of one prompt that look alike; the first stands for all."""

    representative: records.Completion
    models: list[str] = field(default_factory=list)


def text_hash(text: str) -> str:
    """SHA-256 of a text without the white space around it: two texts with the same hash look the same on the page."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def prompt_hash(prompt: records.PromptFields) -> str:
    """SHA-256 of what is asked; a conversation differs from the same words in one piece."""
    if prompt.messages is None:
        return text_hash(prompt.text)
    return text_hash(
        json.dumps([message.model_dump() for message in prompt.messages], ensure_ascii=False, sort_keys=True)
    )


def _chunked(values: Iterable[Any], size: int = _SQL_CHUNK_SIZE) -> Iterator[list[Any]]:
    """The values in lists of at most `size`."""
    items = list(values)
    return (items[start : start + size] for start in range(0, len(items), size))


def build_task_candidates(
    db: Session,
    kind: str,
    prompts: Iterable[records.Prompt],
    completions: Iterable[records.Completion],
    k: tuple[int, int] | None,
    baseline: str | None,
    report: IngestReport,
    rng: Random,
) -> list[TaskCandidate]:
    """The tasks that can be made, in the order of the prompts. Raises BadInput as `prompt_rows` does, or when nothing was given."""
    if kind == "write":
        return []
    completion_records = [_replace_unstorable_texts(record, report) for record in completions] if kind == "rank" else []
    prompt_records = [_replace_unstorable_texts(record, report) for record in prompts]
    if kind == "rank" and not prompt_records:
        prompt_records = [
            records.Prompt(prompt=text) for text in dict.fromkeys(record.prompt for record in completion_records)
        ]
    report.prompts, report.completions = len(prompt_records), len(completion_records)
    unique_prompts: dict[str, records.Prompt] = {}
    for prompt in prompt_records:
        unique_prompts.setdefault(prompt_hash(prompt), prompt)
    report.same_prompt = len(prompt_records) - len(unique_prompts)
    rows = upsert_prompts(db, list(unique_prompts.values()))
    usable = [
        (prompt, row) for prompt, row in zip(unique_prompts.values(), rows, strict=True) if row.withdrawn_at is None
    ]
    report.withdrawn_prompts = len(unique_prompts) - len(usable)
    if kind != "rank":
        return [TaskCandidate(row) for _, row in usable]
    return _build_ranking_candidates(db, usable, completion_records, k, baseline, report, rng)


def _replace_unstorable_texts(record: _RecordT, report: IngestReport) -> _RecordT:
    """A record with texts that can be stored: a model's output may hold any character."""
    texts = {name: text for name in ("prompt", "completion") if isinstance(text := getattr(record, name, None), str)}
    replacements = {name: clean for name, text in texts.items() if (clean := replace_unstorable(text)) != text}
    messages: tuple[records.Message, ...] = getattr(record, "messages", None) or ()
    if any(replace_unstorable(message.content) != message.content for message in messages):
        replacements["messages"] = tuple(
            message.model_copy(update={"content": replace_unstorable(message.content)}) for message in messages
        )  # type: ignore[assignment]
    report.mended += bool(replacements)
    return record.model_copy(update=replacements) if replacements else record


def replace_unstorable(text: str) -> str:
    """A text with U+FFFD in place of what no database keeps."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def upsert_prompts(db: Session, prompts: Sequence[records.Prompt]) -> list[PromptRow]:
    """The row of each prompt, new or the one that is there: the same text from the same user is one prompt.

    Raises:
        BadInput: an id that already belongs to another text.
    """
    hashes = [prompt_hash(prompt) for prompt in prompts]
    existing: dict[tuple[str, str | None], PromptRow] = {}
    for chunk in _chunked(hashes):
        existing |= {
            (row.text_hash, row.user): row
            for row in db.scalars(select(PromptRow).where(PromptRow.text_hash.in_(chunk)))
        }
    by_external_id: dict[str, PromptRow] = {}
    for chunk in _chunked(prompt.id for prompt in prompts if prompt.id is not None):
        by_external_id |= {
            row.external_id or "": row for row in db.scalars(select(PromptRow).where(PromptRow.external_id.in_(chunk)))
        }
    rows = []
    for prompt, digest in zip(prompts, hashes, strict=True):
        same_id = by_external_id.get(prompt.id) if prompt.id is not None else None
        if same_id is not None and same_id.text_hash != digest:
            raise InputError(
                f"prompt id '{prompt.id}' already belongs to another text; give ids that are unique on the site, or none"
            )
        row = same_id or existing.get((digest, prompt.user))
        if row is None:
            row = build_prompt_row(prompt, digest)
            db.add(row)
            existing[digest, row.user] = row
            by_external_id |= {row.external_id: row} if row.external_id is not None else {}
        rows.append(row)
    db.flush()
    return rows


def build_prompt_row(prompt: records.Prompt, digest: str) -> PromptRow:
    """A prompt as a row. A column `sensitive` of the file is taken over."""
    return PromptRow(
        id=new_id(),
        external_id=prompt.id,
        text=prompt.text,
        text_hash=digest,
        source=prompt.source,
        user=prompt.user,
        messages=[message.model_dump() for message in prompt.messages] if prompt.messages is not None else None,
        use_case=prompt.use_case,
        split=prompt.split,
        sensitive=bool((prompt.model_extra or {}).get("sensitive", False)),
    )


def _build_ranking_candidates(
    db: Session,
    prompts: list[tuple[records.Prompt, PromptRow]],
    completions: list[records.Completion],
    k: tuple[int, int] | None,
    baseline: str | None,
    report: IngestReport,
    rng: Random,
) -> list[TaskCandidate]:
    """Rank: each prompt with its different completions, as many as K allows."""
    min_k, max_k = k or (2, MAX_COMPLETIONS)
    completions_by_prompt: dict[str, list[records.Completion]] = {}
    for completion in completions:
        completions_by_prompt.setdefault(completion.prompt, []).append(completion)
    report.without_prompt = len(completions) - sum(
        len(completions_by_prompt.get(prompt.text, ())) for prompt, _ in prompts
    )
    selected: list[tuple[PromptRow, list[_MergedCompletion]]] = []
    for prompt, row in prompts:
        texts = _merge_identical(completions_by_prompt.get(prompt.text, []))
        report.merged += len(completions_by_prompt.get(prompt.text, [])) - len(texts)
        if baseline is not None and not any(baseline in text.models for text in texts):
            report.without_baseline += 1
        elif len(texts) < min_k:
            report.too_few += 1
        else:
            report.beyond_k += max(0, len(texts) - max_k)
            selected.append((row, _sample_completions(texts, max_k, baseline, rng)))
    return _upsert_completions(db, selected, report)


def _merge_identical(completions: Iterable[records.Completion]) -> list[_MergedCompletion]:
    """Completions of one prompt, those that look alike merged."""
    texts: dict[str, _MergedCompletion] = {}
    for completion in completions:
        texts.setdefault(text_hash(completion.completion), _MergedCompletion(completion)).models.append(
            completion.model
        )
    return list(texts.values())


def _sample_completions(
    texts: list[_MergedCompletion], limit: int, baseline: str | None, rng: Random
) -> list[_MergedCompletion]:
    """A random choice that keeps the baseline, in the order of the file."""
    if len(texts) <= limit:
        return texts
    required = [index for index, text in enumerate(texts) if baseline in text.models][:1]
    rest = [index for index in range(len(texts)) if index not in required]
    return [texts[index] for index in sorted(required + rng.sample(rest, limit - len(required)))]


def _upsert_completions(
    db: Session, selected: list[tuple[PromptRow, list[_MergedCompletion]]], report: IngestReport
) -> list[TaskCandidate]:
    """Candidates with rows for their completions, new or those that are there."""
    existing: dict[tuple[str, str, str], CompletionRow] = {}
    for chunk in _chunked(row.id for row, _ in selected):
        rows = db.scalars(select(CompletionRow).where(CompletionRow.prompt_id.in_(chunk)))
        existing |= {(row.prompt_id, row.model, row.text_hash): row for row in rows}
    person_ids = {pseudonym: person_id for person_id, pseudonym in db.execute(select(Person.id, Person.pseudonym))}
    model_names = sorted({model for _, texts in selected for text in texts for model in text.models})
    candidates = []
    for prompt, texts in selected:
        drafts = []
        for text in texts:
            key = (prompt.id, text.representative.model, text_hash(text.representative.completion))
            if key not in existing:
                existing[key] = _build_completion_row(prompt, text.representative, key[2], person_ids, model_names)
                db.add(existing[key])
            report.name_themselves += existing[key].names_itself
            drafts.append(TaskCompletionDraft(existing[key], text.models))
        candidates.append(TaskCandidate(prompt, tuple(drafts)))
    db.flush()
    return candidates


def _build_completion_row(
    prompt: PromptRow, record: records.Completion, digest: str, person_ids: Mapping[str, str], model_names: list[str]
) -> CompletionRow:
    """A completion as a row. A column `labeler` (a pseudonym) says whose demonstration it is."""
    author = person_ids.get(str((record.model_extra or {}).get("labeler", "")))
    return CompletionRow(
        id=new_id(),
        prompt_id=prompt.id,
        text=record.completion,
        text_hash=digest,
        model=record.model,
        finish=record.finish,
        sampling=record.sampling,
        score=record.score,
        names_itself=reveals_model(record.completion, model_names),
        author_id=author,
    )


def pop_gold_answer(candidate: TaskCandidate, answers: dict[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The known answer of a task, taken out of `answers`; None when there is none, or it leaves completions of the task out.

    A ranking's answer comes by text and is kept by the completions' ids.
    """
    prompt = candidate.prompt
    key = (
        next((key for key in (prompt.external_id, prompt.text) if key in answers), None) if prompt is not None else None
    )
    if key is None:
        return None
    answer = answers[key]
    if candidate.completions:
        ranks = {text_hash(text): rank for text, rank in answer.items()}
        if not all(draft.completion.text_hash in ranks for draft in candidate.completions):
            return None
        answer = {draft.completion.id: ranks[draft.completion.text_hash] for draft in candidate.completions}
    del answers[key]
    return dict(answer)
