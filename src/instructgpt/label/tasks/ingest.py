"""Ingest prompts and completions as rows: merge duplicates, mark texts that reveal their model, count both."""

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
from instructgpt.label.db.models import CompletionRow, Person, PromptRow, new_id, new_random_id
from instructgpt.label.vocabulary import MAX_COMPLETIONS

_RecordT = TypeVar("_RecordT", bound=records.Record)
_SQL_CHUNK_SIZE = 500  # values in one statement; databases have a limit

_FAMILIES = (
    "chatgpt|gpt|instructgpt|davinci|claude|gemini|bard|palm|llama|alpaca|vicuna|mistral|mixtral|qwen|deepseek|falcon"
    "|gemma|grok|copilot|bing|ernie|yi|phi|command-r|exaone|hyperclova"
)
_MAKERS = "openai|anthropic|google|deepmind|meta|microsoft|mistral ai|alibaba|cohere|xai|baidu|naver|lg"
_SELF_IDENTIFICATION = re.compile(
    rf"\b(?:i\s*am|i['’]m|my\s+name\s+is|call\s+me|as)\s+(?:an?\s+|the\s+)?(?:{_FAMILIES})(?:[-\s]?[\d.]+\w*)?\b"
    rf"|\b(?:trained|developed|created|made|built)\s+by\s+(?:{_MAKERS})\b"
    rf"|(?:저는|나는|제\s*이름은)\s*(?:{_FAMILIES}|챗gpt|클로드|제미나이)"
    rf"|(?:{_MAKERS}|오픈ai|구글|네이버)(?:에서|가|이)\s*(?:개발|훈련|학습|만든|만들)",
    re.IGNORECASE,
)


class IngestReport(BaseModel):
    """Counts of ingested and excluded records of a batch."""

    prompts: int = 0
    completions: int = 0
    tasks: int = 0
    same_prompt: int = 0  # duplicates within the batch
    withdrawn_prompts: int = 0
    without_prompt: int = 0  # completions of prompts outside the batch
    merged: int = 0  # identical completions of a prompt: shown once, tied in exports
    beyond_k: int = 0  # completions above the largest K, excluded at random
    too_few: int = 0  # prompts with fewer distinct completions than the smallest K
    without_baseline: int = 0
    mended: int = 0  # texts in which U+FFFD replaced characters that no database stores
    name_themselves: int = 0  # completions that reveal their model: kept and marked
    unused_gold: int = 0  # gold answers without a task, or that lack one of its completions

    def format_counts(self) -> str:
        """Format the counts above 0 on one line."""
        return ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in self.model_dump().items() if count)


@dataclass
class TaskCompletionDraft:
    """A completion of a task to create, and every model with this text."""

    completion: CompletionRow
    models: list[str]


@dataclass
class TaskCandidate:
    """A task to create."""

    prompt: PromptRow | None
    completions: tuple[TaskCompletionDraft, ...] = ()
    brief: dict[str, Any] | None = None


@dataclass
class _MergedCompletion:
    """Identical completions of one prompt."""

    representative: records.Completion
    models: list[str] = field(default_factory=list)


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text without surrounding white space: equal hashes look equal on a page."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def prompt_hash(prompt: records.PromptFields) -> str:
    """Return the SHA-256 of a prompt; a conversation differs from the same words in one text."""
    prompt = prompt.bare_prompt
    if prompt.messages is None:
        return text_hash(prompt.prompt)
    turns = [message.model_dump() for message in prompt.messages]
    return text_hash(json.dumps(turns, ensure_ascii=False, sort_keys=True))


def _chunked(values: Iterable[Any], size: int = _SQL_CHUNK_SIZE) -> Iterator[list[Any]]:
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
    """Build the tasks to create, in the order of the prompts; raise InputError as `upsert_prompts`."""
    if kind == "write":
        return []
    completion_records = [_replace_unstorable_texts(record, report) for record in completions] if kind == "rank" else []
    prompt_records = [_replace_unstorable_texts(record, report) for record in prompts]
    if kind == "rank" and not prompt_records:
        bare_prompts = dict.fromkeys(record.bare_prompt for record in completion_records)
        prompt_records = [records.Prompt.model_validate(prompt.prompt_columns()) for prompt in bare_prompts]
    report.prompts, report.completions = len(prompt_records), len(completion_records)
    unique_prompts: dict[str, records.Prompt] = {}
    for prompt in prompt_records:
        unique_prompts.setdefault(prompt_hash(prompt), prompt)
    report.same_prompt = len(prompt_records) - len(unique_prompts)
    rows = upsert_prompts(db, list(unique_prompts.values()))
    pairs = zip(unique_prompts.values(), rows, strict=True)
    usable = [(prompt, row) for prompt, row in pairs if row.withdrawn_at is None]
    report.withdrawn_prompts = len(unique_prompts) - len(usable)
    if kind != "rank":
        return [TaskCandidate(row) for _, row in usable]
    return _build_ranking_candidates(db, usable, completion_records, k, baseline, report, rng)


def _replace_unstorable_texts(record: _RecordT, report: IngestReport) -> _RecordT:
    storable = to_storable(record)
    report.mended += storable is not record
    return storable


def to_storable(record: _RecordT) -> _RecordT:
    """Return a record whose texts a database can store: the same record if they already are."""
    row = record.model_dump(include={"prompt", "messages", "completion"}, exclude_none=True)
    clean = {name: _replace_in_value(value) for name, value in row.items()}
    return record if clean == row else record.model_validate(record.model_dump() | clean)


def _replace_in_value(value: Any) -> Any:
    if isinstance(value, str):
        return replace_unstorable(value)
    return tuple({**message, "content": replace_unstorable(message["content"])} for message in value)


def replace_unstorable(text: str) -> str:
    """Replace NUL and half surrogates, which no database stores, by U+FFFD."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)


def upsert_prompts(db: Session, prompts: Sequence[records.Prompt]) -> list[PromptRow]:
    """Return the row of each prompt, new or with its text and user; raise InputError for an id of another text."""
    hashes = [prompt_hash(prompt) for prompt in prompts]
    existing: dict[tuple[str, str | None], PromptRow] = {}
    for chunk in _chunked(hashes):
        by_text = db.scalars(select(PromptRow).where(PromptRow.text_hash.in_(chunk)))
        existing |= {(row.text_hash, row.user): row for row in by_text}
    by_external_id: dict[str, PromptRow] = {}
    for chunk in _chunked(prompt.id for prompt in prompts if prompt.id is not None):
        by_id = db.scalars(select(PromptRow).where(PromptRow.external_id.in_(chunk)))
        by_external_id |= {row.external_id or "": row for row in by_id}
    rows = []
    for prompt, digest in zip(prompts, hashes, strict=True):
        same_id = by_external_id.get(prompt.id) if prompt.id is not None else None
        if same_id is not None and same_id.text_hash != digest:
            raise InputError(f"prompt id '{prompt.id}' already belongs to another text; use unique ids or none")
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
    """Build the row of a prompt; a record's extra field `sensitive` is kept."""
    return PromptRow(
        id=new_id(),
        external_id=prompt.id,
        language=_stated_language(prompt),  # before the text, from which it is guessed otherwise
        text=prompt.prompt,
        text_hash=digest,
        source=prompt.source,
        user=prompt.user,
        messages=[message.model_dump() for message in prompt.messages] if prompt.messages is not None else None,
        use_case=prompt.use_case,
        split=prompt.split,
        sensitive=bool((prompt.model_extra or {}).get("sensitive", False)),
    )


def _stated_language(prompt: records.Prompt) -> str | None:
    """Return the `language` of a record if it is a language code, such as `en` or `pt-BR`."""
    value = (prompt.model_extra or {}).get("language")
    is_code = isinstance(value, str) and re.fullmatch(r"[A-Za-z]{2,3}([-_]\w{2,8})*", value)
    return re.split(r"[-_]", str(value).lower())[0] if is_code else None


def _build_ranking_candidates(
    db: Session,
    prompts: list[tuple[records.Prompt, PromptRow]],
    completions: list[records.Completion],
    k: tuple[int, int] | None,
    baseline: str | None,
    report: IngestReport,
    rng: Random,
) -> list[TaskCandidate]:
    """Build the rank tasks: each prompt with its distinct completions, as many as K allows."""
    min_k, max_k = k or (2, MAX_COMPLETIONS)
    completions_by_prompt: dict[str, list[records.Completion]] = {}
    for completion in completions:
        completions_by_prompt.setdefault(prompt_hash(completion), []).append(completion)
    used = sum(len(completions_by_prompt.get(row.text_hash, ())) for _, row in prompts)
    report.without_prompt = len(completions) - used
    selected: list[tuple[PromptRow, list[_MergedCompletion]]] = []
    for _, row in prompts:
        texts = _merge_identical(completions_by_prompt.get(row.text_hash, []))
        report.merged += len(completions_by_prompt.get(row.text_hash, [])) - len(texts)
        if baseline is not None and not any(baseline in text.models for text in texts):
            report.without_baseline += 1
        elif len(texts) < min_k:
            report.too_few += 1
        else:
            report.beyond_k += max(0, len(texts) - max_k)
            selected.append((row, _sample_completions(texts, max_k, baseline, rng)))
    return _upsert_completions(db, selected, report)


def _merge_identical(completions: Iterable[records.Completion]) -> list[_MergedCompletion]:
    texts: dict[str, _MergedCompletion] = {}
    for completion in completions:
        merged = texts.setdefault(text_hash(completion.completion), _MergedCompletion(completion))
        merged.models.append(completion.model)
    return list(texts.values())


def _sample_completions(
    texts: list[_MergedCompletion], limit: int, baseline: str | None, rng: Random
) -> list[_MergedCompletion]:
    """Sample up to `limit` completions, the baseline included, in their order."""
    if len(texts) <= limit:
        return texts
    required = [index for index, text in enumerate(texts) if baseline in text.models][:1]
    rest = [index for index in range(len(texts)) if index not in required]
    return [texts[index] for index in sorted(required + rng.sample(rest, limit - len(required)))]


def _upsert_completions(
    db: Session, selected: list[tuple[PromptRow, list[_MergedCompletion]]], report: IngestReport
) -> list[TaskCandidate]:
    """Build the tasks with rows for their completions, existing or new."""
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
    """Build the row of a completion; an extra field `labeler` (pseudonym) names a demonstration's author."""
    author = person_ids.get(str((record.model_extra or {}).get("labeler", "")))
    return CompletionRow(
        id=new_random_id(),
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
    """Remove and return a task's gold answer, a ranking's by completion id; None unless it covers all completions."""
    prompt = candidate.prompt
    keys = (prompt.external_id, prompt.text) if prompt is not None else ()
    key = next((key for key in keys if key in answers), None)
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


def reveals_model(text: str, models: tuple[str, ...] | list[str] = ()) -> bool:
    """Return whether a completion reveals its model.

    `models` are the compared models' names. Only those that no ordinary sentence contains are searched for (`gpt-4o`,
    `sft_175b`, not `base`): with a digit, hyphen or underscore, and of four letters or more.
    """
    if _SELF_IDENTIFICATION.search(text):
        return True
    lower = text.lower()
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", lower) for name in map(_distinctive_name, models) if name)


def _distinctive_name(model: str) -> str:
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return name if len(name) >= 4 and re.search(r"[\d_-]", name) else ""
